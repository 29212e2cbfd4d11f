"""Checks of parents: a good one passes, and each invariant that is broken shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalloy import Registry
from modalloy.parent import ComponentConfig, read_manifest, write_manifest
from modalloy.testing import (
    CheckFailed,
    check_parent,
    invariants,
    parent_checks,
    tiny_base,
    tiny_parent,
    toy_parent,
    toy_registry,
)
from smelling import GOOD, NOTES, Nose, nose


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("testing") / "base", seed=3)


def told(path: Path, base: Path | None, registry: Registry | None = None) -> dict[str, str]:
    with pytest.raises(CheckFailed) as caught:
        check_parent(path, base, registry=registry or toy_registry())
    return {one.check: one.detail for one in caught.value.checks if one.ok is False}


@pytest.mark.parametrize("strategy", ["decoupled", "naive"])
def test_a_good_parent_passes_everything(base: Path, tmp_path: Path, strategy: str) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight", strategy=strategy, prefix=2)
    checks = check_parent(parent, base, registry=toy_registry(), samples=[[0.4]])
    assert all(check.ok for check in checks), checks
    assert sum(check.check.startswith("invariant ") for check in checks) == 7
    twin = check_parent(parent, registry=toy_registry())
    assert [check.check for check in twin if check.ok is None] == ["fingerprint"]
    assert [c.check for c in twin if c.check.startswith("inv")] == [
        c.check for c in checks if c.check.startswith("inv")
    ]


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "phi3", "granite", "qwen3_moe"])
def test_bases_of_other_families_will_do(tmp_path: Path, family: str) -> None:
    base = tiny_base(tmp_path / "base", family=family)
    check_parent(toy_parent(tmp_path / "p", base, "touch"), base, registry=toy_registry("touch"))


def test_norms_and_embeddings_that_were_tuned_whole_are_told_apart(
    base: Path, tmp_path: Path
) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight", suffix=1)
    plain = load_file(base / "model.safetensors")
    for number, stream in enumerate(("text", "modality")):
        names = ["model.norm.weight", "model.layers.1.input_layernorm.weight"]
        if stream == "text":
            names.append("model.embed_tokens.weight")
        tuned = {name: plain[name] + 0.1 * (number + 1) for name in names}
        (parent / f"{stream}_weights").mkdir()
        save_file(tuned, parent / f"{stream}_weights" / "model.safetensors")
    write_manifest(parent, read_manifest(parent))
    check_parent(parent, base, registry=toy_registry())


def test_an_own_modality_and_tiny_parents_of_it(base: Path, tmp_path: Path) -> None:
    registry = nose()
    mlp = ComponentConfig(type="mlp", config={"depth": 2, "norm": True})
    parent = tiny_parent(
        tmp_path / "p",
        base,
        "smell",
        encoder=ComponentConfig(type="nose", config={"notes": NOTES}),
        connector=mlp,
        suffix=2,
        registry=registry,
    )
    assert read_manifest(parent).name == "smell-tiny"
    checks = check_parent(parent, base, registry=registry, samples=GOOD)
    assert all(check.ok for check in checks)
    assert list(registry.modalities) == ["smell"], "the toy beside it is gone"


def test_files_that_are_damaged_stray_or_missing_are_told(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight", strategy="naive")
    save_file({"x": torch.ones(1)}, parent / "extra.safetensors")
    write_manifest(parent, read_manifest(parent))
    found = told(parent, base)
    assert found["all of it is read"].startswith(
        "extra.safetensors would be read by nothing; a naive parent has text_adapter, text_weights"
    )
    file = parent / "connector.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert "SHA-256 is" in told(parent, base)["files"]
    file.unlink()
    (parent / "extra.safetensors").unlink()
    assert told(parent, base)["all of it is read"] == f"it has no {file.name}"
    (parent / "parent.json").write_text("{")
    assert list(told(parent, base)) == ["parent.json"]


def test_a_connector_of_other_tensors_is_told(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")
    save_file({"projection.weight": torch.ones(32, 5)}, parent / "connector.safetensors")
    write_manifest(parent, read_manifest(parent))
    assert 'Missing key(s) in state_dict: "projection.bias"' in told(parent, base)["connector"]


def edit(parent: Path, **keys: Any) -> None:
    file = parent / "parent.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def test_an_encoder_that_is_not_its_own_is_told(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")
    edit(parent, encoder={"type": "toy-sound", "config": {}})
    assert told(parent, base)["encoder"] == (
        "encoder 'toy-sound' takes 'sound' inputs, the parent is of 'sight'"
    )
    edit(parent, encoder={"type": "toy-sight", "config": {}, "shape": [3, 9]})
    assert "records the shape [3, 9]" in told(parent, base)["encoder"]
    assert "unknown modality 'sight'" in told(parent, base, toy_registry("sound"))["encoder"]


def test_another_base_is_told(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")
    other = tiny_base(tmp_path / "other", seed=4)
    found = told(parent, other)
    assert list(found) == ["fingerprint"]
    assert "the weights differ" in found["fingerprint"]


def broken(checks: dict[str, str]) -> set[str]:
    return {name.removeprefix("invariant ")[0] for name in checks if name.startswith("inv")}


@pytest.fixture
def parent(base: Path, tmp_path: Path) -> Iterator[Path]:
    return toy_parent(tmp_path / "p", base, "sight", suffix=1)


@pytest.mark.parametrize(
    "module", ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"]
)
def test_one_forgotten_pair_shows(
    base: Path, parent: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """The oracle is told of one pair less than the composition: the first invariant is gone."""
    fit = invariants.fit_delta

    def forget(*args: Any) -> Any:
        delta = fit(*args)
        pairs = {name: pair for name, pair in delta.pairs.items() if name != module}
        return type(delta)(pairs, delta.tensors)

    monkeypatch.setattr(invariants, "fit_delta", forget)
    found = told(parent, base)
    assert broken(found) == {"1", "5"}
    assert (
        "from the parent's own logits, at most"
        in found["invariant 1: alone it is the parent, in prefill"]
    )
    assert "accounting has" in found["invariant 5: every tensor is accounted for"]


def test_streams_that_are_swapped_show(
    base: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariants, "STREAMS", ("modality", "text"))
    assert "1" in broken(told(parent, base))


def test_a_base_that_changed_meanwhile_shows(
    base: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = invariants._Ground.compose

    def compose(ground: Any) -> str:
        text = made(ground)
        with torch.no_grad():
            ground.plain.model.norm.weight[0] += 1e-3
        return text

    monkeypatch.setattr(invariants._Ground, "compose", compose)
    assert broken(told(parent, base)) == {"1", "3"}


def test_a_load_that_forgets_shows(
    base: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = invariants.load

    def load(*args: Any, **kwargs: Any) -> Any:
        made = opened(*args, **kwargs)
        with torch.no_grad():
            made.model.connectors["sight"].suffix.zero_()
        return made

    monkeypatch.setattr(invariants, "load", load)
    assert broken(told(parent, base)) == {"5"}


def test_an_order_that_matters_shows(
    base: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = invariants.compose

    def compose(*args: Any, **kwargs: Any) -> Any:
        found = made(*args, **kwargs)
        if kwargs["modalities"] == ["sound", "sight"]:
            with torch.no_grad():
                found.model.connectors["sound"].suffix[0, 0] += 1e-3
        return found

    monkeypatch.setattr(invariants, "compose", compose)
    assert broken(told(parent, base, toy_registry("sight"))) == {"4"}


def test_a_twin_brings_the_encoders_own_file(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = nose()
    parent = tiny_parent(
        tmp_path / "p",
        base,
        "smell",
        encoder=ComponentConfig(type="nose", config={"notes": NOTES}),
        registry=registry,
    )
    save_file(Nose().state_dict(), parent / "encoder.safetensors")
    write_manifest(parent, read_manifest(parent))
    seen = []
    monkeypatch.setattr(
        parent_checks, "check_invariants", lambda *args: seen.append(read_manifest(args[3]).files)
    )
    check_parent(parent, registry=registry)
    assert "encoder.safetensors" in seen[0]
