"""Revisions of what is fetched from the Hub, against the local stand-in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

import modalloy
from composing import compose
from hub import Hub
from modalloy.base import resolve_base
from modalloy.errors import SpecError
from modalloy.evaluation.retention import parents_alone
from test_hub import run
from tiny import tiny_base
from toy import toy_parent, toy_registry

OPEN = """
import json, sys, modalloy
from modalloy.registry import Registry
from toy import toy_registry
Registry.discover = classmethod(lambda cls, **_: toy_registry("sight"))  # as if installed
parent, *revisions = json.loads(sys.argv[1])
found = []
for revision in revisions:
    try:
        loaded = modalloy.load("me/it", revision=revision)
        composed = parent and modalloy.compose("me/base", revision=revision, parents=[parent])
    except modalloy.ModalloyError as error:
        found.append([type(error).__name__, str(error)])
    else:
        found.append([
            float(loaded.model.connectors["sight"].projection.bias[0]),
            parent and composed.model.config.base["id"],
        ])
print(json.dumps(found))
"""

COMMAND = """
import sys
from modalloy.registry import Registry
from toy import toy_registry
Registry.discover = classmethod(lambda cls, **_: toy_registry("sight"))  # as if installed
from modalloy.cli.main import run
sys.argv = ["modalloy", *sys.argv[1:]]
run()
"""


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("revisions")
    base = tiny_base(root / "base", seed=3)
    parent = toy_parent(root / "p", base, "sight", seed=1)
    model, processor = compose(base, [parent], registry=toy_registry("sight"))
    model.save_pretrained(root / "it")
    processor.save_pretrained(root / "it")
    other = tiny_base(root / "other", seed=4)
    return {"base": base, "parent": parent, "it": root / "it", "other": other}


@pytest.fixture(scope="module")
def hub(places: dict[str, Path]) -> Iterator[Hub]:
    """A Hub where both the composition and the base changed after their first commit."""
    first = contents(places["it"])
    tensors = load(first["model.safetensors"])
    tensors["connectors.sight.projection.bias"] = tensors["connectors.sight.projection.bias"] * 0
    second = {**first, "model.safetensors": save(tensors, metadata={"format": "pt"})}
    with Hub() as hub:
        hub.commits["me/it"] = [first, second]
        hub.commits["me/base"] = [contents(places["base"]), contents(places["other"])]
        hub.tags = {("me/it", "v1.0"): 0, ("me/base", "v1.0"): 0}
        yield hub


def test_what_was_asked_for_is_opened(hub: Hub, places: dict[str, Path], tmp_path: Path) -> None:
    saved = load((places["it"] / "model.safetensors").read_bytes())
    bias = float(saved["connectors.sight.projection.bias"][0])
    assert bias != 0
    asked = json.dumps([str(places["parent"]), "v1.0", None, "v2"])
    found = json.loads(run(OPEN, hub, tmp_path, asked).splitlines()[-1])
    assert found[0] == [bias, "me/base"]
    # The base of the last commit is another one.
    assert found[1][0] == "BaseMismatchError"
    assert found[2][0] == "MissingComponentError"
    assert "neither a directory nor a Hub repository" in found[2][1]
    assert "at revision 'v2'" in found[2][1]


def test_by_commit_and_without_any(hub: Hub, tmp_path: Path) -> None:
    asked = json.dumps(["", hub.sha("me/it", 0), hub.sha("me/it", 1), "main", None])
    found = [one for one, _ in json.loads(run(OPEN, hub, tmp_path, asked).splitlines()[-1])]
    assert found[0] != 0
    assert found[1:] == [0, 0, 0]


def test_the_command_takes_a_revision(hub: Hub, tmp_path: Path) -> None:
    words = ["ask", "me/it", "who", "--json", "--max-new-tokens", "2"]
    del hub.requests[:]
    assert json.loads(run(COMMAND, hub, tmp_path, *words, "--revision", "v1.0"))["tokens"] == 2
    (listed,) = {path for _, path in hub.requests if path.startswith("/api/models/me/it/revision")}
    assert listed == "/api/models/me/it/revision/v1.0"
    assert not [
        path for _, path in hub.requests if "/resolve/" in path and hub.sha("me/it") in path
    ]


@pytest.mark.parametrize("revision", ["", "../v1", "a/../b", "/v1", "a\\b", "v1 ", "v1\n"])
def test_what_is_no_revision_is_sent_nowhere(
    revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise AssertionError("it was sent")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("modalloy.composition.directory.snapshot_download", fetch)
    registry = toy_registry("sight")
    with pytest.raises(SpecError, match="is no commit, tag or branch; give one as the Hub shows"):
        modalloy.load("me/it", revision=revision, registry=registry)
    with pytest.raises(SpecError, match="is no commit, tag or branch; give one as the Hub shows"):
        resolve_base("me/base", revision)


def test_a_revision_of_a_directory_is_refused(places: dict[str, Path]) -> None:
    registry = toy_registry("sight")
    with pytest.raises(SpecError, match=r"revision 'v1' is given, and '.*' is not fetched from"):
        modalloy.load(places["it"], revision="v1", registry=registry)
    for base in (places["base"], str(places["base"]), "smollm2"):
        with pytest.raises(SpecError, match="is not fetched from the Hub; leave it out"):
            modalloy.compose(base, revision="v1", parents=[places["parent"]], registry=registry)


def test_parents_alone_stand_on_the_same_revision(places: dict[str, Path]) -> None:
    registry = toy_registry("sight")
    composition = compose(places["base"], [places["parent"]], registry=registry)
    given = [places["parent"]]
    alone = parents_alone(composition, given, registry, base="me/base", revision="v1.0")
    assert (alone["image"]["base"], alone["image"]["revision"]) == ("me/base", "v1.0")
    assert parents_alone(composition, given, registry)["image"]["revision"] is None
