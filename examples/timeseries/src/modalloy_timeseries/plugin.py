"""What modalloy-timeseries offers, declared without importing torch or numpy."""

from collections.abc import Callable
from pathlib import Path

from modalloy import API_VERSION, Connector, Encoder, Modality, Parent, hookimpl

MODALITY = "timeseries"
_PARENT = Path(__file__).parent / "parents" / "smollm2-decoupled"


@hookimpl
def register_modalities(register: Callable[[Modality], None]) -> None:
    """Offer inputs of type ``time_series``."""
    register(
        Modality(
            name=MODALITY,
            api_version=API_VERSION,
            content_type="time_series",
            placeholder="<|time_series|>",
            read="modalloy_timeseries.reading:read",
            limits={"bytes": 16 * 2**20, "values": 2_000_000},
        )
    )


@hookimpl
def register_encoders(register: Callable[[Encoder], None]) -> None:
    """Offer an encoder by patches, which needs no weights."""
    register(
        Encoder(
            name="timeseries-patches",
            api_version=API_VERSION,
            modality=MODALITY,
            build="modalloy_timeseries.encoder:build",
            preprocess="modalloy_timeseries.encoder:preprocess",
            output_shape="modalloy_timeseries.configuration:output_shape",
        )
    )


@hookimpl
def register_connectors(register: Callable[[Connector], None]) -> None:
    """Offer two layers behind a norm."""
    register(
        Connector(
            name="timeseries-mlp",
            api_version=API_VERSION,
            build="modalloy_timeseries.connector:build",
        )
    )


@hookimpl
def register_parents(register: Callable[[Parent], None]) -> None:
    """Offer the parent that recipe/train.yml makes, once it lies in the package."""
    if (_PARENT / "parent.json").is_file():
        register(
            Parent(
                name="timeseries-smollm2-decoupled",
                api_version=API_VERSION,
                modality=MODALITY,
                base="smollm2",
                strategy="decoupled",
                source=_PARENT,
                licence="Apache-2.0",
            )
        )
