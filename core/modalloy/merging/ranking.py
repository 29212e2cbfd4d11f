"""The magnitude at a rank of each of several deltas, exactly, chunk by chunk."""

import math
import threading
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np

from modalloy.checkpoints.mapped import MappedTensor
from modalloy.kernels.cpu import selecting
from modalloy.merging.operands import Stretch, cut, place
from modalloy.merging.schedule import Step
from modalloy.merging.sources import Operand, Pair

_SAMPLE = 1 << 16
_RUN = 32
"""Neighbours that are sampled together: they come by one cache line or two."""
_SIGMAS = 4
_SLACK = 16
_COARSE = 15
"""Bits of a magnitude that the first of the histogram's two passes does not look at."""


@attrs.frozen(eq=False)
class Wanted:
    """A magnitude that is looked for.

    Attributes:
        operand: Of the delta.
        rank: 1 is the largest.
    """

    operand: Operand
    rank: int


def find_ranks(
    base: MappedTensor, first: int, elements: int, wanted: Sequence[Wanted]
) -> Generator[Step, list[Any], list[float]]:
    """Find magnitudes, as steps of a job.

    Args:
        base: What deltas are differences from.
        first: Number of the first element.
        elements: Of the piece.
        wanted: What is looked for.

    Returns:
        The magnitudes.
    """
    piece = _Piece(base, first, elements)
    if elements <= _SAMPLE:
        exact = yield [partial(_exactly, piece, one) for one in wanted]
        return [_magnitude(bits) for bits in exact]
    brackets = yield [partial(_bracket, piece, one) for one in wanted]
    # All deltas of a stretch one after the other: the base comes from memory once.
    tallies = yield [
        partial(_tally, piece, wanted, stretch, brackets)
        for stretch in cut(elements, [one.operand for one in wanted])
    ]
    found = []
    for i, one in enumerate(wanted):
        bits = _pick([tally[i] for tally in tallies], one.rank)
        if bits is None:
            bits = yield from _refine(piece, one)
        found.append(_magnitude(bits))
    return found


def _magnitude(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


@attrs.frozen(eq=False)
class _Piece:
    """Elements of a tensor."""

    base: MappedTensor
    first: int
    elements: int

    def sizes(self, operand: Operand, stretch: Stretch) -> Any:
        """Return the magnitudes of a stretch as bits."""
        return selecting.sizes(*self.place(operand, stretch), stretch.count)

    def place(self, operand: Operand, stretch: Stretch) -> tuple[Any, Any, bool]:
        """Return addresses and dtypes of base and operand, and whether it is a delta."""
        inputs = place(self.base, self.first, (self.base, operand), stretch, values=False)
        return inputs.addresses, inputs.codes, bool(inputs.is_delta[1])


def _exactly(piece: _Piece, wanted: Wanted) -> int:
    """Return the bits of the magnitude at a rank of a small piece."""
    sizes = piece.sizes(wanted.operand, Stretch(0, piece.elements))
    place_ = piece.elements - wanted.rank
    return int(np.partition(sizes, place_)[place_])


def _bracket(piece: _Piece, wanted: Wanted) -> tuple[int, int, int]:
    """Return magnitudes, as bits, that the one at a rank lies between, almost surely.

    The one in the middle is the likeliest.
    """
    sample = _sample(piece, wanted.operand)
    share = (wanted.rank - 0.5) / piece.elements
    middle = len(sample) * share
    margin = _SIGMAS * math.sqrt(middle * (1 - share)) + _SLACK
    # Ranks count from the largest, places in the sorted sample from the smallest.
    last = len(sample) - 1
    low, center, high = (last - math.floor(middle + off) for off in (margin, 0, -margin))
    places = [min(max(place_, 0), last) for place_ in (low, center, high)]
    marks = [int(mark) for mark in np.partition(sample, places)[places]]
    if low < 0:
        marks[0] = 0
    if high > last:
        marks[2] = selecting.SIZE_BITS
    return marks[0], marks[1], marks[2]


def _sample(piece: _Piece, operand: Operand) -> Any:
    """Return the magnitudes of about :data:`_SAMPLE` elements, evenly spread, as bits."""
    width = operand.A.shape[1] if isinstance(operand, Pair) else _RUN
    rows = piece.elements // width
    count = max(min(_SAMPLE // width, rows), 1)
    starts = width * (np.arange(count) * (rows - 1) // max(count - 1, 1))
    if isinstance(operand, Pair):
        parts = [piece.sizes(operand, Stretch(int(start), width)) for start in starts]
        return np.concatenate(parts)
    inputs = piece.place(operand, Stretch(0, piece.elements))
    return selecting.sample(*inputs, starts, width)


_Tally = tuple[int, Any, Any, bool]
"""What lies above a bracket, the values within it, their counts, and whether that is all."""


def _tally(
    piece: _Piece,
    wanted: Sequence[Wanted],
    stretch: Stretch,
    brackets: Sequence[tuple[int, int, int]],
) -> list[_Tally]:
    found = []
    for one, bracket in zip(wanted, brackets, strict=True):
        inputs = piece.place(one.operand, stretch)
        found.append(selecting.tally(*inputs, stretch.count, np.array(bracket, np.uint32)))
    return found


def _pick(tallies: Sequence[_Tally], rank: int) -> int | None:
    """Return the magnitude at a rank, or ``None`` where the bracket does not hold it."""
    if not all(whole for *_, whole in tallies):
        return None
    rank -= sum(above for above, *_ in tallies)
    values = np.concatenate([values for _, values, _, _ in tallies])
    counts = np.concatenate([counts for _, _, counts, _ in tallies])
    if not 0 < rank <= counts.sum():
        return None
    order = np.argsort(values)[::-1]
    reached = np.cumsum(counts[order])
    return int(values[order[np.searchsorted(reached, rank)]])


def _refine(piece: _Piece, wanted: Wanted) -> Generator[Step, list[Any], int]:
    """Find a magnitude by a histogram of high bits, and one of the rest in the bin found."""
    low, rank = 0, wanted.rank
    for shift in (_COARSE, 0):
        bins = np.zeros(selecting.BINS, np.int64)
        lock = threading.Lock()
        yield [
            partial(_count, piece, wanted.operand, stretch, low, shift, bins, lock)
            for stretch in cut(piece.elements, (wanted.operand,))
        ]
        usable = bins[: 1 << _COARSE] if shift == 0 else bins
        above = np.cumsum(usable[::-1])
        place_ = int(np.searchsorted(above, rank))
        rank -= int(above[place_ - 1]) if place_ else 0
        low += (len(usable) - 1 - place_) << shift
    return low


def _count(
    piece: _Piece,
    operand: Operand,
    stretch: Stretch,
    low: int,
    shift: int,
    bins: Any,
    lock: threading.Lock,
) -> None:
    addresses, codes, is_delta = piece.place(operand, stretch)
    counted = selecting.histogram(
        addresses, codes, is_delta, stretch.count, np.uint32(low), np.uint32(shift)
    )
    with lock:
        bins += counted
