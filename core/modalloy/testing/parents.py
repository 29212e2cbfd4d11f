"""Parents that are made in milliseconds: real files, random weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from modalloy.base import resolve_base
from modalloy.composition.connecting import ModalityConnector
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, write_adapter
from modalloy.modality import resolve
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
from modalloy.registry import Registry

LINEAR = ComponentConfig(type="linear")
"""The connector of a tiny parent unless told otherwise."""


def random_delta(
    model: nn.Module, seed: int, rank: int = 4, targets: str = "proj", scale: float = 2.0
) -> LowRankDelta:
    """Return pairs large enough to change every logit; one module has a rank and scale of its own.

    Args:
        model: The base.
        seed: Of the random numbers.
        rank: R of most pairs.
        targets: Part of the names of the linear layers that get a pair.
        scale: Of most pairs.
    """
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


def tiny_parent(  # noqa: PLR0913 - all but three by name
    directory: Path,
    base: str | Path,
    modality: str,
    *,
    encoder: ComponentConfig,
    connector: ComponentConfig = LINEAR,
    name: str | None = None,
    strategy: str = "decoupled",
    prefix: int = 0,
    suffix: int = 0,
    seed: int = 0,
    tensors: Mapping[str, torch.Tensor] | None = None,
    registry: Registry | None = None,
) -> Path:
    """Write a parent directory with random deltas and a random connector.

    Args:
        directory: Made; must not exist.
        base: What the parent is for, as ``compose`` takes it; :func:`tiny_base` makes small ones.
        modality: Name of its modality.
        encoder: Its encoder's type and configuration; the features' shape too, where the type is
            not registered.
        connector: Its connector's type and configuration.
        name: The parent's name; the modality's with ``-tiny`` if left out.
        strategy: ``"decoupled"`` or ``"naive"``.
        prefix: Learned embeddings before the features.
        suffix: Learned embeddings after them.
        seed: Of all random numbers.
        tensors: What ``connector.safetensors`` holds; random values if left out.
        registry: Supplies encoder and connector types; what is installed if left out.

    Returns:
        ``directory``.
    """
    opened = resolve_base(base)
    model = opened.model(torch.float32)
    if tensors is None:
        hidden = int(model.config.get_text_config().hidden_size)
        registry = registry or Registry.discover()
        module = _connector(encoder, connector, hidden, (prefix, suffix), seed, registry)
        tensors = module.state_dict()
    directory.mkdir(parents=True)
    write_adapter(directory / TEXT_ADAPTER, random_delta(model, seed), base_id=opened.id)
    if strategy == "decoupled":
        own = random_delta(model, seed + 100, rank=3, targets="_proj")
        write_adapter(directory / MODALITY_ADAPTER, own, base_id=opened.id)
    save_file(dict(tensors), directory / CONNECTOR_FILE)
    manifest = ParentManifest(
        format_version=FORMAT_VERSION,
        name=name or f"{modality}-tiny",
        modality=modality,
        base=BaseReference(id=opened.id, fingerprint=opened.fingerprint),
        strategy=strategy,
        encoder=encoder,
        connector=connector,
        prefix_tokens=prefix,
        suffix_tokens=suffix,
        licence="CC0-1.0",
    )
    write_manifest(directory, manifest)
    return directory


def _connector(
    encoder: ComponentConfig,
    connector: ComponentConfig,
    hidden: int,
    ends: tuple[int, int],
    seed: int,
    registry: Registry,
) -> ModalityConnector:
    """Return a connector as its type initialises it, under a seed of its own."""
    shape = encoder.shape
    if shape is None:
        shape = list(resolve(registry.encoder(encoder.type).output_shape)(encoder.config))
    build = resolve(registry.connector(connector.type).build)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 200)
        module = ModalityConnector(
            build(connector.config, shape[1], hidden), hidden, *ends, connector.type
        )
        for extra in (module.prefix, module.suffix):
            if extra is not None:
                nn.init.normal_(extra)
    return module
