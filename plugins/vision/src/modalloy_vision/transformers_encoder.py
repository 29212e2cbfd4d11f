"""Encoders ``clip`` and ``siglip``: patch features of a vision transformer from transformers.

Code from a Hub repository is never run, and weights are read from safetensors only.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, CLIPVisionModel, SiglipVisionModel

from modalloy.errors import MissingComponentError, SpecError
from modalloy_vision.configuration import TransformersConfig, transformers_config


class PatchEncoder(nn.Module):
    """A frozen vision transformer that returns the patches of one hidden state.

    It stays in evaluation mode, whatever the mode of the model around it.

    Args:
        model: Maps ``pixel_values`` to hidden states ``(N, prefix + K, F)``.
        layer: Which hidden state, see :class:`~modalloy_vision.configuration.TransformersConfig`.
        prefix: Tokens before the patches: 1 where there is a class token, else 0.
    """

    def __init__(self, model: nn.Module, layer: int, prefix: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False)
        self.layer = layer
        self.prefix = prefix
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode; ``mode`` is ignored on purpose, see the class."""
        del mode
        return super().train(mode=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pictures.

        Args:
            pixel_values: ``(N, 3, image_size, image_size)``.

        Returns:
            ``(N, K, F)`` in the dtype of the weights, the patches row by row.
        """
        states = self.model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        return states[self.layer][:, self.prefix :]


def build_clip(config: Mapping[str, Any]) -> PatchEncoder:
    """Open CLIP's vision model in float32 and evaluation mode.

    Args:
        config: See :class:`~modalloy_vision.configuration.TransformersConfig`.

    Returns:
        The encoder; it maps ``pixel_values`` to the patches of a hidden state ``(N, K, F)``,
        without the class token.

    Raises:
        SpecError: The configuration is not valid or does not fit the model.
        MissingComponentError: The model cannot be fetched or opened.
    """
    return _build(transformers_config(config, "clip"), "clip", CLIPVisionModel, prefix=1)


def build_siglip(config: Mapping[str, Any]) -> PatchEncoder:
    """Open SigLIP's vision model in float32 and evaluation mode; else as :func:`build_clip`.

    Raises:
        SpecError: The configuration is not valid or does not fit the model.
        MissingComponentError: The model cannot be fetched or opened.
    """
    return _build(transformers_config(config, "siglip"), "siglip", SiglipVisionModel, prefix=0)


def preprocess_clip(picture: Image.Image, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn an RGB picture into CLIP's input, with the model's own image processor.

    Returns:
        ``pixel_values``: float32 ``(3, image_size, image_size)``.

    Raises:
        SpecError: The processor makes another size than the configuration says.
        MissingComponentError: The processor cannot be fetched or opened.
    """
    return _preprocess(picture, transformers_config(config, "clip"), "clip")


def preprocess_siglip(picture: Image.Image, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn an RGB picture into SigLIP's input; else as :func:`preprocess_clip`.

    Raises:
        SpecError: The processor makes another size than the configuration says.
        MissingComponentError: The processor cannot be fetched or opened.
    """
    return _preprocess(picture, transformers_config(config, "siglip"), "siglip")


def _build(config: TransformersConfig, kind: str, family: Any, *, prefix: int) -> PatchEncoder:
    options = {"revision": config.revision or "main"}
    try:
        stored, _ = family.config_class.get_config_dict(config.model, **options)
        _check_kind(config, kind, stored.get("model_type"))
        _verify(config, kind, family.config_class.from_pretrained(config.model, **options))
        model, report = family.from_pretrained(
            config.model,
            **options,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SpecError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _missing(kind, config, "model", error) from error
    absent = sorted(report["missing_keys"])
    if absent:
        raise SpecError(
            f"encoder {kind!r}: the weights of {config.model!r} lack {len(absent)} tensors, "
            f"{absent[0]!r} first, and random ones would stand in for them; fetch it again",
            subject=f"encoder {kind!r}",
        )
    return PatchEncoder(model, config.layer, prefix)


def _check_kind(config: TransformersConfig, kind: str, found: object) -> None:
    """Refuse another family's model, which transformers would fill up with random weights."""
    expected = (kind, f"{kind}_vision_model")
    if found not in expected:
        raise SpecError(
            f"encoder {kind!r}: {config.model!r} is a model of type {found!r}, expected "
            f"{expected[0]!r} or {expected[1]!r}; name a {kind} model",
            subject=f"encoder {kind!r}",
        )


def _verify(config: TransformersConfig, kind: str, found: Any) -> None:
    actual = {
        "tokens": (found.image_size // found.patch_size) ** 2,
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
    picture: Image.Image, config: TransformersConfig, kind: str
) -> dict[str, torch.Tensor]:
    processor = _processor(config, kind)
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
def _processor(config: TransformersConfig, kind: str) -> Any:
    """Open the image processor once: it is asked for every picture.

    Pillow's backend, because it is the one that the checkpoints were trained with and its
    result does not depend on torchvision's version.
    """
    try:
        return AutoImageProcessor.from_pretrained(
            config.model, revision=config.revision or "main", backend="pil", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _missing(kind, config, "image processor", error) from error


def _missing(
    kind: str, config: TransformersConfig, what: str, error: Exception
) -> MissingComponentError:
    where = f"{config.model!r}" + (f" at revision {config.revision!r}" if config.revision else "")
    return MissingComponentError(
        f"encoder {kind!r}: the {what} of {where} cannot be opened ({error}); name a directory "
        "or a Hub id that holds config.json, preprocessor_config.json and safetensors weights",
        component=config.model,
    )
