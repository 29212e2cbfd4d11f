"""Encoders ``ast`` and ``whisper``: hidden states of a sound model from transformers.

Code from a Hub repository is never run, and weights are read from safetensors only.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    PreTrainedModel,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modalloy.errors import SpecError
from modalloy.frozen import FrozenModel
from modalloy.opened import NamedModel, find_model
from modalloy_audio.configs import TransformersConfig, parse
from modalloy_audio.framing import cut
from modalloy_audio.reading import Waveform
from modalloy_audio.resampling import at_rate

_AST_PREFIX = 2  # a class token and a distillation token come before the patches
# A Whisper checkpoint names the encoder's tensors by their place in the whole model.
_WHISPER_KEYS = MappingProxyType({r"^(model\.)?encoder\.": ""})
_EXTRACTORS: Mapping[str, Any] = MappingProxyType(
    {"ast": ASTFeatureExtractor, "whisper": WhisperFeatureExtractor}
)
_FRAME_SECONDS = 0.01  # from one spectrogram frame to the next, in both extractors


class _WhisperEncoder(WhisperEncoder):
    """Whisper's encoder as it is, opened without a report of the decoder's unused tensors."""

    _keys_to_ignore_on_load_unexpected = [r"decoder\.", "proj_out"]  # noqa: RUF012


class _Frozen(FrozenModel):
    """A frozen model whose hidden states are averaged, in time, to K tokens."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, tokens: int) -> None:
        super().__init__(model)
        self.tokens = tokens

    def _encode(self, inputs: Tensor) -> Tensor:
        """Return the last hidden states ``(N, T, F)`` in the dtype of the weights."""
        states: Tensor = self.model(inputs.to(self.model.dtype)).last_hidden_state
        return states

    def _pool(self, states: Tensor) -> Tensor:
        """Average ``(N, T, F)`` to ``(N, K, F)``."""
        return F.adaptive_avg_pool1d(states.transpose(1, 2), self.tokens).transpose(1, 2)


class AstEncoder(_Frozen):
    """The audio spectrogram transformer; its patches are averaged over frequency first."""

    def forward(self, input_values: Tensor) -> Tensor:
        """Map spectrograms ``(N, frames, bands)`` to features ``(N, K, F)``."""
        rows, columns = _ast_grid(self.model.config)
        patches = self._encode(input_values)[:, _AST_PREFIX:]
        return self._pool(patches.unflatten(1, (rows, columns)).mean(1))


class WhisperFeatures(_Frozen):
    """Whisper's encoder; the decoder is never opened."""

    def forward(self, input_features: Tensor) -> Tensor:
        """Map spectrograms ``(N, bands, frames)`` to features ``(N, K, F)``."""
        return self._pool(self._encode(input_features))


def build_ast(config: Mapping[str, Any]) -> AstEncoder:
    """Open an audio spectrogram transformer, fp32, frozen.

    Args:
        config: See :class:`~modalloy_audio.configs.TransformersConfig`.

    Raises:
        SpecError: ``config`` is not valid or does not fit the model.
        MissingComponentError: The model cannot be fetched.
        FormatError: A file of it is damaged, not in safetensors, or leads outside its directory.
    """
    parsed = parse(config, TransformersConfig, "ast")
    named = find_model("encoder 'ast'", parsed.model, parsed.revision)
    found: Any = named.config(ASTConfig, (ASTConfig.model_type,))
    with named.telling():
        _verify(parsed, "ast", steps=_ast_grid(found)[1], width=found.hidden_size)
    return AstEncoder(named.model(ASTModel, found), parsed.tokens)


def build_whisper(config: Mapping[str, Any]) -> WhisperFeatures:
    """Open the encoder of a Whisper model, fp32, frozen; else as :func:`build_ast`.

    Raises:
        SpecError: ``config`` is not valid or does not fit the model.
        MissingComponentError: The model cannot be fetched.
        FormatError: A file of it is damaged, not in safetensors, or leads outside its directory.
    """
    parsed = parse(config, TransformersConfig, "whisper")
    named = find_model("encoder 'whisper'", parsed.model, parsed.revision)
    found: Any = named.config(WhisperConfig, (WhisperConfig.model_type,))
    with named.telling():
        _verify(parsed, "whisper", steps=found.max_source_positions, width=found.d_model)
    return WhisperFeatures(named.model(_WhisperEncoder, found, _WHISPER_KEYS), parsed.tokens)


def preprocess_ast(decoded: Waveform, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``{"input_values": (frames, bands)}``, float32, by the model's own extractor.

    Of a recording longer than the model hears, the most energetic part is taken.

    Raises:
        SpecError: ``config`` is not valid.
        MissingComponentError: The feature extractor cannot be fetched, or there is none.
        FormatError: Its file is damaged, or of another class.
    """
    parsed = parse(config, TransformersConfig, "ast")
    named, extractor = _extractor(parsed, "ast")
    with named.telling():
        seconds = extractor.max_length * _FRAME_SECONDS
        return {"input_values": _extract(decoded, extractor, seconds)["input_values"][0]}


def preprocess_whisper(decoded: Waveform, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``{"input_features": (bands, frames)}``, float32; else as :func:`preprocess_ast`.

    Raises:
        SpecError: ``config`` is not valid.
        MissingComponentError: The feature extractor cannot be fetched, or there is none.
        FormatError: Its file is damaged, or of another class.
    """
    parsed = parse(config, TransformersConfig, "whisper")
    named, extractor = _extractor(parsed, "whisper")
    with named.telling():
        extracted = _extract(decoded, extractor, extractor.chunk_length)
        return {"input_features": extracted["input_features"][0]}


def _extract(decoded: Waveform, extractor: Any, seconds: float) -> Any:
    rate = extractor.sampling_rate
    samples = at_rate(decoded.samples, decoded.sampling_rate, rate)
    samples = cut(samples, round(seconds * rate), rate)
    return extractor(samples, sampling_rate=rate, return_tensors="pt")


def _ast_grid(config: Any) -> tuple[int, int]:
    """Return the rows (frequency) and columns (time) of the patches."""
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return rows, (config.max_length - config.patch_size) // config.time_stride + 1


def _verify(config: TransformersConfig, kind: str, *, steps: int, width: int) -> None:
    """Check that the configuration's shape is the model's."""
    if config.features != width:
        raise SpecError(
            f"encoder {kind!r}: {config.model!r} has {width} features, the configuration says "
            f"{config.features}",
            subject=f"encoder {kind!r}",
        )
    if config.tokens > steps:
        raise SpecError(
            f"encoder {kind!r}: {config.model!r} yields {steps} steps in time, which cannot be "
            f"averaged to {config.tokens} tokens; ask for {steps} at most",
            subject=f"encoder {kind!r}",
        )


@lru_cache(maxsize=8)
def _extractor(config: TransformersConfig, kind: str) -> tuple[NamedModel, Any]:
    """Open the feature extractor once: it is asked for every recording."""
    named = find_model(f"encoder {kind!r}", config.model, config.revision, "feature extractor")
    return named, named.processor(_EXTRACTORS[kind])
