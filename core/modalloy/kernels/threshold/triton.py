"""The k-th largest magnitude from two histograms, each made in one pass over the tensors.

A magnitude has 31 bits. The first pass counts the values by their 16 high bits; the bin that holds
the one looked for is found on the device, and the second pass counts the values in it by their
other 15 bits. Nothing is sorted or copied, and the host waits for nothing.
"""

import torch
import triton
from triton import language as tl

from modalloy.kernels.launching import streaming_options

BLOCK = 1024
LOW = 15
"""Bits that the second pass tells apart."""
COARSE, FINE = 1 << 31 - LOW, 1 << LOW
COPIES = 16
"""Histograms that the programs take turns in, so that fewer of them wait for the same counter."""

_LOW = tl.constexpr(LOW)


@triton.jit
def count_kernel(
    counts: tl.tensor,
    base: tl.tensor,
    parent: tl.tensor,
    chosen: tl.tensor,
    size: tl.tensor,
    BINS: tl.constexpr,  # noqa: N803
    COPIES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """Count ``BLOCK`` values other than 0 by the bits of their magnitude.

    Zeros are what remains: where few weights were trained, all programs would wait for their
    counter.

    Args:
        counts: Pointer to ``(COPIES, BINS)`` int32.
        base: Pointer to ``(size,)``, or None where ``parent`` is the delta.
        parent: Pointer to ``(size,)``.
        chosen: Pointer to an int64, the high bits of the values that are counted by their low
            ones; None for counting all by their high bits.
        size: Number of elements.
        BINS: Number of bins.
        COPIES: Number of histograms.
        BLOCK: Elements per program.
    """
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    delta = tl.load(parent + at, mask=inside, other=0.0).to(tl.float32)
    if base is not None:
        delta = delta - tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    bits = delta.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    counted = inside & (bits != 0)
    place = bits >> _LOW
    if chosen is not None:
        counted = counted & (place == tl.load(chosen))
        place = bits & (BINS - 1)
    here = counts + (block % COPIES) * BINS + place
    tl.atomic_add(here, tl.full((BLOCK,), 1, tl.int32), mask=counted, sem="relaxed")


def kth_largest(
    base: torch.Tensor, parent: torch.Tensor, count: int, *, is_delta: bool
) -> torch.Tensor:
    """Return the magnitude, see :func:`modalloy.kernels.threshold.kth_largest`.

    Args:
        base: Any shape; bfloat16, float16 or float32.
        parent: Likewise, of the base's shape, at most 2**34 elements.
        count: From 1 to the number of elements.
        is_delta: Whether ``parent`` is the delta itself.

    Returns:
        Float32 without dimensions.
    """
    origin = None if is_delta else base
    with torch.cuda.device_of(parent):
        coarse = _histogram(origin, parent, COARSE, None)
        zeros = parent.numel() - coarse.sum()
        coarse[0] += zeros
        high, rank = _find(coarse, torch.full_like(zeros, count))
        fine = _histogram(origin, parent, FINE, high)
        fine[0] += torch.where(high == 0, zeros, 0)
        low, _ = _find(fine, rank)
    return (high << LOW | low).to(torch.int32).view(torch.float32)


def _histogram(
    base: torch.Tensor | None, parent: torch.Tensor, bins: int, chosen: torch.Tensor | None
) -> torch.Tensor:
    """Return how many values other than 0 fall in each bin, ``(bins,)`` int64."""
    counts = torch.zeros((COPIES, bins), dtype=torch.int32, device=parent.device)
    count_kernel[(triton.cdiv(parent.numel(), BLOCK),)](
        counts,
        base,
        parent,
        chosen,
        parent.numel(),
        BINS=bins,
        COPIES=COPIES,
        BLOCK=BLOCK,
        **streaming_options(parent.device),
    )
    return counts.sum(0)


def _find(counts: torch.Tensor, rank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bin of the ``rank``-th value from the top, and its rank in there from the top.

    Args:
        counts: ``(bins,)`` int64.
        rank: int64 without dimensions, at least 1.
    """
    from_top = counts.flip(0).cumsum(0).flip(0)
    # Tensors throughout; an index taken from the device would be waited for, gather's is not.
    place = (from_top >= rank).sum() - 1
    above = (from_top - counts).gather(0, place.view(1)).view(())
    return place, rank - above
