"""Weights that lie, at the calls that a user makes with them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalloy.checkpoints import safe_index
from modalloy.errors import FormatError, UnsafePathError
from safety.entries import compose, load, merge
from safety.hostile import (
    INDEX,
    WEIGHTS,
    Box,
    pickled_canary,
    same_weights,
    scaled_weights,
    spoil_header,
    write_header,
)

MakeBox = Callable[[str], Box]
ENTRIES = ("compose", "load", "merge", "merge base")


def open_as(entry: str, make: MakeBox, good: Path) -> tuple[Box, Callable[[], Any]]:
    """A box around what an entry point takes, and the call."""
    box = make("composition" if entry == "load" else "base")
    calls: dict[str, Callable[[], Any]] = {
        "compose": lambda: compose(box.model, good / "parent"),
        "load": lambda: load(box.model),
        "merge": lambda: merge(box, good / "base", box.model),
        "merge base": lambda: merge(box, box.model, good / "base"),
    }
    return box, calls[entry]


def overlap(header: dict[str, Any]) -> None:
    first, second = [n for n in sorted(header) if n != "__metadata__"][:2]
    header[second] = dict(header[first])


def hole(header: dict[str, Any]) -> None:
    del header[next(n for n in sorted(header) if n != "__metadata__")]


def huge(header: dict[str, Any]) -> None:
    header[next(n for n in sorted(header) if n != "__metadata__")]["shape"] = [2**62, 2**62]


def beyond(header: dict[str, Any]) -> None:
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    start, stop = header[name]["data_offsets"]
    header[name].update(
        shape=[stop - start + 2**40], dtype="U8", data_offsets=[start, stop + 2**40]
    )


def claim_header(file: Path) -> None:
    write_header(file, b"{}", b"", size=2**40)


def repeat_names(file: Path) -> None:
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    write_header(file, b"{" + entry + b"," + entry + b"}", b"\0")


def append_pickle(file: Path) -> None:
    with file.open("ab") as handle:
        handle.write(pickled_canary(file.parents[1] / "canary"))


SPOILT = {
    "a header of a tebibyte": (claim_header, "was cut short"),
    "one name twice": (repeat_names, "names 'a' more than once"),
    "tensors that overlap": (lambda file: spoil_header(file, overlap), WEIGHTS),
    "bytes of no tensor": (lambda file: spoil_header(file, hole), WEIGHTS),
    "a shape that overflows": (lambda file: spoil_header(file, huge), WEIGHTS),
    "a tensor beyond the end": (lambda file: spoil_header(file, beyond), WEIGHTS),
    "a pickle behind the data": (append_pickle, WEIGHTS),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("lie", SPOILT)
def test_headers_that_lie(box: MakeBox, good: Path, entry: str, lie: str) -> None:
    inside, call = open_as(entry, box, good)
    spoil, words = SPOILT[lie]
    spoil(inside.model / WEIGHTS)
    if entry == "load" and words == WEIGHTS:
        words = "safetensors"
    inside.refuses(call, FormatError, words)


@pytest.mark.parametrize("entry", ENTRIES)
def test_more_tensors_than_are_read(
    box: MakeBox, good: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, call = open_as(entry, box, good)
    monkeypatch.setattr(safe_index, "MAX_TENSORS", 1000)
    many = {str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(1001)}
    write_header(inside.model / WEIGHTS, json.dumps(many).encode(), b"")
    inside.refuses(call, FormatError, "names 1001 tensors, at most 1000 are read")


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside/w.safetensors", "climbs out of its directory"),
        ("{outside}/w.safetensors", "is not a relative path"),
        ("C:\\w.safetensors", "is not a relative path"),
        ("..\\outside\\w.safetensors", "climbs out of its directory"),
        ("../outside/secret.txt", "climbs out of its directory"),
        ("w.bin", "does not end with '.safetensors'"),
    ],
)
def test_an_index_that_leads_elsewhere(
    box: MakeBox, good: Path, entry: str, name: str, words: str
) -> None:
    inside, call = open_as(entry, box, good)
    inside.shards(lambda _: name.format(outside=inside.outside.path))
    inside.refuses(call, UnsafePathError, words)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", [WEIGHTS, INDEX, "shard.safetensors"])
def test_links_to_weights_elsewhere(box: MakeBox, good: Path, entry: str, name: str) -> None:
    inside, call = open_as(entry, box, good)
    if name == WEIGHTS:
        inside.link(WEIGHTS, "w.safetensors")
    else:
        inside.shards(lambda _: "shard.safetensors")
        inside.link("shard.safetensors", "w.safetensors")
        if name == INDEX:
            inside.link(INDEX, "index.json")
    inside.refuses(call, UnsafePathError, "is a symbolic link that leads outside its directory")


def test_a_tensors_name_is_no_path(box: MakeBox, good: Path) -> None:
    inside = box("base")
    tensors = load_file(inside.model / WEIGHTS)
    names = ["../../x", str(inside.root / "x"), "a/../b"]
    tensors |= {name: torch.ones(4) for name in names}
    save_file(tensors, inside.model / WEIGHTS, metadata={"format": "pt"})
    inside.takes(lambda: merge(inside, inside.model, inside.model))
    assert sorted(load_file(inside.out / WEIGHTS)) == sorted(tensors)
    assert sorted(path.name for path in inside.root.iterdir()) == ["model", "out", "outside"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_pickles_in_place_of_weights(box: MakeBox, good: Path, entry: str) -> None:
    inside, call = open_as(entry, box, good)
    (inside.model / WEIGHTS).unlink()
    inside.pickle("pytorch_model.bin")
    inside.refuses(call, FormatError, "'pytorch_model.bin': pickles, which can run any code")


@pytest.mark.parametrize("entry", ENTRIES)
def test_pickles_beside_weights_are_left_alone(box: MakeBox, good: Path, entry: str) -> None:
    inside, call = open_as(entry, box, good)
    for name in ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "training_args.bin"):
        inside.pickle(name)
    inside.takes(call)


@pytest.mark.parametrize("entry", ENTRIES)
def test_pieces_that_would_be_read_first(box: MakeBox, good: Path, entry: str) -> None:
    """transformers takes a model's pieces by several processes before its one file."""
    inside, call = open_as(entry, box, good)
    name = "shard-00001-model-00001-of-00001.safetensors"
    scaled_weights(inside.model / WEIGHTS, inside.model / name)
    inside.refuses(call, FormatError, "would be read in place of the weights that are checked")


