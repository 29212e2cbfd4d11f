"""Adapters whose layers the base fuses, or keeps apart."""

from typing import Any

import pytest
import torch
from transformers import CodeGenConfig

from modalloy.composition.fitting import fit_delta
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.errors import DeltaError
from tiny import small_model, tiny_model

LAYER = "model.layers.1"
ROWS = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "gate_proj": 48, "up_proj": 48}


def pair(rows: int, seed: int, rank: int = 2) -> LowRankPair:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, 32, generator=generator)
    return LowRankPair(a, torch.randn(rows, rank, generator=generator), 0.5 + seed)


def where(name: str) -> str:
    block = "mlp" if name.endswith(("gate_proj", "up_proj")) else "self_attn"
    return f"{LAYER}.{block}.{name}"


@pytest.mark.parametrize("left_out", [None, "k_proj"])
def test_pairs_kept_apart_become_one_of_the_fused_layer(left_out: str | None) -> None:
    parts = {n: pair(r, s, rank=2 + s) for s, (n, r) in enumerate(ROWS.items()) if n != left_out}
    fitted = fit_delta(LowRankDelta({where(n): p for n, p in parts.items()}), tiny_model("phi3"))
    assert list(fitted.pairs) == [where("gate_up_proj"), where("qkv_proj")]
    for whole, names in (
        ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("gate_up_proj", ("gate_proj", "up_proj")),
    ):
        rows = [parts[n].dense() if n in parts else torch.zeros(ROWS[n], 32) for n in names]
        torch.testing.assert_close(fitted.pairs[where(whole)].dense(), torch.cat(rows))


def test_a_fused_pair_falls_apart_into_those_of_its_parts() -> None:
    fused = {"qkv_proj": pair(64, 1), "gate_up_proj": pair(96, 2)}
    fitted = fit_delta(LowRankDelta({where(n): p for n, p in fused.items()}), tiny_model("llama"))
    assert {n.rpartition(".")[2] for n in fitted.pairs} == set(ROWS)
    for whole, names in (
        ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("gate_up_proj", ("gate_proj", "up_proj")),
    ):
        parts = torch.cat([fitted.pairs[where(n)].dense() for n in names])
        torch.testing.assert_close(parts, fused[whole].dense())


@pytest.mark.parametrize(
    ("family", "name", "rows", "message"),
    [
        ("phi3", "q_proj", 31, r"'q_proj' has 31 rows, its part of the base's .* has 32"),
        ("llama", "qkv_proj", 63, r"has 63 rows; the base keeps its parts apart, which have 64"),
    ],
)
def test_rows_that_are_not_the_parts_are_refused(
    family: str, name: str, rows: int, message: str
) -> None:
    model: Any = tiny_model(family)
    with pytest.raises(DeltaError, match=message):
        fit_delta(LowRankDelta({where(name): pair(rows, 1)}), model)


def test_what_has_no_place_says_why() -> None:
    model = tiny_model("qwen3_moe")
    name = f"{LAYER}.mlp.experts.0.up_proj"
    with pytest.raises(DeltaError, match="experts are one tensor"):
        fit_delta(LowRankDelta({name: pair(24, 1)}), model)


def test_a_fused_layer_of_another_order_is_left_alone() -> None:
    config = CodeGenConfig(
        vocab_size=40, n_positions=32, n_embd=32, n_layer=2, n_head=4, rotary_dim=4
    )
    name = "transformer.h.0.attn.q_proj"
    with pytest.raises(DeltaError, match=f"{name}' has no place"):
        fit_delta(LowRankDelta({name: pair(32, 1)}), small_model(config))
