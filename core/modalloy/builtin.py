"""What the core itself offers, through the same hooks as any plugin."""

from collections.abc import Callable

from modalloy.hookspecs import hookimpl
from modalloy.modality import API_VERSION, Connector, MergeMethod


@hookimpl
def register_connectors(register: Callable[[Connector], None]) -> None:
    """Offer the connectors that need nothing but torch."""
    for name in ("linear", "mlp"):
        register(
            Connector(
                name=name,
                api_version=API_VERSION,
                build=f"modalloy.connectors.{name}:build",
            )
        )


@hookimpl
def register_merge_methods(register: Callable[[MergeMethod], None]) -> None:
    """Offer DAMC and NaiveMC."""
    register(
        MergeMethod(
            name="damc",
            api_version=API_VERSION,
            summary="Text tokens run on the merged text deltas, a modality's tokens on its own.",
            strategies=("decoupled", "naive"),
            decoupled=True,
            rules=("presence", "uniform"),
        )
    )
    register(
        MergeMethod(
            name="naive",
            api_version=API_VERSION,
            summary="Every token runs on one merged delta.",
            strategies=("naive",),
            decoupled=False,
            rules=("mean", "sum"),
        )
    )
