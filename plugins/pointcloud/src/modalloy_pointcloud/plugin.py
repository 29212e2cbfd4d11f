"""What modalloy-pointcloud offers, declared without importing torch or numpy."""

from collections.abc import Callable
from pathlib import Path

from modalloy import API_VERSION, Encoder, Modality, Parent, hookimpl

MODALITY = "pointcloud"
_PARENTS = Path(__file__).parent / "parents"
_CONFIGURATION = "modalloy_pointcloud.configuration"


@hookimpl
def register_modalities(register: Callable[[Modality], None]) -> None:
    """Offer point clouds."""
    register(
        Modality(
            name=MODALITY,
            api_version=API_VERSION,
            content_type="point_cloud",
            placeholder="<|point_cloud|>",
            read="modalloy_pointcloud.reading:read",
            limits={"bytes": 25 * 2**20, "points": 2_000_000, "faces": 4_000_000},
            payload_keys=("point_cloud",),
        )
    )


@hookimpl
def register_encoders(register: Callable[[Encoder], None]) -> None:
    """Offer the packaged light encoder, and Point-BERT for weights of the user's."""
    for name, module in (("pointnet", "pointnet"), ("point-bert", "point_bert")):
        register(
            Encoder(
                name=name,
                api_version=API_VERSION,
                modality=MODALITY,
                build=f"modalloy_pointcloud.{module}:build",
                preprocess=f"modalloy_pointcloud.{module}:preprocess",
                output_shape=f"{_CONFIGURATION}:{module}_shape",
            )
        )


@hookimpl
def register_parents(register: Callable[[Parent], None]) -> None:
    """Offer the packaged parents over SmolLM2-135M-Instruct."""
    for strategy in ("decoupled", "naive"):
        register(
            Parent(
                name=f"pointcloud-smollm2-{strategy}",
                api_version=API_VERSION,
                modality=MODALITY,
                base="smollm2",
                strategy=strategy,
                source=_PARENTS / f"smollm2-{strategy}",
                licence="Apache-2.0",
            )
        )
