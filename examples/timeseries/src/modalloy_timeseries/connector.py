"""Connector ``timeseries-mlp``: two layers behind a norm."""

from collections.abc import Mapping
from typing import Any

from modalloy.connectors.options import read_options
from modalloy.errors import SpecError
from torch import nn

_WIDEST = 1 << 16  # a damaged or hostile number must not become an allocation


def build(config: Mapping[str, Any], features: int, hidden: int) -> nn.Module:
    """Return ``LayerNorm(F)``, ``Linear(F, W)``, GELU and ``Linear(W, D)``.

    Args:
        config: ``{"width": int}``, W; 256 by default.
        features: F, features per token of the encoder.
        hidden: D, hidden size of the base.

    Raises:
        SpecError: The configuration has an unknown key or a wrong value.
    """
    width = read_options("timeseries-mlp", config, {"width": 256})["width"]
    if not 1 <= width <= _WIDEST:
        raise SpecError(
            f"connector 'timeseries-mlp': width must be from 1 to {_WIDEST}, found {width}",
            subject="timeseries-mlp",
        )
    return nn.Sequential(
        nn.LayerNorm(features), nn.Linear(features, width), nn.GELU(), nn.Linear(width, hidden)
    )
