"""Encoder ``video-llava``: the video tower of a whole Video-LLaVA model.

In transformers it is a CLIP vision model that looks at the frames one by one; all tokens of each
frame go through the projector, which is the parent's connector. The weights come with the parent.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from modalloy.frozen import FrozenModel, without_weights
from modalloy_video.clip import Clip, sample
from modalloy_video.llava_configuration import VIDEO_LLAVA, video_llava_config
from modalloy_video.pixels import crop_square, normalise

_CHUNK = 16  # frames that go through the tower at a time, whatever the batch


class VideoLlavaEncoder(FrozenModel):
    """A frozen CLIP vision model that returns one hidden state of every frame.

    Args:
        model: Maps ``pixel_values`` to hidden states ``(n, T, F)``.
        layer: Which, see :class:`~modalloy_video.llava_configuration.VideoLlavaConfig`.
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        super().__init__(model, awaiting=VIDEO_LLAVA)
        self.layer = layer

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Args:
            pixel_values: ``(N, frames, 3, image_size, image_size)``.

        Returns:
            ``(N, frames * T, F)`` in the dtype of the weights: frame by frame, of each the class
            token and then its patches, row by row.

        Raises:
            MissingComponentError: The weights have not been loaded.
        """
        self.check_loaded()
        chunks = pixel_values.flatten(0, 1).split(_CHUNK)
        each = torch.cat([self._states(chunk) for chunk in chunks])
        return each.unflatten(0, pixel_values.shape[:2]).flatten(1, 2)

    def _states(self, frames: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=frames, output_hidden_states=True)
        states: torch.Tensor = output.hidden_states[self.layer]
        return states


def build(config: Mapping[str, Any]) -> VideoLlavaEncoder:
    """Make the video tower of a Video-LLaVA model, in float32 and evaluation mode, without weights.

    Args:
        config: See :class:`~modalloy_video.llava_configuration.VideoLlavaConfig`.

    Returns:
        The encoder; its weights are to be loaded into it.

    Raises:
        SpecError: The configuration is not valid.
    """
    parsed = video_llava_config(config)
    settings = CLIPVisionConfig(**attrs.asdict(parsed.architecture))
    return VideoLlavaEncoder(without_weights(lambda: CLIPVisionModel(settings)), parsed.layer)


def preprocess(clip: Clip, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn a clip into the tower's input, frame by frame as Video-LLaVA's image processor does.

    Its newer video processor scales with torchvision, which rounds a few values otherwise.

    Args:
        clip: Of any size and length.
        config: See :class:`~modalloy_video.llava_configuration.VideoLlavaConfig`.

    Returns:
        ``pixel_values``: float32 ``(frames, 3, image_size, image_size)``, in order of time.

    Raises:
        SpecError: The configuration is not valid.
    """
    parsed = video_llava_config(config)
    side = parsed.architecture.image_size
    squares = [crop_square(frame, side) for frame in sample(clip, parsed.frames)]
    return {"pixel_values": normalise(np.stack(squares), parsed.mean, parsed.std)}
