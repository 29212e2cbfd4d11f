"""Encoder ``qwen2-audio``: the audio tower of a whole Qwen2-Audio model.

It is Whisper's encoder with neighbouring positions averaged, two to a token; the projector behind
it is the parent's connector. The weights come with the parent.

Qwen2-Audio gives a recording as many tokens as it is long. Here K is fixed: a recording that fills
the window gives what Qwen2-Audio makes of it, and one that is shorter is heard with silence after
it, where Qwen2-Audio masks.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from modalloy.frozen import FrozenModel, without_weights
from modalloy_audio.framing import cut
from modalloy_audio.qwen_config import (
    HOP,
    QWEN2_AUDIO,
    RATE,
    Qwen2AudioArchitecture,
    Qwen2AudioConfig,
    qwen2_audio_config,
)
from modalloy_audio.reading import Waveform
from modalloy_audio.resampling import at_rate


class Qwen2AudioTower(FrozenModel):
    """A frozen audio tower that hears a window of fixed length.

    Args:
        model: Maps spectrograms ``(N, bands, frames)`` to ``(N, T, F)``.
        config: Says what of the tower's frames is the window.
    """

    model: Qwen2AudioEncoder

    def __init__(self, model: Qwen2AudioEncoder, config: Qwen2AudioConfig) -> None:
        super().__init__(model, awaiting=QWEN2_AUDIO)
        self.positions = config.positions
        self.tokens = config.tokens
        self.most = config.architecture.max_source_positions

    def forward(self, input_features: Tensor) -> Tensor:
        """Map spectrograms ``(N, bands, frames)`` to features ``(N, K, F)``.

        Raises:
            MissingComponentError: The weights have not been loaded.
        """
        self.check_loaded()
        mask = None
        if self.positions < self.most:
            # As Qwen2-Audio masks what is behind a recording of the window's length.
            mask = torch.zeros(1, 1, 1, self.most, dtype=self.model.dtype)
            mask[..., self.positions :] = -torch.inf
            mask = mask.to(input_features.device)
        states: Tensor = self.model(input_features, attention_mask=mask).last_hidden_state
        return states[:, : self.tokens]


def build(config: Mapping[str, Any]) -> Qwen2AudioTower:
    """Make the audio tower of a Qwen2-Audio model, fp32, frozen, without its weights.

    Args:
        config: See :class:`~modalloy_audio.qwen_config.Qwen2AudioConfig`.

    Returns:
        The encoder; its weights are to be loaded into it.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = qwen2_audio_config(config)
    settings = Qwen2AudioEncoderConfig(**attrs.asdict(parsed.architecture))
    model = without_weights(lambda: Qwen2AudioEncoder(settings))
    return Qwen2AudioTower(model, parsed)


def preprocess(decoded: Waveform, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``{"input_features": (bands, frames)}``, float32: Whisper's log-mel spectrogram.

    It is of the window and of the silence behind it up to what the tower takes. Of a recording
    longer than the window, the most energetic part is taken.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = qwen2_audio_config(config)
    samples = at_rate(decoded.samples, decoded.sampling_rate, RATE)
    samples = cut(samples, parsed.frames * HOP, RATE)
    extracted = _extractor(parsed.architecture)(
        samples,
        sampling_rate=RATE,
        max_length=parsed.architecture.frames * HOP,
        return_tensors="pt",
    )
    return {"input_features": extracted["input_features"][0].float()}


@lru_cache(maxsize=8)
def _extractor(architecture: Qwen2AudioArchitecture) -> Any:
    """Make the feature extractor once: its filters take longer than a recording."""
    return WhisperFeatureExtractor(
        feature_size=architecture.num_mel_bins, sampling_rate=RATE, hop_length=HOP
    )
