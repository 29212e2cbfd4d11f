"""Parent directories: strict manifests, checked files, and what a composition refuses of them."""

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

import modalloy
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, read_adapter, write_adapter
from modalloy.errors import (
    BaseMismatchError,
    DeltaError,
    FormatError,
    IntegrityError,
    MissingComponentError,
    SpecError,
    UnknownNameError,
    UnsafePathError,
)
from modalloy.modality import API_VERSION
from modalloy.parent import (
    CONNECTOR_FILE,
    MANIFEST,
    MODALITY_ADAPTER,
    TEXT_ADAPTER,
    Parent,
    read_manifest,
    verify_files,
    write_manifest,
)
from tiny import tiny_base
from toy import toy_parent, toy_registry

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", seed=3)


@pytest.fixture
def parent(base: Path, tmp_path: Path) -> Path:
    return toy_parent(tmp_path / "parent", base, "sight", seed=1, prefix=2)


def compose(base: Path, parent: Path) -> Any:
    return modalloy.compose(base, parents=[parent], registry=toy_registry("sight"))


def edit(parent: Path, **changes: Any) -> None:
    file = parent / MANIFEST
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(data))


def rehash(parent: Path) -> None:
    write_manifest(parent, read_manifest(parent))


def test_written_and_read_back(parent: Path) -> None:
    manifest = read_manifest(parent)
    verify_files(parent, manifest)
    assert sorted(manifest.files) == [
        CONNECTOR_FILE,
        *(f"{a}/{f}" for a in (MODALITY_ADAPTER, TEXT_ADAPTER) for f in sorted(
            ("adapter_config.json", WEIGHTS))),
    ]  # fmt: skip
    before = (parent / MANIFEST).read_bytes()
    assert write_manifest(parent, manifest) == manifest
    assert (parent / MANIFEST).read_bytes() == before
    assert not list(parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version must be 1, found 2; upgrade modalloy"),
        ({"strateegy": "x"}, "strateegy is not a known key"),
        ({"strategy": "whole"}, "strategy"),
        ({"name": 3}, "name must be str, found 3"),
        ({"base": {"id": "x"}}, "base.fingerprint is missing"),
        ({"prefix_tokens": "2"}, "prefix_tokens must be int, found '2'"),
        ({"files": ["a"]}, "files"),
        ({"name": "a\nb"}, "'name' must be one line of printable characters, found 'a\\nb'"),
        ({"licence": "MIT\x1b[2J"}, "'licence' must be one line of printable characters"),
    ],
)
def test_a_malformed_manifest(base: Path, parent: Path, changes: Any, message: str) -> None:
    edit(parent, **changes)
    with pytest.raises(FormatError) as caught:
        compose(base, parent)
    assert message in str(caught.value)
    assert str(parent / MANIFEST) in str(caught.value)


def test_a_name_that_would_not_stay_on_its_line(parent: Path) -> None:
    manifest = read_manifest(parent)
    for bad in ("a\nb", "a\u2028b", "a\u202eb", "a\tb"):
        for key in ("name", "licence"):
            with pytest.raises(SpecError, match=f"of '{key}' must be one line of printable"):
                attrs.evolve(manifest, **{key: bad})
    assert attrs.evolve(manifest, name="Zoë's (v2)").name == "Zoë's (v2)"


def test_a_manifest_that_cannot_be_written(parent: Path, monkeypatch: Any) -> None:
    before = sorted(parent.rglob("*")), (parent / MANIFEST).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FormatError, match=r"parent\.json cannot be written: .*No space left"):
        rehash(parent)
    assert (sorted(parent.rglob("*")), (parent / MANIFEST).read_bytes()) == before


@pytest.mark.parametrize("text", ["{", "\udcff", "[" * 100_000])
def test_a_manifest_that_is_no_json(parent: Path, text: str) -> None:
    (parent / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=r"parent\.json is not valid JSON"):
        read_manifest(parent)