@pytest.mark.parametrize("entry", ["compose", "load"])
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_an_adapter_that_comes_with_a_model(
    box: MakeBox, good: Path, entry: str, kind: str
) -> None:
    """transformers puts it on the model, where peft is installed, and says nothing."""
    inside, call = open_as(entry, box, good)
    adapter = good / "parent" / "text_adapter"
    for file in adapter.iterdir():
        os.link(file, inside.model / file.name)
    if kind == "pickle":
        (inside.model / "adapter_model.safetensors").unlink()
        inside.pickle("adapter_model.bin")
    inside.refuses(call, FormatError, "would put an adapter on it that nobody asked for")


@pytest.mark.parametrize("how", ["file", "index"])
def test_other_weights_named_in_the_configuration(box: MakeBox, good: Path, how: str) -> None:
    """transformers reads ``transformers_weights`` in place of what stands under the usual names."""
    inside = box("base")
    name = "other.safetensors"
    if how == "file":
        scaled_weights(inside.model / WEIGHTS, inside.model / name)
    else:
        scaled_weights(inside.model / WEIGHTS, inside.outside.path / "w.safetensors")
        table = dict.fromkeys(load_file(inside.model / WEIGHTS), "../outside/w.safetensors")
        name += ".index.json"
        (inside.model / name).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    inside.edit("config.json", transformers_weights=name)
    model = inside.takes(lambda: compose(inside.model, good / "parent")).model
    assert same_weights(model, inside.model / WEIGHTS)
