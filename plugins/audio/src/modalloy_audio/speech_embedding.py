"""Google's speech embedding in PyTorch: 96 numbers for every 80 ms of sound.

The network is a stack of 1x3 (frequency) and 3x1 (time) convolutions over a mel spectrogram.
It pads in frequency only and halves time three times, so that one pass over a whole clip gives
what sliding a window of 76 frames in steps of 8 would give, without computing anything twice.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy_audio.configs import (
    EMBEDDING_SIZE,
    SPEECH_EMBEDDING,
    SPEECH_RATE,
    STFT_HOP,
    STFT_SIZE,
    SpeechEmbeddingConfig,
    parse,
)
from modalloy_audio.framing import centre, cut, level, trim
from modalloy_audio.reading import Waveform
from modalloy_audio.resampling import at_rate

WEIGHTS = Path(__file__).parent / "weights" / "speech_embedding.safetensors"

_MELS = 32
_PEAK = 0.5  # of full scale
_SCALE = 1 / 16  # embeddings of speech have a standard deviation of about 16
_INT16 = 32768.0  # the network was trained on samples as 16-bit integers
_TOP_DB = 80.0
_STEM = 24
# Output channels of each pair of convolutions, and the pooling (time, frequency) after it.
_STAGES = (
    (24, (2, 2)),
    (48, None),
    (48, (1, 2)),
    (72, None),
    (72, (2, 2)),
    (96, None),
    (96, (1, 2)),
    (96, None),
    (96, (2, 2)),
)


class MelSpectrogram(nn.Module):
    """Log-mel frames as the embedding expects them: 32 bands every 10 ms."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.empty(STFT_SIZE))
        self.register_buffer("filters", torch.empty(STFT_SIZE // 2 + 1, _MELS))

    def forward(self, waveform: Tensor) -> Tensor:
        """Map samples ``(N, samples)`` in -1 to 1 to frames ``(N, frames, 32)``, float32.

        The floor lies 80 dB under the loudest value of each clip, not of the batch, so that a
        clip's frames do not depend on its neighbours.
        """
        spectrum = torch.stft(
            waveform * _INT16,
            STFT_SIZE,
            STFT_HOP,
            window=self.window.float(),
            center=False,
            return_complex=True,
        )
        power = torch.view_as_real(spectrum).square().sum(-1)
        decibel = 10 * torch.log10((power.transpose(1, 2) @ self.filters.float()).clamp_min(1e-10))
        floor = decibel.amax(dim=(1, 2), keepdim=True) - _TOP_DB
        return torch.maximum(decibel, floor) / 10 + 2


class SpeechEmbedding(nn.Module):
    """Clips of fixed length to K tokens, each several consecutive embeddings side by side."""

    stem_scale: Tensor
    stem_shift: Tensor

    def __init__(self, config: SpeechEmbeddingConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.mel = MelSpectrogram()
        self.stem = nn.Conv2d(1, _STEM, 3, padding=(0, 1))
        # The stem alone is rectified before its normalisation, which so cannot be folded into it.
        self.register_buffer("stem_scale", torch.ones(_STEM))
        self.register_buffer("stem_shift", torch.zeros(_STEM))
        pairs, width = [], _STEM
        for channels, pool in _STAGES:
            pairs.append(_pair(width, channels, pool))
            width = channels
        self.pairs = nn.Sequential(*pairs)
        self.head = nn.Conv2d(width, EMBEDDING_SIZE, (3, 1), bias=False)

    def embed(self, frames: Tensor) -> Tensor:
        """Map mel frames ``(N, frames, 32)`` to embeddings ``(N, W, 96)``.

        ``W = (frames - 76) // 8 + 1``: one for every window of 76 frames, in steps of 8.
        """
        hidden = F.relu(self.stem(frames.unsqueeze(1)))
        hidden = hidden * self.stem_scale[:, None, None] + self.stem_shift[:, None, None]
        hidden = self.head(self.pairs(_activate(hidden)))
        return hidden.squeeze(3).transpose(1, 2)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map clips ``(N, samples)``, -1 to 1 at 16 kHz, to features ``(N, K, F)``.

        The W embeddings of a clip are shared out evenly: a token holds ``F / 96`` of them,
        side by side, which keeps their order and loses nothing. Values are scaled to a standard
        deviation of about 1.
        """
        # A spectrogram's powers span more than half precision holds: only what follows is cast.
        frames = self.mel(waveform.float()).to(self.stem.weight.dtype)
        embeddings = self.embed(frames) * _SCALE
        return embeddings.reshape(len(embeddings), self.tokens, -1)


class _Activation(nn.Module):
    """The network's own activation: a leaky one that stops at -0.4."""

    def forward(self, hidden: Tensor) -> Tensor:
        return _activate(hidden)


def _activate(hidden: Tensor) -> Tensor:
    return F.leaky_relu(hidden, 0.2).clamp_min(-0.4)


def _pair(inputs: int, outputs: int, pool: tuple[int, int] | None) -> nn.Sequential:
    """Return a convolution over frequency, one over time, and the pooling after them."""
    layers = [
        nn.Conv2d(inputs, outputs, (1, 3), padding=(0, 1)),
        _Activation(),
        nn.Conv2d(outputs, outputs, (3, 1)),
        _Activation(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(pool)] if pool else []))


def build(config: Mapping[str, Any]) -> SpeechEmbedding:
    """Return the encoder with the weights that this package ships, in evaluation mode, fp32.

    Args:
        config: See :class:`~modalloy_audio.configs.SpeechEmbeddingConfig`.

    Raises:
        SpecError: ``config`` is not valid.
    """
    module = SpeechEmbedding(parse(config, SpeechEmbeddingConfig, SPEECH_EMBEDDING))
    module.load_state_dict(load_file(WEIGHTS))
    return module.eval().requires_grad_(requires_grad=False)


def preprocess(decoded: Waveform, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``{"waveform": (samples,)}``, float32: one clip of fixed length at 16 kHz.

    Silence around the sound is dropped, the sound is brought to one loudness and put at one
    place: where in a recording a word was spoken, and how loud, changes nothing.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = parse(config, SpeechEmbeddingConfig, SPEECH_EMBEDDING)
    samples = level(trim(decoded.samples, decoded.sampling_rate), _PEAK)
    samples = at_rate(samples, decoded.sampling_rate, SPEECH_RATE)
    clip = centre(cut(samples, parsed.samples, SPEECH_RATE), parsed.samples)
    return {"waveform": torch.from_numpy(clip)}
