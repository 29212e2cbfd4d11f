"""What modalloy-video offers, declared without importing torch, numpy, Pillow, timm or PyAV."""

from collections.abc import Callable
from pathlib import Path

from modalloy import API_VERSION, Encoder, Modality, Parent, hookimpl

MODALITY = "video"
_PARENTS = Path(__file__).parent / "parents"
_CONFIGURATION = "modalloy_video.configuration"


@hookimpl
def register_modalities(register: Callable[[Modality], None]) -> None:
    """Offer moving pictures."""
    register(
        Modality(
            name=MODALITY,
            api_version=API_VERSION,
            content_type="video",
            placeholder="<|video|>",
            read="modalloy_video.reading:read",
            limits={
                "bytes": 200 * 2**20,
                "seconds": 600,
                "pixels": 4096 * 2304,  # of one frame
                "frames": 36_000,  # that must be decoded: 600 seconds at 60 a second
            },
            payload_keys=("video", "video_url"),
        )
    )


@hookimpl
def register_encoders(register: Callable[[Encoder], None]) -> None:
    """Offer timm backbones over frames, VideoMAE, and Video-LLaVA's video tower."""
    for kind in ("frames", "videomae"):
        register(
            Encoder(
                name=kind,
                api_version=API_VERSION,
                modality=MODALITY,
                build=f"modalloy_video.{kind}_encoder:build",
                preprocess=f"modalloy_video.{kind}_encoder:preprocess",
                output_shape=f"{_CONFIGURATION}:{kind}_shape",
            )
        )
    register(
        Encoder(
            name="video-llava",
            api_version=API_VERSION,
            modality=MODALITY,
            build="modalloy_video.llava_encoder:build",
            preprocess="modalloy_video.llava_encoder:preprocess",
            output_shape="modalloy_video.llava_configuration:video_llava_shape",
        )
    )


@hookimpl
def register_parents(register: Callable[[Parent], None]) -> None:
    """Offer the packaged parents over SmolLM2-135M-Instruct."""
    for strategy in ("decoupled", "naive"):
        register(
            Parent(
                name=f"video-smollm2-{strategy}",
                api_version=API_VERSION,
                modality=MODALITY,
                base="smollm2",
                strategy=strategy,
                source=_PARENTS / f"smollm2-{strategy}",
                licence="Apache-2.0",
            )
        )
