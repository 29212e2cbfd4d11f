"""Opening a base with an untrained parent on it."""

import os
from pathlib import Path
from typing import Any

import torch

from modalloy.base import Base
from modalloy.composition.coefficients import make_coefficients
from modalloy.composition.compose import build_model, describe_modalities
from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.layers import linear_layers
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.composition.selection import Chosen
from modalloy.errors import SpecError, nearest
from modalloy.parent import FORMAT_VERSION, BaseReference, ParentManifest
from modalloy.registry import Registry
from modalloy.training.config import TrainConfig
from modalloy.training.parameters import init_deltas


def open_parent(
    config: TrainConfig, base: Base, registry: Registry
) -> tuple[ModalloyForConditionalGeneration, ModalloyProcessor, ParentManifest]:
    """Open the base as a composition of one parent, connector and deltas at their start.

    Args:
        config: What to train.
        base: The base.
        registry: Supplies plugins.

    Returns:
        The model on the device that it is trained on, its processor, and the parent's manifest
        as far as it is known before training.

    Raises:
        SpecError: The configuration does not fit the base or the registered plugins.
        UnknownNameError: A modality, encoder or connector is not registered.
    """
    manifest = start_manifest(config, base)
    encoder = registry.encoder(config.encoder.type, requires=config.requires)
    if encoder.modality != registry.modality(config.modality).name:
        raise SpecError(
            f"encoder {encoder.name!r} takes inputs of modality {encoder.modality!r}, the "
            f"configuration says modality {config.modality!r}; change one of them",
            subject="encoder",
        )
    torch.manual_seed(config.seed)
    tokenizer = base.tokenizer()
    language_model = base.model(getattr(torch, config.dtype))
    if config.attention is not None:
        _set_attention(language_model, config.attention)
    entries = describe_modalities(registry, [Chosen(Path(), manifest, config.name)], tokenizer)
    decoupled = config.strategy == "decoupled"
    entry = entries[config.modality]
    entry["text_delta"] = lora_targets(config, language_model)
    entry["modality_delta"] = entry["text_delta"] if decoupled else None
    model = build_model(
        ModalloyConfig(
            text_config=language_model.config,
            modalities=entries,
            method="damc" if decoupled else "naive",
            decoupled=decoupled,
            coefficients=make_coefficients({config.modality: 1.0}, entries, ()).to_dict(),
            dtype=language_model.dtype,
        ),
        language_model,
        registry,
    )
    model.connectors.float()
    init_deltas(model, config.seed)
    torch.nn.Module.to(model, _device())
    processor = ModalloyProcessor(
        tokenizer, modalities=entries, chat_template=tokenizer.chat_template
    )
    return model, processor.bind(registry), manifest


def start_manifest(config: TrainConfig, base: Base) -> ParentManifest:
    """Return what a parent says about itself as far as it is known before training."""
    return ParentManifest(
        format_version=FORMAT_VERSION,
        name=config.name,
        modality=config.modality,
        base=BaseReference(id=base.id, fingerprint=base.fingerprint),
        strategy=config.strategy,
        encoder=config.encoder,
        connector=config.connector,
        prefix_tokens=config.prefix_tokens,
        suffix_tokens=config.suffix_tokens,
        licence=config.licence,
        requires=config.requires,
    )


def _device() -> torch.device:
    """Return the device of this process, as the Trainer chooses it."""
    forbidden = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if forbidden or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _set_attention(language_model: Any, name: str) -> None:
    try:
        language_model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise SpecError(
            f"attention: {name!r} cannot be used with this base: {error}", subject="attention"
        ) from error


def lora_targets(config: TrainConfig, language_model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the linear layers that get a pair, as the configuration's patterns.

    Raises:
        SpecError: The base has no layer of a name that is asked for.
    """
    linears = linear_layers(language_model)
    lasts = {name.rpartition(".")[2] for name in linears}
    unknown = sorted(set(config.lora.targets) - lasts)
    if unknown:
        raise SpecError(
            f"lora.targets: the base has no linear layer named {', '.join(unknown)}; it has "
            f"{', '.join(sorted(lasts))}.{nearest(unknown[0], lasts)}",
            subject="lora.targets",
        )
    lora = config.lora
    return [
        {"module": name, "rank": lora.rank, "scale": lora.alpha / lora.rank}
        for name in linears
        if name.rpartition(".")[2] in lora.targets
    ]
