"""The ``mlpNx_gelu`` connector of LLaVA-1.5: N linear layers with GELU between them."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from modalloy.connectors.options import read_options
from modalloy.errors import SpecError


def build(config: Mapping[str, Any], features: int, hidden: int) -> nn.Module:
    """Return ``Linear(F, D)`` followed by ``depth - 1`` times ``GELU, Linear(D, D)``.

    Args:
        config: ``{"depth": int, "norm": bool}``; depth 2 by default. ``norm`` puts a LayerNorm
            before the first layer, for encoders whose features are not of unit scale.
        features: F, features per token of the encoder.
        hidden: D, hidden size of the base.

    Raises:
        SpecError: The configuration has an unknown key or a wrong value.
    """
    options = read_options("mlp", config, {"depth": 2, "norm": False})
    if options["depth"] < 1:
        raise SpecError(f"connector 'mlp': depth must be at least 1, found {options['depth']}")
    layers: list[nn.Module] = [nn.LayerNorm(features)] if options["norm"] else []
    layers.append(nn.Linear(features, hidden))
    for _ in range(options["depth"] - 1):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)
