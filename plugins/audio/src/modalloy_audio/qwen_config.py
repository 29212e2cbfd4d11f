"""Configuration of the encoder ``qwen2-audio`` and the shape that follows; imports no torch.

Its architecture stands in ``parent.json``, in the words of transformers' own configuration. What is
no size and no activation is not among them: no key of a stranger's file chooses code.
"""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from modalloy.errors import SpecError
from modalloy_audio.configs import parse

QWEN2_AUDIO = "qwen2-audio"

RATE = 16_000
"""Samples a second that the tower was trained on."""

HOP = 160
"""Samples from one frame of the spectrogram to the next, 10 ms."""

STRIDE = 2
"""Frames of the spectrogram that the second convolution makes one position of."""

_SUBJECT = f"encoder {QWEN2_AUDIO!r}"
_WIDEST = 1 << 16
_DEEPEST = 256
# A damaged or hostile number must not become an allocation; Whisper's largest encoder has 6e8.
_MOST_PARAMETERS = 10**10


@attrs.frozen(kw_only=True)
class Qwen2AudioArchitecture:
    """What of transformers' ``Qwen2AudioEncoderConfig`` shapes the output; the words are its."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int = 128
    max_source_positions: int = 1500
    activation_function: Literal["gelu", "gelu_new", "quick_gelu", "relu", "silu"] = "gelu"

    @property
    def frames(self) -> int:
        """Frames of the spectrogram that the tower takes, never fewer and never more."""
        return self.max_source_positions * STRIDE


@attrs.frozen(kw_only=True)
class Qwen2AudioConfig:
    """Audio tower of a Qwen2-Audio model; its weights come with the parent.

    Attributes:
        architecture: Of the tower.
        seconds: Length of the window that is heard: what is shorter is filled up with silence,
            of what is longer the most energetic part is taken. At most what the tower takes.
    """

    architecture: Qwen2AudioArchitecture
    seconds: float = 30.0

    @property
    def frames(self) -> int:
        """Frames of the spectrogram in the window."""
        return round(self.seconds * RATE / HOP)

    @property
    def positions(self) -> int:
        """Positions of the tower that the window fills, before two become one token."""
        return (self.frames - 1) // STRIDE + 1

    @property
    def tokens(self) -> int:
        """K, tokens of the window: one for every 40 ms."""
        return self.positions // 2


def qwen2_audio_config(config: Mapping[str, Any]) -> Qwen2AudioConfig:
    """Check the configuration of encoder ``qwen2-audio``.

    Raises:
        SpecError: A key is missing, unknown, of the wrong type or out of range.
    """
    parsed = parse(config, Qwen2AudioConfig, QWEN2_AUDIO)
    architecture = parsed.architecture
    _check_numbers(architecture)
    if architecture.d_model % architecture.encoder_attention_heads:
        raise SpecError(
            f"{_SUBJECT}: architecture has {architecture.d_model} features, which do not divide "
            f"into {architecture.encoder_attention_heads} heads",
            subject=_SUBJECT,
        )
    if not 0 < parsed.seconds * RATE / HOP <= architecture.frames or not parsed.tokens:
        raise SpecError(
            f"{_SUBJECT}: seconds must be from 0.04 to {architecture.frames * HOP / RATE:g}, which "
            f"the tower takes (max_source_positions {architecture.max_source_positions}), found "
            f"{parsed.seconds:g}",
            subject=_SUBJECT,
        )
    return parsed


def output_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return ``(K, F)`` of the encoder ``qwen2-audio``.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = qwen2_audio_config(config)
    return parsed.tokens, parsed.architecture.d_model


def _check_numbers(architecture: Qwen2AudioArchitecture) -> None:
    most = {"encoder_layers": _DEEPEST}
    for name, value in attrs.asdict(architecture).items():
        bound = most.get(name, _WIDEST)
        if type(value) is int and not 0 < value <= bound:
            raise SpecError(
                f"{_SUBJECT}: architecture.{name} must be positive and at most {bound}, found "
                f"{value}",
                subject=_SUBJECT,
            )
    width, inner = architecture.d_model, architecture.encoder_ffn_dim
    parameters = architecture.encoder_layers * width * (4 * width + 2 * inner)
    if parameters > _MOST_PARAMETERS:
        raise SpecError(
            f"{_SUBJECT}: architecture makes about {parameters:,} parameters, at most "
            f"{_MOST_PARAMETERS:,} are taken; its numbers are not those of an audio tower",
            subject=_SUBJECT,
        )
