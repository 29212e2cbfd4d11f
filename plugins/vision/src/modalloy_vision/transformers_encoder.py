"""Encoders ``clip`` and ``siglip``: patch features of a vision transformer from transformers.

Code from a Hub repository is never run, and weights are read from safetensors only.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import attrs
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from modalloy.errors import SpecError
from modalloy.frozen import without_weights
from modalloy.opened import NamedModel, find_model
from modalloy_vision.configuration import TransformersConfig, transformers_config
from modalloy_vision.patch_encoder import PatchEncoder
from modalloy_vision.pixels import picture_square
from modalloy_vision.tower_configuration import is_tower, tower_config

_FAMILIES: Mapping[str, Any] = MappingProxyType(
    {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
)
_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
)
# Pillow's backend: the checkpoints were trained with it, and its result does not depend on
# torchvision's version.
_PROCESSORS: Mapping[str, Any] = MappingProxyType(
    {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}
)
_PREFIXES = MappingProxyType({"clip": 1, "siglip": 0})  # tokens before the patches


def build_clip(config: Mapping[str, Any]) -> PatchEncoder:
    """Open CLIP's vision model in float32 and evaluation mode.

    Args:
        config: See :class:`~modalloy_vision.configuration.TransformersConfig`, or, where it holds
            an ``architecture``, :class:`~modalloy_vision.tower_configuration.ClipTowerConfig`:
            then the encoder's weights are to be loaded into it.

    Returns:
        The encoder; it maps ``pixel_values`` to the tokens of a hidden state ``(N, K, F)``.

    Raises:
        SpecError: The configuration is not valid or does not fit the model.
        MissingComponentError: The model cannot be fetched.
        FormatError: A file of it is damaged, not in safetensors, or leads outside its directory.
    """
    return _build(config, "clip")


def build_siglip(config: Mapping[str, Any]) -> PatchEncoder:
    """Open SigLIP's vision model in float32 and evaluation mode; else as :func:`build_clip`.

    Raises:
        SpecError: The configuration is not valid or does not fit the model.
        MissingComponentError: The model cannot be fetched.
        FormatError: A file of it is damaged, not in safetensors, or leads outside its directory.
    """
    return _build(config, "siglip")


def preprocess_clip(picture: Image.Image, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn an RGB picture into CLIP's input, with the model's own image processor.

    Where the configuration holds an ``architecture``, it says what the processor would.

    Returns:
        ``pixel_values``: float32 ``(3, image_size, image_size)``.

    Raises:
        SpecError: The processor makes another size than the configuration says.
        MissingComponentError: The processor cannot be fetched, or there is none.
        FormatError: Its file is damaged, or of another class.
    """
    return _preprocess(picture, config, "clip")


def preprocess_siglip(picture: Image.Image, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn an RGB picture into SigLIP's input; else as :func:`preprocess_clip`.

    Raises:
        SpecError: The processor makes another size than the configuration says.
        MissingComponentError: The processor cannot be fetched, or there is none.
        FormatError: Its file is damaged, or of another class.
    """
    return _preprocess(picture, config, "siglip")


def _build(config: Mapping[str, Any], kind: str) -> PatchEncoder:
    if is_tower(config):
        return _build_tower(config, kind)
    return _open(transformers_config(config, kind), kind)


def _build_tower(config: Mapping[str, Any], kind: str) -> PatchEncoder:
    parsed = tower_config(config, kind)
    settings, family = _SETTINGS[kind], _FAMILIES[kind]
    architecture = attrs.asdict(parsed.architecture)
    model = without_weights(lambda: family(settings(**architecture)))
    return PatchEncoder(model, parsed.layer, parsed.prefix, awaiting=kind)


def _open(config: TransformersConfig, kind: str) -> PatchEncoder:
    family, prefix = _FAMILIES[kind], _PREFIXES[kind]
    named = find_model(f"encoder {kind!r}", config.model, config.revision)
    settings = named.config(_SETTINGS[kind], (kind, f"{kind}_vision_model"))
    with named.telling():
        _verify(config, kind, settings)
    model = named.model(family, settings)
    return PatchEncoder(model, config.layer, prefix if config.select == "patch" else 0)


def _verify(config: TransformersConfig, kind: str, found: Any) -> None:
    whole = _PREFIXES[kind] if config.select == "full" else 0
    actual = {
        "tokens": (found.image_size // found.patch_size) ** 2 + whole,
        "features": found.hidden_size,
        "image_size": found.image_size,
    }
    wrong = [name for name, value in actual.items() if getattr(config, name) != value]
    if wrong:
        raise SpecError(
            f"encoder {kind!r}: {config.model!r} has "
            + ", ".join(f"{name} {actual[name]}" for name in wrong)
            + "; the configuration says "
            + ", ".join(f"{name} {getattr(config, name)}" for name in wrong),
            subject=f"encoder {kind!r}",
        )
    depth = found.num_hidden_layers
    if not -depth - 1 <= config.layer <= depth:
        raise SpecError(
            f"encoder {kind!r}: {config.model!r} has {depth} layers, so layer must be from "
            f"{-depth - 1} to {depth}; the configuration says {config.layer}",
            subject=f"encoder {kind!r}",
        )


def _preprocess(
    picture: Image.Image, config: Mapping[str, Any], kind: str
) -> dict[str, torch.Tensor]:
    if is_tower(config):
        tower = tower_config(config, kind)
        return {"pixel_values": picture_square(picture, tower.architecture.image_size, tower)}
    return _process(picture, transformers_config(config, kind), kind)


def _process(
    picture: Image.Image, config: TransformersConfig, kind: str
) -> dict[str, torch.Tensor]:
    named, processor = _processor(config, kind)
    with named.telling():
        pixels: torch.Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    expected = (3, config.image_size, config.image_size)
    if tuple(pixels.shape) != expected:
        raise SpecError(
            f"encoder {kind!r}: the image processor of {config.model!r} makes pictures of shape "
            f"{tuple(pixels.shape)}, image_size {config.image_size} expects {expected}",
            subject=f"encoder {kind!r}",
        )
    return {"pixel_values": pixels.float()}


@lru_cache(maxsize=8)
def _processor(config: TransformersConfig, kind: str) -> tuple[NamedModel, Any]:
    """Open the image processor once: it is asked for every picture."""
    named = find_model(f"encoder {kind!r}", config.model, config.revision, "image processor")
    return named, named.processor(_PROCESSORS[kind])
