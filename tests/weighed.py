"""A toy modality whose encoder has weights of its own, which travel with parent and composition."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from modalloy import API_VERSION, Encoder, Registry, hookimpl
from modalloy.parent import ENCODER_FILE, read_manifest, write_manifest
from toy import FEATURES, TOKENS, ToyPlugin, output_shape, preprocess, toy_parent


class WeighedEncoder(nn.Module):
    """Adds a table, which is all zeros until its weights are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(TOKENS, FEATURES))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sin(values + self.table)


def build(config: Mapping[str, Any]) -> nn.Module:
    del config
    return WeighedEncoder()


class WeighedPlugin(ToyPlugin):
    """The toy modality ``sight`` with such an encoder."""

    def __init__(self) -> None:
        super().__init__("sight")

    @hookimpl
    def register_encoders(self, register: Any) -> None:
        register(
            Encoder(
                name="toy-sight",
                api_version=API_VERSION,
                modality="sight",
                build=build,
                preprocess=preprocess,
                output_shape=output_shape,
            )
        )


def weighed_registry() -> Registry:
    """Return a registry with ``sight``, whose encoder has weights, and the plain toy ``sound``."""
    registry = Registry()
    registry.register(WeighedPlugin(), name="weighed-sight")
    registry.register(ToyPlugin("sound"), name="toy-sound")
    return registry


def weighed_parent(directory: Path, base: Path, *, seed: int = 0) -> Path:
    """Write a parent of ``sight`` with an ``encoder.safetensors``."""
    parent = toy_parent(directory, base, "sight", seed=seed, prefix=2)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(TOKENS, FEATURES, generator=generator)
    save_file({"table": table}, parent / ENCODER_FILE)
    write_manifest(parent, read_manifest(parent))
    return parent
