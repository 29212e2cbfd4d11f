"""One affine map from an encoder's features to the base's embeddings."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from modalloy.connectors.options import read_options


def build(config: Mapping[str, Any], features: int, hidden: int) -> nn.Module:
    """Return ``Linear(F, D)``.

    Args:
        config: ``{"bias": bool}``, true by default.
        features: F, features per token of the encoder.
        hidden: D, hidden size of the base.

    Raises:
        SpecError: The configuration has an unknown key or a wrong value.
    """
    options = read_options("linear", config, {"bias": True})
    return nn.Linear(features, hidden, bias=options["bias"])
