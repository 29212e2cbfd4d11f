"""Pairs of layers that one implementation fuses and another keeps apart.

Phi-3 has one layer for query, key and value, and one for gate and up; Llama has three and two.
The pairs of an adapter made for the one become those of the other without loss: side by side they
are one pair whose B is block-diagonal, and a fused pair's B falls apart into rows.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from modalloy.deltas.lowrank import LowRankPair
from modalloy.errors import DeltaError

_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
)
"""Layers in the order of their rows in the fused one."""

_ELSEWHERE = ("codegen",)
"""Model types whose fused layer has that name and another order of rows."""


def adapt_pairs(
    pairs: Mapping[str, LowRankPair], linears: Mapping[str, nn.Linear], config: Any
) -> dict[str, LowRankPair]:
    """Return pairs by the layers that the base has, joined or split where it fuses otherwise.

    Args:
        pairs: By the layers that the adapter was made for.
        linears: The base's linear layers.
        config: The base's configuration.

    Raises:
        DeltaError: A pair's rows are not those of its part of the fused layer.
    """
    adapted = dict(pairs)
    if getattr(config, "model_type", None) in _ELSEWHERE:
        return adapted
    for name in sorted(pairs):
        path, _, last = name.rpartition(".")
        whole = next((w for w, parts in _PARTS.items() if last in parts), None)
        if name in linears or name not in adapted:
            continue
        if whole and f"{path}.{whole}" in linears:
            found = {p: adapted.pop(f"{path}.{p}", None) for p in _PARTS[whole]}
            layer = linears[f"{path}.{whole}"]
            adapted[f"{path}.{whole}"] = _join(f"{path}.{whole}", found, layer, config)
        elif last in _PARTS and all(f"{path}.{part}" in linears for part in _PARTS[last]):
            rows = [linears[f"{path}.{part}"].out_features for part in _PARTS[last]]
            for part, pair in zip(_PARTS[last], _split(name, adapted.pop(name), rows), strict=True):
                adapted[f"{path}.{part}"] = pair
    return adapted


def _join(
    name: str, parts: Mapping[str, LowRankPair | None], layer: nn.Linear, config: Any
) -> LowRankPair:
    rows = _rows(parts, layer.out_features, config)
    sizes = [rows[part] for part in parts]
    there = [(part, pair) for part, pair in parts.items() if pair is not None]
    for part, pair in there:
        if pair.B.shape[0] != rows[part]:
            raise DeltaError(
                f"the delta of {part!r} has {pair.B.shape[0]} rows, its part of the base's "
                f"{name!r} has {rows[part]}",
                tensor=name,
            )
    ranks = [pair.rank for _, pair in there]
    b = there[0][1].B.new_zeros(layer.out_features, sum(ranks))
    for number, (part, pair) in enumerate(there):
        top = sum(sizes[: list(parts).index(part)])
        left = sum(ranks[:number])
        b[top : top + rows[part], left : left + pair.rank] = pair.scale * pair.B
    return LowRankPair(torch.cat([pair.A for _, pair in there]), b, 1.0)


def _rows(parts: Mapping[str, Any], total: int, config: Any) -> dict[str, int]:
    """Return the rows of each part of a fused layer."""
    if "q_proj" not in parts:
        return dict.fromkeys(parts, total // len(parts))
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    return {"q_proj": heads * width, "k_proj": groups * width, "v_proj": groups * width}


def _split(name: str, pair: LowRankPair, rows: list[int]) -> list[LowRankPair]:
    if pair.B.shape[0] != sum(rows):
        raise DeltaError(
            f"the delta of {name!r} has {pair.B.shape[0]} rows; the base keeps its parts apart, "
            f"which have {sum(rows)} together",
            tensor=name,
        )
    return [LowRankPair(pair.A, b.contiguous(), pair.scale) for b in pair.B.split(rows)]
