"""The ``mlpNx_gelu`` connector of LLaVA-1.5: N linear layers with GELU between them."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from modalloy.connectors.options import read_options
from modalloy.errors import SpecError

_WIDEST = 1 << 17  # a damaged or hostile number must not become an allocation


def build(config: Mapping[str, Any], features: int, hidden: int) -> nn.Module:
    """Return ``Linear(F, W)``, then GELU and ``Linear(W, W)`` in turn, and ``Linear(W, D)`` last.

    GELU is the exact one, as in the projectors of LLaVA and Video-LLaVA and in the mergers of
    Qwen2-VL, Qwen2.5-VL and Qwen3-VL; these have W = F.

    Args:
        config: ``{"depth": int, "norm": bool, "width": int}``; depth 2 by default. ``norm`` puts
            a LayerNorm before the first layer, for encoders whose features are not of unit scale.
            ``width`` is W, between the layers; 0, the default, stands for D.
        features: F, features per token of the encoder.
        hidden: D, hidden size of the base.

    Raises:
        SpecError: The configuration has an unknown key or a wrong value.
    """
    options = read_options("mlp", config, {"depth": 2, "norm": False, "width": 0})
    depth, width = options["depth"], options["width"]
    if depth < 1:
        raise SpecError(f"connector 'mlp': depth must be at least 1, found {depth}", subject="mlp")
    if not 0 <= width <= _WIDEST:
        raise SpecError(
            f"connector 'mlp': width must be from 1 to {_WIDEST}, or 0 for the base's hidden size, "
            f"found {width}",
            subject="mlp",
        )
    if width and depth == 1:
        raise SpecError(
            f"connector 'mlp': of depth 1 it has no inner layer, so width {width} has no place; "
            "leave width out or set depth to 2 or more",
            subject="mlp",
        )
    sizes = [features, *[width or hidden] * (depth - 1), hidden]
    layers: list[nn.Module] = [nn.LayerNorm(features)] if options["norm"] else []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [nn.GELU()] if number else []
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)