def test_no_manifest(base: Path, parent: Path) -> None:
    (parent / MANIFEST).unlink()
    with pytest.raises(FormatError, match=r"is not a parent directory: it has no parent\.json"):
        compose(base, parent)
    (parent / MANIFEST).mkdir()
    with pytest.raises(FormatError, match=r"parent\.json cannot be read"):
        compose(base, parent)
    with pytest.raises(UnknownNameError, match="unknown parent 'no/where'; known: none"):
        modalloy.compose(base, parents=["no/where"], registry=toy_registry("sight"))


def test_a_changed_file_is_found_by_its_hash(base: Path, parent: Path) -> None:
    file = parent / TEXT_ADAPTER / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"SHA-256 is [0-9a-f]{64}, parent\.json says") as info:
        compose(base, parent)
    assert info.value.path == file


def test_missing_and_unrecorded_files(base: Path, parent: Path) -> None:
    (parent / "encoder.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"encoder\.safetensors is not recorded in parent"):
        compose(base, parent)
    (parent / "encoder.safetensors").unlink()
    (parent / CONNECTOR_FILE).unlink()
    with pytest.raises(IntegrityError, match=r"connector\.safetensors is missing, parent\.json na"):
        compose(base, parent)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../base/config.json", "climbs out of its directory"),
        ("a/../../base/config.json", "climbs out of its directory"),
        ("/etc/hostname", "is not a relative path"),
        ("C:\\x", "is not a relative path"),
        ("a\0b", "climbs out of its directory"),
    ],
)
def test_names_that_lead_outside(base: Path, parent: Path, name: str, problem: str) -> None:
    edit(parent, files={**read_manifest(parent).files, name: "0" * 64})
    with pytest.raises(UnsafePathError, match=problem):
        compose(base, parent)


def test_links_that_lead_outside(base: Path, parent: Path, tmp_path: Path) -> None:
    file = parent / CONNECTOR_FILE
    file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UnsafePathError, match="symbolic link that leads outside its directory"):
        compose(base, parent)


def test_a_linked_folder_is_not_read_unchecked(base: Path, parent: Path, tmp_path: Path) -> None:
    (parent / TEXT_ADAPTER).rename(tmp_path / "elsewhere")
    (parent / TEXT_ADAPTER).symlink_to(tmp_path / "elsewhere")
    files = {k: v for k, v in read_manifest(parent).files.items() if TEXT_ADAPTER not in k}
    edit(parent, files=files)
    with pytest.raises(UnsafePathError, match="text_adapter is a symbolic link to a directory"):
        compose(base, parent)


def test_a_snapshot_of_the_hub_cache_is_taken(base: Path, parent: Path, tmp_path: Path) -> None:
    """Files of a snapshot are links to the cache's blobs, outside the snapshot."""
    blobs = tmp_path / "models--org--parent" / "blobs"
    snapshot = tmp_path / "models--org--parent" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in parent.rglob("*") if p.is_file())):
        link = snapshot / file.relative_to(parent)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    model, _ = compose(base, snapshot)
    assert list(model.config.modalities) == ["sight"]


def test_another_base_shows_both_fingerprints(parent: Path, tmp_path: Path) -> None:
    other = tiny_base(tmp_path / "other", seed=4)
    with pytest.raises(BaseMismatchError, match="the weights differ") as caught:
        compose(other, parent)
    error = caught.value
    assert error.expected in str(error)
    assert error.found in str(error)
    assert error.expected != error.found
    with pytest.raises(BaseMismatchError, match="the architecture differs"):
        compose(tiny_base(tmp_path / "third", family="qwen3"), parent)


def pairs(parent: Path, folder: str = TEXT_ADAPTER) -> dict[str, LowRankPair]:
    return dict(read_adapter(parent / folder).pairs)


def rewrite(parent: Path, changed: dict[str, LowRankPair], folder: str = TEXT_ADAPTER) -> None:
    write_adapter(parent / folder, LowRankDelta(changed), base_id="x")
    rehash(parent)


