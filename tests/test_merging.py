"""Merge methods of one layer, against definitions written out value by value."""

import math
from typing import Any

import pytest
import torch

from modalloy.builtin import register_merge_methods
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.errors import DeltaError, SpecError
from modalloy.merging import functions, methods
from modalloy.merging.merged import Merged, complete_options, run_merge
from modalloy.merging.representing import exact_pair, truncated_pair
from modalloy.modality import API_VERSION, MergeMethod, Modality


def pair(seed: int, outs: int = 10, ins: int = 8, rank: int = 2, scale: float = 1.5) -> LowRankPair:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, ins, generator=draw), torch.randn(outs, rank, generator=draw)
    return LowRankPair(a, b, scale)


def by_hand_ties(deltas: list[torch.Tensor], density: float) -> torch.Tensor:
    """TIES as the paper words it, one value at a time."""
    kept = max(int(density * deltas[0].numel()), 1)
    cuts = [sorted(map(abs, d.flatten().tolist()))[-kept] for d in deltas]
    out = []
    for found in zip(*(d.flatten().tolist() for d in deltas), strict=True):
        values = [v if abs(v) >= cut else 0.0 for v, cut in zip(found, cuts, strict=True)]
        direction = math.copysign(1.0, sum(values)) if sum(values) else 0.0
        agreeing = [v for v in values if v * direction > 0]
        out.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return torch.tensor(out).view(deltas[0].shape)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_is_trim_elect_and_disjoint_mean(density: float) -> None:
    deltas = [pair(seed).dense() for seed in range(4)]
    torch.testing.assert_close(methods.ties(deltas, density), by_hand_ties(deltas, density))


def test_ties_on_values_worked_out_by_hand() -> None:
    one = torch.tensor([[4.0, -3.0, 1.0, 2.0, 2.0]])
    two = torch.tensor([[2.0, 5.0, 1.0, -2.0, 0.0]])
    merged = methods.ties([one, two], density=0.8)
    assert merged.tolist() == [[3.0, 5.0, 1.0, 0.0, 2.0]], "at most five values are kept of ties"


def test_trimming_keeps_the_largest_by_magnitude() -> None:
    delta = torch.tensor([[0.1, -0.9], [0.5, -0.2]])
    assert torch.equal(methods.trim(delta, 0.5), torch.tensor([[0.0, -0.9], [0.5, 0.0]]))
    assert methods.trim(delta, 1e-9).count_nonzero() == 1


def dense_swudi(deltas: list[torch.Tensor], keep: int, time: float) -> torch.Tensor:
    """The closed form on whole matrices: eigenvectors of an I by I matrix."""
    deltas = [d.double() for d in deltas]
    c = sum(d.T @ d / d.norm() ** 2 for d in deltas)
    goal = sum(d @ d.T @ d / d.norm() ** 2 for d in deltas)
    start: Any = sum(deltas)
    values, vectors = torch.linalg.eigh(c)
    values, vectors = values[-keep:], vectors[:, -keep:]
    f = 1 - torch.exp(-time * values)
    out = start - start @ vectors @ torch.diag(f) @ vectors.T
    return (out + goal @ vectors @ torch.diag(f / values) @ vectors.T).float()


@pytest.mark.parametrize(("share", "keep"), [(1.0, 6), (0.5, 3)])
def test_swudi_in_the_span_is_swudi_on_whole_matrices(share: float, keep: int) -> None:
    pairs = [pair(seed, outs=12, ins=20) for seed in range(3)]
    merged = methods.swudi(pairs, share=share, time=20.0)
    assert merged.rank == 6, "no more than the parents' ranks together"
    goal = dense_swudi([p.dense() for p in pairs], keep, 20.0)
    torch.testing.assert_close(merged.dense(), goal, rtol=1e-4, atol=1e-5)


def test_swudi_for_all_time_is_the_least_interference() -> None:
    pairs = [pair(seed, outs=12, ins=9) for seed in range(3)]
    deltas = [p.dense().double() for p in pairs]

    def interference(tau: torch.Tensor) -> float:
        terms = [(tau - d) @ d.T for d in deltas]
        return float(sum(t.norm() ** 2 / d.norm() ** 2 for t, d in zip(terms, deltas, strict=True)))

    best = methods.swudi(pairs, share=1.0, time=1e6).dense().double()
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.randn(best.shape, generator=draw).double() * 0.05
        assert interference(best) < interference(best + step)
    assert interference(best) < interference(methods.task_sum(deltas))


