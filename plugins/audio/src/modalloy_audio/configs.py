"""Configurations of the encoders and the shapes that follow from them; imports no torch."""

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from modalloy.errors import FormatError, SpecError
from modalloy.structured import structure

SPEECH_RATE = 16_000
"""Samples a second that the speech embedding was trained on."""

STFT_SIZE = 512
STFT_HOP = 160
EMBEDDING_FRAMES = 76
"""Mel frames that one embedding sees, 775 ms."""

EMBEDDING_HOP = 8
"""Mel frames from one embedding to the next, 80 ms."""

EMBEDDING_SIZE = 96

SPEECH_EMBEDDING = "speech-embedding"

C = TypeVar("C")


def parse(config: Mapping[str, Any], kind: type[C], encoder: str) -> C:
    """Return the configuration of ``encoder`` as a value of ``kind``, checked.

    Raises:
        SpecError: A key is missing, unknown, of the wrong type or out of range.
    """
    subject = f"encoder {encoder!r}"
    try:
        return structure(dict(config), kind, subject)
    except FormatError as error:
        raise SpecError(str(error), subject=subject) from error


def _positive(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not value > 0:
        # After "value", with which modalloy.structured starts what a validator says.
        raise ValueError(f"of {attribute.name!r} must be positive, found {value!r}")


@attrs.frozen(kw_only=True)
class SpeechEmbeddingConfig:
    """Configuration of the encoder ``speech-embedding``.

    Attributes:
        seconds: Length that every clip is trimmed and padded to.
        tokens: Tokens of one clip (K); its embeddings, one every 80 ms, are shared out evenly.
    """

    seconds: float = attrs.field(default=2.0, validator=_positive)
    tokens: int = attrs.field(default=4, validator=_positive)

    @property
    def samples(self) -> int:
        """Samples of one clip at :data:`SPEECH_RATE`."""
        return round(self.seconds * SPEECH_RATE)

    @property
    def embeddings(self) -> int:
        """Embeddings that one clip yields, one every 80 ms."""
        frames = (self.samples - STFT_SIZE) // STFT_HOP + 1
        return (frames - EMBEDDING_FRAMES) // EMBEDDING_HOP + 1

    def __attrs_post_init__(self) -> None:
        if self.embeddings < self.tokens or self.embeddings % self.tokens:
            raise ValueError(
                f"of 'tokens' does not fit: a clip of {self.seconds} seconds yields "
                f"{max(self.embeddings, 0)} embeddings, which cannot be shared out evenly to "
                f"{self.tokens} tokens; 2.0 seconds yield 16, each 0.08 seconds more one more"
            )


@attrs.frozen(kw_only=True)
class TransformersConfig:
    """Configuration of the encoders ``ast`` and ``whisper``.

    Attributes:
        model: Hub id, or a directory with ``config.json``, ``preprocessor_config.json`` and
            safetensors weights.
        tokens: Tokens of one recording (K); the model's own, in time, are averaged to these.
        features: Hidden size of the model (F).
        revision: Branch, tag or commit of the Hub repository.
    """

    model: str
    tokens: int = attrs.field(validator=_positive)
    features: int = attrs.field(validator=_positive)
    revision: str | None = None


def speech_embedding_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return ``(K, F)`` of the encoder ``speech-embedding``.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = parse(config, SpeechEmbeddingConfig, SPEECH_EMBEDDING)
    return parsed.tokens, parsed.embeddings // parsed.tokens * EMBEDDING_SIZE


def ast_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return ``(K, F)`` of the encoder ``ast``.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = parse(config, TransformersConfig, "ast")
    return parsed.tokens, parsed.features


def whisper_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return ``(K, F)`` of the encoder ``whisper``.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = parse(config, TransformersConfig, "whisper")
    return parsed.tokens, parsed.features
