"""Interference between parents, against whole matrices."""

import attrs
import pytest
import torch

from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.evaluation import interference
from modalloy.evaluation.interference import measure_interference


def pair(seed: int, scale: float = 2.0, rank: int = 3) -> LowRankPair:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 8, generator=draw), torch.randn(11, rank, generator=draw)
    return LowRankPair(a, b, scale)


@pytest.mark.parametrize("rows", [512, 4])
def test_records_are_those_of_the_whole_matrices(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interference, "ROWS", rows)
    deltas = {
        "b": LowRankDelta({"y": pair(1, scale=-0.5), "x": pair(2, rank=2)}),
        "a": LowRankDelta({"x": pair(3), "y": pair(4)}),
        "c": LowRankDelta({"x": pair(5)}),
    }
    found = measure_interference(deltas)
    where = [(one.module, one.parents) for one in found]
    assert where == [("x", ("a", "b")), ("x", ("a", "c")), ("x", ("b", "c")), ("y", ("a", "b"))]
    for record in found:
        one, two = (deltas[name].pairs[record.module].dense() for name in record.parents)
        cosine = torch.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        assert record.cosine == pytest.approx(float(cosine), abs=1e-5)
        assert record.conflict == pytest.approx(float((one * two < 0).float().mean()), abs=1e-6)
        assert record.norms == pytest.approx((float(one.norm()), float(two.norm())), rel=1e-5)


def test_a_parent_agrees_with_itself_and_not_with_its_negative() -> None:
    one, minus = pair(1), pair(1, scale=-2.0)
    deltas = {"a": LowRankDelta({"x": one}), "b": LowRankDelta({"x": one})}
    (same,) = measure_interference(deltas)
    assert (same.cosine, same.conflict) == (pytest.approx(1.0), 0.0)
    (opposed,) = measure_interference(deltas | {"b": LowRankDelta({"x": minus})})
    assert (opposed.cosine, opposed.conflict) == (pytest.approx(-1.0), 1.0)


def test_a_delta_of_nothing_is_in_no_ones_way() -> None:
    one = pair(1)
    empty = LowRankPair(one.A, torch.zeros_like(one.B), 2.0)
    (record,) = measure_interference(
        {"a": LowRankDelta({"x": one}), "b": LowRankDelta({"x": empty})}
    )
    assert attrs.asdict(record) == {
        "module": "x",
        "parents": ("a", "b"),
        "cosine": 0.0,
        "conflict": 0.0,
        "norms": (pytest.approx(one.norm()), 0.0),
    }
