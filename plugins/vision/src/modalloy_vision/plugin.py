"""What modalloy-vision offers, declared without importing torch, Pillow or timm."""

from collections.abc import Callable
from pathlib import Path

from modalloy import API_VERSION, Encoder, Modality, Parent, hookimpl

MODALITY = "vision"
_PARENTS = Path(__file__).parent / "parents"
_CONFIGURATION = "modalloy_vision.configuration"
_TRANSFORMERS = "modalloy_vision.transformers_encoder"
_TOWERS = "modalloy_vision.tower_configuration"
_QWEN = "modalloy_vision.qwen_encoder"


@hookimpl
def register_modalities(register: Callable[[Modality], None]) -> None:
    """Offer pictures."""
    register(
        Modality(
            name=MODALITY,
            api_version=API_VERSION,
            content_type="image",
            placeholder="<|image|>",
            read="modalloy_vision.reading:read",
            limits={"bytes": 25 * 2**20, "pixels": 40_000_000},
            payload_keys=("image", "image_url"),
        )
    )


@hookimpl
def register_encoders(register: Callable[[Encoder], None]) -> None:
    """Offer timm backbones, CLIP and SigLIP through transformers, and Qwen-VL's towers."""
    register(
        Encoder(
            name="timm",
            api_version=API_VERSION,
            modality=MODALITY,
            build="modalloy_vision.timm_encoder:build",
            preprocess="modalloy_vision.timm_encoder:preprocess",
            output_shape=f"{_CONFIGURATION}:timm_shape",
        )
    )
    for kind in ("clip", "siglip"):
        register(
            Encoder(
                name=kind,
                api_version=API_VERSION,
                modality=MODALITY,
                build=f"{_TRANSFORMERS}:build_{kind}",
                preprocess=f"{_TRANSFORMERS}:preprocess_{kind}",
                output_shape=f"{_CONFIGURATION}:{kind}_shape",
            )
        )
    for kind in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        name = kind.replace("-", "_").replace(".", "_")
        register(
            Encoder(
                name=kind,
                api_version=API_VERSION,
                modality=MODALITY,
                build=f"{_QWEN}:build_{name}",
                preprocess=f"{_QWEN}:preprocess_{name}",
                output_shape=f"{_TOWERS}:{name}_shape",
            )
        )


@hookimpl
def register_parents(register: Callable[[Parent], None]) -> None:
    """Offer the packaged parents over SmolLM2-135M-Instruct."""
    for strategy in ("decoupled", "naive"):
        register(
            Parent(
                name=f"vision-smollm2-{strategy}",
                api_version=API_VERSION,
                modality=MODALITY,
                base="smollm2",
                strategy=strategy,
                source=_PARENTS / f"smollm2-{strategy}",
                licence="Apache-2.0",
            )
        )
