"""Intervals: they hold the truth as often as they say, however questions share their objects."""

import numpy as np
import pytest

from modalloy.errors import InputError
from modalloy.evaluation.intervals import difference_interval, share_interval
from modalloy.evaluation.results import Record, Results, paired_interval


def even(right: list[bool], objects: list[list[str]]) -> tuple[float, float, float]:
    count = len(right)
    found = share_interval(right, [1 / count] * count, objects, ["k"] * count)
    return found.value, found.low, found.high


@pytest.mark.parametrize(("slots", "spread"), [(1, 1.0), (2, 1.0), (4, 0.0), (4, 1.0)])
def test_coverage_is_about_95_percent(slots: int, spread: float) -> None:
    """Each slot (picture, voice, ...) draws one of 50 objects, each easier or harder to know."""
    draw = np.random.default_rng(slots)
    ease = draw.normal(size=400_000) * spread
    truth = float((1 / (1 + np.exp(-1 - ease))).mean())
    held = differs = 0
    for _ in range(200):
        effect = draw.normal(size=(slots, 50)) * spread / np.sqrt(slots)
        which = draw.integers(50, size=(slots, 200))
        chance = 1 / (1 + np.exp(-1 - sum(effect[s][which[s]] for s in range(slots))))
        objects = [[f"{s}-{which[s][i]}" for s in range(slots)] for i in range(200)]
        one, other = draw.random(200) < chance, draw.random(200) < chance
        _, low, high = even(list(one), objects)
        held += low <= truth <= high
        paired = difference_interval(list(one.astype(float) - other), objects)
        differs += paired.low <= 0 <= paired.high
    assert 0.9 <= held / 200 <= 0.99
    assert 0.9 <= differs / 200 <= 0.99


def test_shared_objects_widen_an_interval() -> None:
    right = [True] * 30 + [False] * 10
    apart = even(right, [[str(i)] for i in range(40)])
    shared = even(right, [[str(i // 10)] for i in range(40)])
    assert apart[0] == shared[0] == 0.75
    assert shared[2] - shared[1] > 1.5 * (apart[2] - apart[1])
    assert even(right, [[] for _ in range(40)])[1] == pytest.approx(apart[1], abs=1e-9)


def test_no_error_is_no_certainty() -> None:
    value, low, high = even([True] * 40, [[str(i // 4)] for i in range(40)])
    assert (value, high) == (1.0, 1.0)
    assert low < 0.75, "ten objects do not tell as much as forty"
    value, low, _ = even([False] * 5, [[] for _ in range(5)])
    assert (value, low) == (0.0, 0.0)


def record(number: int, *, right: bool, kind: str = "k", scoring: str = "options") -> Record:
    return Record(
        id=str(number), kind=kind, scoring=scoring, answer="a", gold="a", right=right,
        objects=(f"o{number // 2}",),
    )  # fmt: skip


def test_the_average_weighs_kinds_alike() -> None:
    many = [record(i, right=True, kind="easy") for i in range(30)]
    few = [record(i, right=i < 5, kind="hard") for i in range(10)]
    rows = Results(records=(*many, *few)).table()
    assert [(row.kind, row.n) for row in rows] == [("easy", 30), ("hard", 10), ("average", 40)]
    assert rows[2].right.value == pytest.approx(0.75)
    assert rows[2].right.low < 0.75 < rows[2].right.high
    assert Results(records=(*many, *few)).accuracy() == pytest.approx(0.75)
    assert Results(records=(*many, *few)).accuracy("hard") == 0.5
    with pytest.raises(InputError, match="no answers of kind 'x' scored by None"):
        Results(records=tuple(many)).accuracy("x")
    with pytest.raises(InputError, match="no answers of kind 'average' scored by 'letter'"):
        Results(records=tuple(many)).accuracy(scoring="letter")


def test_paired_results_compare_what_both_answered() -> None:
    a = Results(records=tuple(record(i, right=True) for i in range(20)))
    b = Results(records=tuple(record(i, right=i % 4 != 0) for i in range(4, 30)))
    found = paired_interval(a, b)
    assert found.value == pytest.approx(4 / 16)
    assert found.low < found.value < found.high
    assert paired_interval(b, a).value == pytest.approx(-4 / 16)
    with pytest.raises(InputError, match="no question in common"):
        paired_interval(a, b, kind="other")
    other = Record(id="0", kind="k", scoring="options", answer="b", gold="b", right=True)
    with pytest.raises(InputError, match=r"'0' of kind 'k' is not the same .* 'a' in one, 'b' in"):
        paired_interval(a, Results(records=(other,)))
