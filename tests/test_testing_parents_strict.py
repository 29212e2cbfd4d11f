"""Parents that look whole and are not: each is told, with or without their base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modalloy import API_VERSION, Connector, Registry, hookimpl
from modalloy.parent import ComponentConfig, read_manifest, write_manifest
from modalloy.testing import CheckFailed, check_parent, tiny_base, tiny_parent, toy_parent
from modalloy.testing.toys import FEATURES, TOKENS, toy_registry
from smelling import NOTES, Nose, nose


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("strict") / "base", seed=3)


def told(path: Path, registry: Registry | None = None) -> dict[str, str]:
    """Return what is told of a parent whose base is not at hand."""
    with pytest.raises(CheckFailed) as caught:
        check_parent(path, registry=registry or toy_registry())
    return {one.check: one.detail for one in caught.value.checks if one.ok is False}


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a parent's file, and its manifest with them."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    directory = next(one for one in file.parents if (one / "parent.json").is_file())
    write_manifest(directory, read_manifest(directory))


ADAPTER = "modality_adapter/adapter_model.safetensors"


@pytest.mark.parametrize("name", ["connector.safetensors", ADAPTER])
def test_numbers_that_are_none_are_told(base: Path, tmp_path: Path, name: str) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")
    rewrite(
        parent / name, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(torch.nan)
    )
    assert told(parent)["numbers"].startswith(f"{name}: tensor '")
    assert told(parent)["numbers"].endswith("has NaN or infinite values")


def test_ranks_that_do_not_fit_are_told_without_the_base(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name] = tensors[name][:, :-1].contiguous()

    rewrite(parent / ADAPTER, cut)
    assert "modality_adapter" in told(parent)["streams"]


def test_adapters_of_two_bases_are_told_without_either(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "q_proj.lora_A" in name]:
            tensors[name] = torch.ones(tensors[name].shape[0], 40)

    rewrite(parent / ADAPTER, widen)
    assert told(parent)["connector"].startswith("its adapters are of different bases: modality")


def test_a_fingerprint_that_is_none_is_told(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")
    manifest = json.loads((parent / "parent.json").read_text())
    manifest["base"]["fingerprint"]["content"] = "todo"
    (parent / "parent.json").write_text(json.dumps(manifest))
    assert "is made of two SHA-256" in told(parent)["parent.json"]
    assert "'todo'" in told(parent)["parent.json"]


def test_a_stream_that_is_missing_is_said(base: Path, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "p", base, "sight")
    for file in (parent / "modality_adapter").iterdir():
        file.unlink()
    assert "is missing, parent.json names it" in told(parent)["files"]
    (parent / "modality_adapter").rmdir()
    write_manifest(parent, read_manifest(parent))
    found = {c.check: c.detail for c in check_parent(parent, registry=toy_registry())}
    assert found["streams"].endswith("modality: none, it runs on the base as it is")


def test_weights_of_another_encoder_are_told_without_a_sample(base: Path, tmp_path: Path) -> None:
    registry = nose()
    encoder = ComponentConfig(type="nose", config={"notes": NOTES})
    parent = tiny_parent(tmp_path / "p", base, "smell", encoder=encoder, registry=registry)
    save_file({"weight": torch.ones(7)}, parent / "encoder.safetensors")
    write_manifest(parent, read_manifest(parent))
    assert "does not hold the weights of encoder 'smell'" in told(parent, registry)["encoder"]
    save_file(Nose().state_dict(), parent / "encoder.safetensors")
    write_manifest(parent, read_manifest(parent))
    check_parent(parent, registry=registry)


class Wrong(nn.Module):
    """A connector that is wrong."""

    def __init__(self, wrong: str, features: int, hidden: int) -> None:
        super().__init__()
        self.wrong = wrong
        self.linear = nn.Linear(features, hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        match self.wrong:
            case "constant":
                return self.linear(torch.ones_like(features))
            case "batch":
                return self.linear(features - features.mean(0, keepdim=True))
            case "mutating":
                return self.linear(features.mul_(2))
            case "short":
                return self.linear(features)[:, 1:]
        return self.linear(features)


class ConnectorPlugin:
    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    @hookimpl
    def register_connectors(self, register: Any) -> None:
        def build(config: Any, features: int, hidden: int) -> nn.Module:
            return Wrong(self.wrong, features, hidden)

        register(Connector(name="wrong", api_version=API_VERSION, build=build))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("constant", "it makes the same embeddings of different features: it does not look at"),
        ("batch", "input 0 of 3 differs by "),
        ("mutating", "it changes the features that it is given"),
        (
            "short",
            f"of features (3, {TOKENS}, {FEATURES}) it must make embeddings (3, {TOKENS}, 32)",
        ),
        ("nothing", ""),
    ],
)
def test_a_connector_that_is_wrong_is_told(
    base: Path, tmp_path: Path, wrong: str, text: str
) -> None:
    registry = toy_registry("sight")
    registry.register(ConnectorPlugin(wrong), name="wrong")
    parent = tiny_parent(
        tmp_path / "p",
        base,
        "sight",
        encoder=ComponentConfig(type="toy-sight"),
        connector=ComponentConfig(type="wrong"),
        registry=registry,
    )
    if text:
        assert text in told(parent, registry)["connector"]
    else:
        assert all(check.ok is not False for check in check_parent(parent, registry=registry))
