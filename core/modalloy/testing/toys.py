"""Toy modalities without media files, to stand beside the one that is tested.

A toy's input is a list of numbers, its encoder a sine of them: real parents on disk, real
compositions, and nothing to download.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalloy import API_VERSION, Encoder, Modality, Registry, hookimpl
from modalloy.base import resolve_base
from modalloy.parent import ComponentConfig
from modalloy.testing.parents import tiny_parent

TOKENS, FEATURES = 3, 5
TYPES = {"sight": "image", "sound": "audio", "touch": "pressure"}
"""Content type of each toy modality."""


def read(source: Any, limits: Mapping[str, int]) -> torch.Tensor:
    """Return a toy input, a list of numbers, as a tensor."""
    del limits
    return torch.as_tensor(source, dtype=torch.float32)


def preprocess(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return ``values (K, F)``; ``gain`` in the configuration multiplies them."""
    return {"values": decoded.expand(TOKENS, FEATURES) * config.get("gain", 1.0)}


def output_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F), which no configuration changes."""
    del config
    return TOKENS, FEATURES


class ToyEncoder(nn.Module):
    """Sines of a toy input, each feature at a frequency of its own."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map ``(N, K, F)`` to ``(N, K, F)``."""
        ramp = torch.arange(TOKENS * FEATURES, dtype=torch.float32).view(TOKENS, FEATURES)
        return torch.sin(values * (1 + ramp))


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the encoder of every toy."""
    del config
    return ToyEncoder()


class ToyPlugin:
    """Offers one toy modality and its encoder.

    Args:
        name: One of :data:`TYPES`; the encoder is ``toy-<name>``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def register_modalities(self, register: Callable[[Modality], None]) -> None:
        """Offer the modality."""
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
    def register_encoders(self, register: Callable[[Encoder], None]) -> None:
        """Offer the encoder."""
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
    """Return a registry of toy plugins, registered in the given order; of two if none are named."""
    registry = Registry()
    for name in names or ("sight", "sound"):
        registry.register(ToyPlugin(name), name=f"toy-{name}")
    return registry


def toy_parent(
    directory: Path,
    base_path: str | Path,
    modality: str,
    *,
    strategy: str = "decoupled",
    seed: int = 0,
    prefix: int = 0,
    suffix: int = 0,
) -> Path:
    """Write a toy's parent directory, see :func:`~modalloy.testing.parents.tiny_parent`."""
    hidden = int(resolve_base(base_path).config().get_text_config().hidden_size)
    generator = torch.Generator().manual_seed(seed + 200)
    tensors = {
        "projection.weight": torch.randn(hidden, FEATURES, generator=generator),
        "projection.bias": torch.randn(hidden, generator=generator),
    }
    for name, count in (("prefix", prefix), ("suffix", suffix)):
        if count:
            tensors[name] = torch.randn(count, hidden, generator=generator)
    return tiny_parent(
        directory,
        base_path,
        modality,
        encoder=ComponentConfig(type=f"toy-{modality}"),
        name=f"{modality}-toy",
        strategy=strategy,
        prefix=prefix,
        suffix=suffix,
        seed=seed,
        tensors=tensors,
    )
