"""What modalloy-audio offers, declared without importing torch, numpy or soundfile."""

from collections.abc import Callable
from pathlib import Path

from modalloy import API_VERSION, Encoder, Modality, Parent, hookimpl

MODALITY = "audio"
_PARENTS = Path(__file__).parent / "parents"
_CONFIGS = "modalloy_audio.configs"
_TRANSFORMERS = "modalloy_audio.transformers_encoder"


@hookimpl
def register_modalities(register: Callable[[Modality], None]) -> None:
    """Offer sound."""
    register(
        Modality(
            name=MODALITY,
            api_version=API_VERSION,
            content_type="audio",
            placeholder="<|audio|>",
            read="modalloy_audio.reading:read",
            limits={"bytes": 50 * 2**20, "seconds": 600},
            payload_keys=("audio", "input_audio"),
        )
    )


@hookimpl
def register_encoders(register: Callable[[Encoder], None]) -> None:
    """Offer the packaged speech embedding, AST and Whisper, and Qwen2-Audio's tower."""
    register(
        Encoder(
            name="speech-embedding",
            api_version=API_VERSION,
            modality=MODALITY,
            build="modalloy_audio.speech_embedding:build",
            preprocess="modalloy_audio.speech_embedding:preprocess",
            output_shape=f"{_CONFIGS}:speech_embedding_shape",
        )
    )
    for kind in ("ast", "whisper"):
        register(
            Encoder(
                name=kind,
                api_version=API_VERSION,
                modality=MODALITY,
                build=f"{_TRANSFORMERS}:build_{kind}",
                preprocess=f"{_TRANSFORMERS}:preprocess_{kind}",
                output_shape=f"{_CONFIGS}:{kind}_shape",
            )
        )
    register(
        Encoder(
            name="qwen2-audio",
            api_version=API_VERSION,
            modality=MODALITY,
            build="modalloy_audio.qwen_encoder:build",
            preprocess="modalloy_audio.qwen_encoder:preprocess",
            output_shape="modalloy_audio.qwen_config:output_shape",
        )
    )


@hookimpl
def register_parents(register: Callable[[Parent], None]) -> None:
    """Offer the packaged parents over SmolLM2-135M-Instruct."""
    for strategy in ("decoupled", "naive"):
        register(
            Parent(
                name=f"audio-smollm2-{strategy}",
                api_version=API_VERSION,
                modality=MODALITY,
                base="smollm2",
                strategy=strategy,
                source=_PARENTS / f"smollm2-{strategy}",
                licence="Apache-2.0",
            )
        )