@pytest.mark.parametrize("folder", [TEXT_ADAPTER, MODALITY_ADAPTER])
@pytest.mark.parametrize("name", ["model.layers.7.mlp.up_proj", "model.norm", "model.embed_tokens"])
def test_a_delta_without_a_place(base: Path, parent: Path, folder: str, name: str) -> None:
    found = pairs(parent, folder)
    like = next(iter(found.values()))
    found[name] = LowRankPair(like.A.clone(), like.B.clone(), 1.0)
    rewrite(parent, found, folder)
    with pytest.raises(DeltaError, match=rf"delta of '{name}' has no place") as caught:
        compose(base, parent)
    assert caught.value.tensor == name


def test_a_delta_of_another_shape(base: Path, parent: Path) -> None:
    found = pairs(parent)
    found["model.layers.0.mlp.up_proj"] = LowRankPair(torch.ones(4, 31), torch.ones(48, 4), 1.0)
    rewrite(parent, found)
    with pytest.raises(DeltaError, match=r"sight: .*A \(4, 31\) and B .*takes \(4, 32\)"):
        compose(base, parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "projection.weight": torch.ones(32, 7)},
        lambda t: {k: v for k, v in t.items() if k != "prefix"},
        lambda t: {**t, "prefix": torch.ones(3, 32)},
        lambda t: {**t, "suffix": torch.ones(1, 32)},
    ],
)
def test_a_connector_of_another_shape(base: Path, parent: Path, change: Any) -> None:
    file = parent / CONNECTOR_FILE
    save_file(change(load_file(file)), file)
    rehash(parent)
    with pytest.raises(FormatError, match="does not hold the connector that its parent") as caught:
        compose(base, parent)
    assert caught.value.path == file


@pytest.mark.parametrize("name", [CONNECTOR_FILE, f"{TEXT_ADAPTER}/{WEIGHTS}"])
def test_truncated_weights_whose_hash_agrees(base: Path, parent: Path, name: str) -> None:
    file = parent / name
    file.write_bytes(file.read_bytes()[:-8])
    rehash(parent)
    with pytest.raises(FormatError) as caught:
        compose(base, parent)
    assert caught.value.path == file
    file.write_bytes(b"\x00" * 4)
    rehash(parent)
    with pytest.raises(FormatError):
        compose(base, parent)


def test_a_decoupled_parent_without_its_second_delta(base: Path, parent: Path) -> None:
    for file in (parent / MODALITY_ADAPTER).iterdir():
        file.unlink()
    rehash(parent)
    with pytest.raises(FormatError, match=r"modality_adapter/adapter_config\.json cannot be read"):
        compose(base, parent)


def test_unknown_components_say_what_to_install(base: Path, parent: Path) -> None:
    kept = json.loads((parent / MANIFEST).read_text())["encoder"]
    edit(parent, encoder={"type": "toy-smell", "config": {}}, requires="modalloy-smell>=2")
    with pytest.raises(UnknownNameError, match=r'encoder .*pip install "modalloy-smell>=2"'):
        compose(base, parent)
    edit(parent, encoder=kept, connector={"type": "linnear", "config": {}})
    with pytest.raises(UnknownNameError, match=r"connector 'linnear'.*Did you mean 'linear'"):
        compose(base, parent)
    edit(parent, connector={"type": "linear", "config": {"bais": True}})
    with pytest.raises(SpecError, match=r"has no option 'bais'.*Did you mean 'bias'"):
        compose(base, parent)


def test_an_encoder_of_another_modality(base: Path, parent: Path) -> None:
    edit(parent, encoder={"type": "toy-sound", "config": {}})
    with pytest.raises(SpecError, match=r"'toy-sound' takes 'sound' inputs, .* is 'sight'"):
        modalloy.compose(base, parents=[parent], registry=toy_registry())


def test_a_declared_parent_without_its_weights(tmp_path: Path) -> None:
    declared = Parent(
        name="p",
        api_version=API_VERSION,
        modality="sight",
        base="tiny",
        strategy="naive",
        source=tmp_path / "gone",
    )
    with pytest.raises(MissingComponentError, match=r"'p': .*gone holds no parent\.json; was its"):
        declared.directory()
