"""Encoder ``videomae``: hidden states of a VideoMAE model from transformers.

Code from a Hub repository is never run, and weights are read from safetensors only.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import VideoMAEConfig as Architecture
from transformers import VideoMAEImageProcessorPil, VideoMAEModel

from modalloy.errors import SpecError
from modalloy.opened import NamedModel, find_model
from modalloy_video.clip import Clip, sample
from modalloy_video.configuration import VideoMAEConfig, videomae_config

_SUBJECT = "encoder 'videomae'"


class VideoMAEEncoder(nn.Module):
    """A frozen VideoMAE model that returns one hidden state, averaged to K tokens.

    It stays in evaluation mode, whatever the mode of the model around it.

    Args:
        model: Maps ``pixel_values`` to hidden states ``(N, steps * patches, F)``.
        layer: Which hidden state, see :class:`~modalloy_video.configuration.VideoMAEConfig`.
        tokens: K; see there.
    """

    def __init__(self, model: VideoMAEModel, layer: int, tokens: int) -> None:
        super().__init__()
        self.model = model
        self.requires_grad_(requires_grad=False)
        self.layer = layer
        self.tokens = tokens
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode; ``mode`` is ignored on purpose, see the class."""
        del mode
        return super().train(mode=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Args:
            pixel_values: ``(N, frames, 3, image_size, image_size)``.

        Returns:
            ``(N, K, F)`` in the dtype of the weights: spans of time in order, or, where K says
            so, every patch of every step, row by row.
        """
        output = self.model(pixel_values=pixel_values, output_hidden_states=True)
        states: torch.Tensor = output.hidden_states[self.layer]
        if self.tokens == states.shape[1]:
            return states
        steps = states.unflatten(1, (_steps(self.model.config), -1)).mean(2)
        return F.adaptive_avg_pool1d(steps.transpose(1, 2), self.tokens).transpose(1, 2)


def build(config: Mapping[str, Any]) -> VideoMAEEncoder:
    """Open a VideoMAE model in float32 and evaluation mode; of a whole one, only the encoder.

    Args:
        config: See :class:`~modalloy_video.configuration.VideoMAEConfig`.

    Returns:
        The encoder; it maps ``pixel_values`` to ``(N, K, F)``.

    Raises:
        SpecError: The configuration is not valid or does not fit the model.
        MissingComponentError: The model cannot be fetched.
        FormatError: A file of it is damaged, not in safetensors, or leads outside its directory.
    """
    parsed = videomae_config(config)
    named = find_model(_SUBJECT, parsed.model, parsed.revision)
    settings = named.config(Architecture, (Architecture.model_type,))
    with named.telling():
        _verify(parsed, settings)
    model = named.model(VideoMAEModel, settings)
    return VideoMAEEncoder(model, parsed.layer, parsed.tokens)


def preprocess(clip: Clip, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn a clip into the model's input, with the model's own image processor.

    Args:
        clip: Of any size and length.
        config: See :class:`~modalloy_video.configuration.VideoMAEConfig`.

    Returns:
        ``pixel_values``: float32 ``(frames, 3, image_size, image_size)``, in order of time.

    Raises:
        SpecError: The configuration is not valid, or the processor makes another size.
        MissingComponentError: The processor cannot be fetched, or there is none.
        FormatError: Its file is damaged, or of another class.
    """
    parsed = videomae_config(config)
    frames = list(sample(clip, parsed.frames))
    named, processor = _processor(parsed)
    with named.telling():
        made = processor(frames, return_tensors="pt", input_data_format="channels_last")
        pixels: torch.Tensor = made["pixel_values"][0]
    expected = (parsed.frames, 3, parsed.image_size, parsed.image_size)
    if tuple(pixels.shape) != expected:
        raise SpecError(
            f"{_SUBJECT}: the image processor of {parsed.model!r} makes clips of shape "
            f"{tuple(pixels.shape)}, the configuration expects {expected}",
            subject=_SUBJECT,
        )
    return {"pixel_values": pixels.float()}


def _steps(config: Any) -> int:
    """Return the steps in time that a model makes of its frames."""
    return int(config.num_frames // config.tubelet_size)


def _verify(config: VideoMAEConfig, found: Any) -> None:
    actual = {
        "features": found.hidden_size,
        "frames": found.num_frames,
        "image_size": found.image_size,
    }
    wrong = [name for name, value in actual.items() if getattr(config, name) != value]
    if wrong:
        raise SpecError(
            f"{_SUBJECT}: {config.model!r} has "
            + ", ".join(f"{name} {actual[name]}" for name in wrong)
            + "; the configuration says "
            + ", ".join(f"{name} {getattr(config, name)}" for name in wrong),
            subject=_SUBJECT,
        )
    steps, patches = _steps(found), (found.image_size // found.patch_size) ** 2
    if config.tokens > steps and config.tokens != steps * patches:
        raise SpecError(
            f"{_SUBJECT}: {config.model!r} makes {steps} steps in time of {patches} patches each, "
            f"so tokens must be {steps} at most, or {steps * patches} for every patch; the "
            f"configuration says {config.tokens}",
            subject=_SUBJECT,
        )
    depth = found.num_hidden_layers
    if not -depth - 1 <= config.layer <= depth:
        raise SpecError(
            f"{_SUBJECT}: {config.model!r} has {depth} layers, so layer must be from "
            f"{-depth - 1} to {depth}; the configuration says {config.layer}",
            subject=_SUBJECT,
        )


@lru_cache(maxsize=8)
def _processor(config: VideoMAEConfig) -> tuple[NamedModel, Any]:
    """Open the image processor once: it is asked for every clip.

    Pillow's backend, because it is the one that the checkpoints were trained with and its
    result does not depend on torchvision's version.
    """
    named = find_model(_SUBJECT, config.model, config.revision, "image processor")
    return named, named.processor(VideoMAEImageProcessorPil)
