"""Compressing dense deltas: nearest pairs, honest errors, the same bits every time."""

from typing import Any

import pytest
import torch

from modalloy.deltas import compress as module
from modalloy.deltas.compress import Compression, compress
from modalloy.errors import SpecError


def matrix(outs: int, ins: int, seed: int = 0, decay: float = 0.9) -> torch.Tensor:
    """A matrix whose singular values fall by ``decay`` each."""
    generator = torch.Generator().manual_seed(seed)
    short = min(outs, ins)
    u, v = (
        torch.linalg.qr(torch.randn(n, short, generator=generator, dtype=torch.float64)).Q
        for n in (outs, ins)
    )
    return ((u * decay ** torch.arange(short)) @ v.T).float()


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (48, 48)])
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_no_pair_of_that_rank_is_nearer(shape: tuple[int, int], rank: int) -> None:
    delta = matrix(*shape)
    found = compress(delta, Compression(rank=rank))
    values = torch.linalg.svdvals(delta.double())
    best = float((values[rank:].square().sum() / values.square().sum()).sqrt())
    assert found.rank == rank
    assert found.pair is not None
    missing = float((delta - found.pair.dense()).norm() / delta.norm())
    assert missing == pytest.approx(best, abs=2e-6)
    assert found.error == pytest.approx(missing, abs=2e-6)


def test_energy_takes_as_few_directions_as_hold_it() -> None:
    delta = matrix(50, 70)
    values = torch.linalg.svdvals(delta.double()).square()
    found = compress(delta, Compression(energy=0.9))
    share = values.cumsum(0) / values.sum()
    assert found.rank == int((share < 0.9).sum()) + 1
    assert 0.9 <= found.energy < float(share[found.rank]) + 1e-6


@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
def test_the_randomised_way_is_nearly_the_best(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = matrix(*shape, decay=0.98)
    best = compress(delta, Compression(rank=20))
    sought = compress(delta, Compression(energy=0.5))
    monkeypatch.setattr(module, "EXACT", 0)
    found = compress(delta, Compression(rank=20))
    assert found.error == pytest.approx(best.error, rel=1e-3)
    assert found.error >= best.error - 1e-6
    assert compress(delta, Compression(energy=0.5)).rank == sought.rank


def test_a_matrix_of_low_rank_is_held_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    b, a = torch.randn(64, 5, generator=generator), torch.randn(5, 80, generator=generator)
    found = compress(b @ a, Compression(energy=0.999999))
    assert found.rank == 5
    assert found.error < 1e-6


def test_rounding_counts_into_the_error() -> None:
    delta = matrix(40, 60, decay=0.5)
    whole = compress(delta, Compression(rank=40))
    rounded = compress(delta, Compression(rank=40), dtype=torch.bfloat16)
    assert whole.error < 1e-6
    assert 1e-3 < rounded.error < 1e-2
    assert rounded.pair is not None
    assert rounded.pair.A.dtype == torch.bfloat16


def test_draws_depend_on_seed_and_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", 0)
    delta = matrix(200, 300, decay=0.99)
    first, again = (compress(delta, Compression(rank=8), name="x") for _ in range(2))
    torch.manual_seed(5)
    other = compress(delta, Compression(rank=8, seed=1), name="x")
    assert first.pair is not None
    assert again.pair is not None
    assert other.pair is not None
    assert torch.equal(first.pair.A, again.pair.A)
    assert not torch.equal(first.pair.A, other.pair.A)


def test_nothing_tuned_gives_no_pair() -> None:
    found = compress(torch.zeros(4, 6), Compression(rank=2))
    assert (found.pair, found.rank, found.error, found.energy) == (None, 0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give rank, energy or both"),
        ({"rank": 0}, "rank must be a positive integer, found 0"),
        ({"rank": True}, "rank must be a positive integer, found True"),
        ({"energy": 0.0}, "energy must be above 0 and at most 1, found 0.0"),
        ({"energy": 1.5}, "energy must be above 0 and at most 1, found 1.5"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Compression(**options)
