"""Parent directories of an enemy's, in compositions and merges."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalloy.errors import (
    DeltaError,
    FormatError,
    IntegrityError,
    ModalloyError,
    SpecError,
    UnknownNameError,
    UnsafePathError,
)
from modalloy.parent import read_manifest, write_manifest
from safety.entries import compose, merge
from safety.hostile import Box, append_to, spoil_header

MakeBox = Callable[[str], Box]
ENTRIES = ("compose", "merge")


def opened(entry: str, inside: Box, good: Path) -> Callable[[], Any]:
    calls: dict[str, Callable[[], Any]] = {
        "compose": lambda: compose(good / "base", inside.model),
        "merge": lambda: merge(inside, good / "base", inside.model),
    }
    return calls[entry]


def rehash(inside: Box) -> None:
    write_manifest(inside.model, read_manifest(inside.model))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside/secret.txt", "climbs out of its directory"),
        ("{0}/secret.txt", "is not a relative path"),
        ("text_adapter/../../outside/secret.txt", "climbs out of its directory"),
        ("..\\outside\\secret.txt", "climbs out of its directory"),
        ("D:secret.txt", "is not a relative path"),
    ],
)
def test_files_that_climb(box: MakeBox, good: Path, entry: str, name: str, words: str) -> None:
    inside = box("parent")
    name = name.format(inside.outside.path)
    inside.edit("parent.json", lambda data: data["files"].update({name: "0" * 64}))
    inside.refuses(opened(entry, inside, good), UnsafePathError, words)


@pytest.mark.parametrize("entry", ENTRIES)
def test_files_that_were_changed(box: MakeBox, good: Path, entry: str) -> None:
    inside = box("parent")
    append_to(inside.model / "text_adapter" / "adapter_model.safetensors", b"\0")
    inside.refuses(opened(entry, inside, good), IntegrityError, "SHA-256 is")
    inside.edit("parent.json", lambda data: data.update(files={}))
    inside.refuses(opened(entry, inside, good), IntegrityError, "is not recorded in parent.json")


@pytest.mark.parametrize("entry", ENTRIES)
def test_links_to_files_elsewhere(box: MakeBox, good: Path, entry: str) -> None:
    inside = box("parent")
    inside.link("parent.json", "parent.json")
    words = "'parent.json', which is a symbolic link that leads outside its directory"
    inside.refuses(opened(entry, inside, good), UnsafePathError, words)
    (inside.model / "parent.json").unlink()
    (inside.outside.path / "parent.json").rename(inside.model / "parent.json")
    inside.link("text_adapter/adapter_config.json", "adapter_config.json")
    words = "is a symbolic link that leads outside its directory"
    inside.refuses(opened(entry, inside, good), UnsafePathError, words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", ["parent.json", "text_adapter/adapter_config.json", "new.json"])
def test_pipes_are_not_waited_for(box: MakeBox, good: Path, name: str) -> None:
    inside = box("parent")
    (inside.model / name).unlink(missing_ok=True)
    os.mkfifo(inside.model / name)
    inside.refuses(opened("compose", inside, good), FormatError, name)


@pytest.mark.parametrize("entry", ENTRIES)
def test_pickles_in_place_of_adapters(box: MakeBox, good: Path, entry: str) -> None:
    inside = box("parent")
    (inside.model / "text_adapter" / "adapter_model.safetensors").unlink()
    inside.pickle("text_adapter/adapter_model.bin")
    rehash(inside)
    inside.refuses(opened(entry, inside, good), FormatError, "adapter_model.safetensors")


def test_pickles_in_place_of_an_encoder_or_connector(box: MakeBox, good: Path) -> None:
    inside = box("parent")
    for name in ("encoder.bin", "connector.bin", "rng_state.pth", "text_adapter/optimizer.pt"):
        inside.pickle(name)
    rehash(inside)
    found = inside.takes(opened("compose", inside, good))
    assert found.model.encoders.files == {}
    (inside.model / "connector.safetensors").unlink()
    rehash(inside)
    inside.refuses(opened("compose", inside, good), FormatError, "connector.safetensors")
    (inside.model / "connector.bin").rename(inside.model / "connector.safetensors")
    rehash(inside)
    words = "does not hold the connector that its parent.json describes"
    inside.refuses(opened("compose", inside, good), FormatError, words)


@pytest.mark.parametrize("entry", ENTRIES)
def test_adapters_whose_header_lies(box: MakeBox, good: Path, entry: str) -> None:
    inside = box("parent")
    file = inside.model / "text_adapter" / "adapter_model.safetensors"

    def lie(header: dict[str, Any]) -> None:
        header[min(header.keys() - {"__metadata__"})]["shape"] = [2**62, 2**62]

    spoil_header(file, lie)
    rehash(inside)
    inside.refuses(opened(entry, inside, good), FormatError, "adapter_model.safetensors")


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        ({"peft_type": "foreign.Tuner"}, DeltaError, "peft_type is 'foreign.Tuner'"),
        ({"rank_pattern": {"(a+)+$": 1}}, DeltaError, "may take forever"),
        ({"rank_pattern": {"(": 1}}, FormatError, "is no regular expression"),
        ({"r": 10**30}, FormatError, "adapter_config.json"),
        ({"modules_to_save": ["../x"]}, DeltaError, "modules_to_save is set"),
    ],
)
def test_settings_of_an_adapter(
    box: MakeBox, good: Path, entry: str, keys: Any, kind: type[ModalloyError], words: str
) -> None:
    inside = box("parent")
    inside.edit("text_adapter/adapter_config.json", **keys)
    rehash(inside)
    inside.refuses(opened(entry, inside, good), kind, words)


def test_an_adapter_neither_fetches_nor_imports(box: MakeBox, good: Path) -> None:
    inside = box("parent")
    inside.code("text_adapter/foreign.py")
    inside.edit(
        "text_adapter/adapter_config.json",
        base_model_name_or_path="../outside",
        revision="evil",
        auto_mapping={"base_model_class": "C", "parent_library": "foreign"},
        custom_modules={"Linear": "foreign.C"},
    )
    rehash(inside)
    inside.takes(opened("compose", inside, good))
    inside.takes(opened("merge", inside, good))


NAMES = ("os:system", "foreign:C", "../foreign", "/foreign", "git+https://evil/x", "https://evil")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["encoder", "connector", "modality"])
def test_parts_are_names_of_what_is_installed(
    box: MakeBox, good: Path, part: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = box("parent")
    inside.code()
    monkeypatch.syspath_prepend(str(inside.model))
    monkeypatch.chdir(inside.model)
    value: Any = name if part == "modality" else {"type": name, "config": {}}
    inside.edit("parent.json", **{part: value}, requires="modalloy-sight>=1,<2")
    with inside.watched(), pytest.raises(UnknownNameError) as caught:
        compose(good / "base", inside.model)
    assert caught.value.name == name
    if part == "encoder":
        assert 'pip install "modalloy-sight>=1,<2"' in str(caught.value)


@pytest.mark.parametrize(
    "requires",
    [
        "git+https://evil/x",
        "x @ https://evil/x.whl",
        "/evil",
        "../evil",
        "--index-url https://evil x",
        'x"; rm -rf /; "',
        "x\nevil",
        "x>=1 evil",
    ],
)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_shown_as_something_to_install(
    box: MakeBox, good: Path, entry: str, requires: str
) -> None:
    inside = box("parent")
    inside.edit("parent.json", requires=requires, encoder={"type": "nope", "config": {}})
    inside.refuses(opened(entry, inside, good), FormatError, "must be a requirement such as")


@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        ({"connector": {"type": "qformer", "config": {"queries": 10**9}}}, SpecError, "queries"),
        ({"connector": {"type": "qformer", "config": {"layers": 10**9}}}, SpecError, "layers"),
        ({"prefix_tokens": 10**12}, FormatError, "must be <= 65536"),
        ({"suffix_tokens": -5}, FormatError, "'suffix_tokens' must be >= 0"),
    ],
)
def test_numbers_that_would_fill_the_memory(
    box: MakeBox, good: Path, keys: Any, kind: type[ModalloyError], words: str
) -> None:
    inside = box("parent")
    inside.edit("parent.json", **keys)
    inside.refuses(opened("compose", inside, good), kind, words)


@pytest.mark.parametrize("entry", ENTRIES)
def test_json_without_a_bottom(box: MakeBox, good: Path, entry: str) -> None:
    inside = box("parent")
    data = json.loads((inside.model / "parent.json").read_text())
    for depth, words in ((100, "nested more than 64 deep"), (100_000, "is not valid JSON")):
        text = json.dumps(data | {"training": {"x": "DEEP"}})
        deep = "[" * depth + "]" * depth
        (inside.model / "parent.json").write_text(text.replace('"DEEP"', deep))
        inside.refuses(opened(entry, inside, good), FormatError, words)
