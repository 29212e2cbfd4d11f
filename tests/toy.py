"""Two toy modalities over tiny bases: real parents on disk, random weights, no media files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from modalloy import API_VERSION, Encoder, Modality, Registry, hookimpl
from modalloy.base import resolve_base
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, write_adapter
from modalloy.parent import (
    CONNECTOR_FILE,
    FORMAT_VERSION,
    MODALITY_ADAPTER,
    TEXT_ADAPTER,
    BaseReference,
    ComponentConfig,
    ParentManifest,
    write_manifest,
)

TOKENS, FEATURES = 3, 5
TYPES = {"sight": "image", "sound": "audio", "touch": "pressure"}


def read(source: Any, limits: Mapping[str, int]) -> torch.Tensor:
    """A toy input is a list of numbers."""
    del limits
    return torch.as_tensor(source, dtype=torch.float32)


def preprocess(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {"values": decoded.expand(TOKENS, FEATURES) * config.get("gain", 1.0)}


def output_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    del config
    return TOKENS, FEATURES


class ToyEncoder(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(TOKENS * FEATURES, dtype=torch.float32).view(TOKENS, FEATURES)
        return torch.sin(values * (1 + ramp))


def build(config: Mapping[str, Any]) -> nn.Module:
    del config
    return ToyEncoder()


class ToyPlugin:
    """Offers one toy modality and its encoder."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def register_modalities(self, register: Any) -> None:
        register(
            Modality(
                name=self.name,
                api_version=API_VERSION,
                content_type=TYPES[self.name],
                placeholder=f"<|{self.name}|>",
                read=read,
                limits={"bytes": 1000},
            )
        )

    @hookimpl
    def register_encoders(self, register: Any) -> None:
        register(
            Encoder(
                name=f"toy-{self.name}",
                api_version=API_VERSION,
                modality=self.name,
                build=build,
                preprocess=preprocess,
                output_shape=output_shape,
            )
        )


def toy_registry(*names: str) -> Registry:
    """A registry of toy plugins, registered in the given order."""
    registry = Registry()
    for name in names or ("sight", "sound"):
        registry.register(ToyPlugin(name), name=f"toy-{name}")
    return registry


def random_delta(
    model: nn.Module, seed: int, rank: int = 4, targets: str = "proj", scale: float = 2.0
) -> LowRankDelta:
    """Pairs large enough to change every logit; one module has a rank and scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for number, (name, module) in enumerate(sorted(model.named_modules())):
        if isinstance(module, nn.Linear) and targets in name:
            own = rank + 1 if name.endswith("1.mlp.up_proj") else rank
            pairs[name] = LowRankPair(
                torch.randn(own, module.in_features, generator=generator) * 0.2,
                torch.randn(module.out_features, own, generator=generator) * 0.2,
                scale * (1.5 if number % 5 == 0 else 1.0),
            )
    return LowRankDelta(pairs)


def toy_parent(
    directory: Path,
    base_path: Path,
    modality: str,
    *,
    strategy: str = "decoupled",
    seed: int = 0,
    prefix: int = 0,
    suffix: int = 0,
) -> Path:
    """Write a parent directory with random deltas and a random connector."""
    base = resolve_base(base_path)
    model = base.model(torch.float32)
    directory.mkdir(parents=True)
    write_adapter(directory / TEXT_ADAPTER, random_delta(model, seed), base_id=base.id)
    if strategy == "decoupled":
        own = random_delta(model, seed + 100, rank=3, targets="_proj")
        write_adapter(directory / MODALITY_ADAPTER, own, base_id=base.id)
    generator = torch.Generator().manual_seed(seed + 200)
    hidden = model.config.hidden_size
    tensors = {
        "projection.weight": torch.randn(hidden, FEATURES, generator=generator),
        "projection.bias": torch.randn(hidden, generator=generator),
    }
    for name, count in (("prefix", prefix), ("suffix", suffix)):
        if count:
            tensors[name] = torch.randn(count, hidden, generator=generator)
    save_file(tensors, directory / CONNECTOR_FILE)
    manifest = ParentManifest(
        format_version=FORMAT_VERSION,
        name=f"{modality}-toy",
        modality=modality,
        base=BaseReference(id=base.id, fingerprint=base.fingerprint),
        strategy=strategy,
        encoder=ComponentConfig(type=f"toy-{modality}"),
        connector=ComponentConfig(type="linear"),
        prefix_tokens=prefix,
        suffix_tokens=suffix,
        licence="CC0-1.0",
    )
    write_manifest(directory, manifest)
    return directory


def ask(*parts: Any) -> list[dict[str, Any]]:
    """One user message; text parts as strings, inputs as (content type, numbers)."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": part[0], part[0]: part[1]}
        for part in parts
    ]
    return [{"role": "user", "content": content}]