def test_swudi_of_a_wide_span_of_repeated_and_of_empty_deltas() -> None:
    same = pair(1, rank=3)
    twice = methods.swudi([same, same], share=1.0, time=1e6)
    torch.testing.assert_close(twice.dense(), same.dense(), rtol=1e-4, atol=1e-5)
    many = methods.swudi([pair(s, ins=5, rank=4) for s in range(3)])
    assert many.rank == 5, "a span is no wider than the layer's input"
    empty = LowRankPair(same.A, torch.zeros_like(same.B), 1.0)
    assert not methods.swudi([empty, empty]).dense().any()
    alone = methods.swudi([empty, same], share=1.0, time=1e6)
    torch.testing.assert_close(alone.dense(), same.dense(), rtol=1e-4, atol=1e-5)


def test_factor_mean_mixes_the_factors_of_parents() -> None:
    one, two = pair(1), pair(2)
    goal = 1.5 * ((one.B + two.B) / 2) @ ((one.A + two.A) / 2)
    merged = methods.factor_mean([one, two])
    assert merged.rank == 2
    torch.testing.assert_close(merged.dense(), goal)
    assert not torch.allclose(merged.dense(), (one.dense() + two.dense()) / 2, atol=0.1)
    for other in (pair(2, rank=3), pair(2, scale=2.0)):
        with pytest.raises(DeltaError, match=r"one rank and scale; found rank 2 scale 1\.5, ra"):
            methods.factor_mean([one, other])


def test_a_mask_keeps_what_a_parent_agrees_with() -> None:
    delta = torch.tensor([[1.0, 1.0, -1.0, 0.0, 0.4]])
    merged = torch.tensor([[1.5, 3.0, 1.0, 1.0, 0.0]])
    assert methods.mmer_mask(delta, merged).tolist() == [[True, False, False, False, False]]
    assert methods.mmer_mask(delta, merged, 0.5).tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 4)])
def test_dense_deltas_are_held_exactly_or_truncated(shape: tuple[int, int]) -> None:
    delta = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    exact = exact_pair(delta)
    assert exact.rank == min(shape)
    assert torch.equal(exact.dense(), delta)
    cut, error = truncated_pair(delta, 2)
    u, s, v = torch.linalg.svd(delta)
    torch.testing.assert_close(cut.dense(), u[:, :2] * s[:2] @ v[:2])
    assert cut.rank == 2
    assert error == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-5)
    assert truncated_pair(delta, 99)[1] == 0.0
    assert torch.equal(truncated_pair(delta, 99)[0].dense(), delta)


def parents() -> dict[str, LowRankDelta]:
    return {
        "b": LowRankDelta({"x": pair(1), "y": pair(2)}),
        "a": LowRankDelta({"x": pair(3)}),
    }


def test_a_module_of_one_parent_is_merged_from_that_one() -> None:
    merged = functions.merge_ties(parents(), {}, density=1.0, scale=2.0, rank=0)
    assert merged.text is not None
    torch.testing.assert_close(merged.text.pairs["y"].dense(), 2 * pair(2).dense())
    x = by_hand_ties([pair(3).dense(), pair(1).dense()], 1.0)
    torch.testing.assert_close(merged.text.pairs["x"].dense(), 2 * x)
    assert merged.record == {"relative_error": {"mean": 0.0, "worst": 0.0}}


def test_mmer_gives_each_modality_its_part_of_the_merged_delta() -> None:
    naive = parents()
    merged = functions.merge_mmer(naive, naive, density=0.5, strictness=1.0, rank=0)
    assert merged.text is not None
    assert merged.own is not None
    whole = merged.text.pairs["x"].dense()
    for name, delta in naive.items():
        part, own = merged.own[name].pairs["x"].dense(), delta.pairs["x"].dense()
        kept = part != 0
        assert torch.equal(part[kept], whole[kept])
        agrees = (own * whole > 0) & (own.abs() >= (whole - own).abs())
        assert torch.equal(kept, agrees)
    assert "y" not in merged.own["a"].pairs
    assert 0 < merged.record["kept_by_masks"] < 1


def test_parents_of_different_bases_do_not_merge() -> None:
    odd = {"a": LowRankDelta({"x": pair(1)}), "b": LowRankDelta({"x": pair(1, outs=11)})}
    with pytest.raises(DeltaError, match=r"x: the parents' deltas have shapes \[\(10, 8\), \(11"):
        functions.merge_ties(odd, {}, density=0.2, scale=1.0, rank=0)
    odd = {"a": LowRankDelta({"x": pair(1)}), "b": LowRankDelta({"x": pair(1, rank=3)})}
    with pytest.raises(DeltaError, match="x: factors can only be averaged where all parents have"):
        functions.merge_factor_means(odd, {})


def builtin(name: str) -> MergeMethod:
    found: dict[str, MergeMethod] = {}
    register_merge_methods(lambda method: found.update({method.name: method}))
    return found[name]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("ties", {"densty": 0.1}, ("'ties' has no option 'densty'; it takes density, rank, scale. "
         "Did you mean 'density'?")),
        ("damc", {"rank": 1}, "'damc' has no option 'rank'; it takes none."),
        ("ties", {"rank": 1.0}, "option 'rank' must be an integer, found 1.0"),
        ("ties", {"density": "1"}, "option 'density' must be a finite number, found '1'"),
        ("ties", {"density": True}, "must be a finite number, found True"),
        ("swudi", {"share": math.nan}, "option 'share' must be a finite number, found nan"),
        ("ties", {"density": 0.0}, "option 'density' must be above 0 and at most 1, found 0.0"),
        ("mmer", {"density": 2}, "option 'density' must be above 0 and at most 1, found 2"),
        ("mmer", {"strictness": -1}, "option 'strictness' must not be negative, found -1"),
        ("mmer", {"rank": -1}, "option 'rank' must be 0 (exact) or more, found -1"),
        ("swudi", {"time": 0}, "option 'time' must be above 0, found 0"),
        ("swudi", {"share": 1.5}, "option 'share' must be above 0 and at most 1, found 1.5"),
    ],
)  # fmt: skip
def test_options_that_are_refused(method: str, given: Any, message: str) -> None:
    kind = builtin(method)
    with pytest.raises(SpecError) as caught:
        run_merge(kind, parents(), parents(), complete_options(kind, given))
    assert message in str(caught.value)


def method(**kwargs: Any) -> MergeMethod:
    options = {"name": "mine", "api_version": API_VERSION, "summary": "", "strategies": ("naive",)}
    return MergeMethod(**(options | {"decoupled": True, "rules": ("presence",)} | kwargs))


@pytest.mark.parametrize(
    ("returned", "decoupled", "message"),
    [
        (None, True, "its merge function returned NoneType, expected Merged"),
        (Merged(None), False, "its merge function returned no text delta, which is all"),
        (Merged(None, {"z": LowRankDelta({})}), True, "modality deltas for z, expected a, b"),
        (Merged(LowRankDelta({}), {"z": LowRankDelta({})}), False, "for z, expected none"),
    ],
)
def test_what_a_merge_function_must_return(returned: Any, message: str, *, decoupled: bool) -> None:
    kind = method(merge=lambda _text, _own: returned, decoupled=decoupled)
    with pytest.raises(SpecError) as caught:
        run_merge(kind, parents(), parents() if decoupled else {}, {})
    assert message in str(caught.value)
    assert "an error of the plugin that offers it" in str(caught.value)


def test_a_merge_function_sees_parents_by_sorted_name() -> None:
    seen: list[Any] = []

    def merge(text: Any, own: Any, *, strength: float) -> Merged:
        seen.append((list(text), list(own), strength))
        return Merged(None)

    kind = method(merge=merge, options={"strength": 0.5})
    lines: list[str] = []
    run_merge(kind, parents(), parents(), complete_options(kind, {"strength": 2}), lines.append)
    assert seen == [(["a", "b"], ["a", "b"], 2)]
    assert lines == ["merging the text deltas of a, b by 'mine'"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"options": {"x": 1}}, "got {'x': 1} and no merge function"),
        ({"options": {"x": "1"}, "merge": "a:b"}, "options must be finite numbers by name"),
        ({"merge": "nowhere"}, "merge must be a callable or 'package.module:attribute'"),
    ],
)
def test_methods_that_are_malformed(kwargs: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        method(**kwargs)
    assert message in str(caught.value)


def test_no_modality_is_called_merged() -> None:
    with pytest.raises(SpecError, match=r"Modality\.name 'merged' is taken: it stands for the"):
        Modality(
            name="merged",
            api_version=API_VERSION,
            content_type="image",
            placeholder="<|x|>",
            read="a:b",
            limits={"bytes": 1},
        )
