"""Sparse merges as one Triton kernel: every tensor is read once, the result written once."""

from collections.abc import Sequence

import torch
import triton
from triton import language as tl

from modalloy.kernels.launching import THREADS, streaming_options
from modalloy.kernels.philox import BLOCK, COUNTERS
from modalloy.kernels.sparse.rule import WORDS, Bounds, Rule

RUN = tl.constexpr(COUNTERS)
# Their alignment and their values change from call to call and are of no use to the compiler.
VARYING = ("weights", "gains", "lower", "upper", "draws", "first_block")
ROOMY = 8
"""Parents whose signs are elected by 128 threads."""


@triton.jit
def _draw(
    draws: tl.tensor,
    block: tl.tensor,
    anchor: tl.tensor,
    COUNT: tl.constexpr,  # noqa: N803
) -> tl.tensor:
    """Return which of a block's 4096 elements the parents keep.

    Bit ``4 * i + r`` of entry ``j`` says whether parent ``i`` keeps element ``1024 * r + j``.
    Philox makes four words at once; as bits, they wait for their turn in one register.

    Args:
        draws: Pointer to ``(2, COUNT)`` int64: keys, and the words below which is kept.
        block: Number of the block in the whole tensor, int64.
        anchor: ``(1024,)`` float32, all 0, loaded as the parents will be: it makes the compiler
            lay out the words over the threads as it does the values. It would not by itself, and
            would pass every single mask through shared memory.
        COUNT: Number of parents.
    """
    counter = block * RUN + tl.arange(0, RUN)
    low = counter.to(tl.uint32) + anchor.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    bits = tl.zeros((RUN,), tl.int32 if 4 * COUNT <= 32 else tl.int64)  # noqa: PLR2004
    # A loop at run time: unrolled, the parents' rounds are interleaved and registers run out.
    for i in range(COUNT):
        key, bound = tl.load(draws + i), tl.load(draws + COUNT + i)
        w0, w1, w2, w3 = tl.philox(key, low, high, low * 0, low * 0)
        kept = (w0.to(tl.int64) < bound).to(bits.dtype)
        kept = kept | ((w1.to(tl.int64) < bound).to(bits.dtype) << 1)
        kept = kept | ((w2.to(tl.int64) < bound).to(bits.dtype) << 2)
        kept = kept | ((w3.to(tl.int64) < bound).to(bits.dtype) << 3)
        bits = bits | (kept << (4 * i))
    return bits


@triton.jit(do_not_specialize=VARYING)
def delta_merge_kernel(  # noqa: C901, PLR0912, PLR0913, PLR0917 -- settled when compiling
    out: tl.tensor,
    base: tl.tensor,
    parents: tl.tuple,
    weights: tl.tensor,
    gains: tl.tensor,
    lower: tl.tensor,
    upper: tl.tensor,
    draws: tl.tensor,
    first_block: tl.tensor,
    divisor: tl.tensor,
    scale: tl.tensor,
    size: tl.tensor,
    COUNT: tl.constexpr,  # noqa: N803
    DELTAS: tl.constexpr,  # noqa: N803
    ELECT: tl.constexpr,  # noqa: N803
    NORMALIZE: tl.constexpr,  # noqa: N803
    SCALE: tl.constexpr,  # noqa: N803
) -> None:
    """Merge a block of 4096 elements, in four runs of 1024; see :func:`delta_merge`.

    ``out``, ``base`` and the parents point to ``(size,)`` of any types; the parents are a tuple of
    pointers and no array of addresses, so that each one's alignment is known and accesses can be
    128 bits wide. ``weights``, ``gains``, ``lower`` and ``upper`` point to ``(COUNT,)`` float32,
    ``draws`` to ``(2, COUNT)`` int64, see :func:`_draw`; the last three may be None. ``DELTAS`` is
    a set of parents, one bit each.
    """
    block = tl.program_id(0).to(tl.int64)
    if draws is not None:
        at = block * RUN + tl.arange(0, RUN)
        # A mask that is nowhere true, and no compiler can know that: nothing is read.
        anchor = tl.load(base + at, mask=at < -size, other=0.0).to(tl.float32)
        bits = _draw(draws, first_block + block, anchor, COUNT)
    for run in range(4):
        at = (block * 4 + run) * RUN + tl.arange(0, RUN)
        inside = at < size
        origin = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros((RUN,), tl.float32)
        if ELECT:
            # What would be summed under either sign, so that no delta is kept until one is known.
            above, below, above_weight, below_weight = total, total, total, total
        for i in tl.static_range(COUNT):
            delta = tl.load(parents[i] + at, mask=inside, other=0.0).to(tl.float32)
            if not (DELTAS >> i) & 1:
                delta = delta - origin
            value = tl.load(gains + i) * delta
            if lower is not None:
                value = tl.where(tl.abs(delta) < tl.load(lower + i), 0.0, value)
            if upper is not None:
                value = tl.where(tl.abs(delta) > tl.load(upper + i), 0.0, value)
            if draws is not None:
                value = tl.where(((bits >> (4 * i + run)) & 1) != 0, value, 0.0)
            total = total + value
            if ELECT:
                above = above + tl.where(value > 0, value, 0.0)
                below = below + tl.where(value < 0, value, 0.0)
                weight = tl.load(weights + i)
                above_weight = above_weight + tl.where(value > 0, weight, 0.0)
                below_weight = below_weight + tl.where(value < 0, weight, 0.0)
        if ELECT:
            agreeing = tl.where(total >= 0, above_weight, below_weight)
            elected = tl.where(total >= 0, above, below)
            total = tl.where(total != total, total, elected)  # noqa: PLR0124 - it is NaN
        else:
            agreeing = tl.full((RUN,), divisor, tl.float32)
        if NORMALIZE:
            # "/" is a fast division, off by up to two units in the last place.
            total = tl.div_rn(total, tl.where(agreeing == 0, 1.0, agreeing))
        if SCALE:
            total = scale * total
        tl.store(out + at, (origin + total).to(out.dtype.element_ty), mask=inside)


def delta_merge(
    base: torch.Tensor, parents: Sequence[torch.Tensor], rule: Rule, out_dtype: torch.dtype
) -> torch.Tensor:
    """Return the merge that ``rule`` describes, see :func:`modalloy.kernels.sparse.delta_merge`.

    Args:
        base: Any shape; bfloat16, float16 or float32.
        parents: Likewise, of the base's shape, at most 16.
        rule: What is kept of each parent and how it is summed.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        Of the base's shape.
    """
    out = torch.empty_like(base, dtype=out_dtype)
    if out.numel() == 0:
        return out
    numbers = _on_device([rule.weights, rule.gains], torch.float32, base.device)
    with torch.cuda.device_of(out):
        delta_merge_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            out,
            base,
            tuple(parents),
            numbers[0],
            numbers[1],
            _bounds(rule.lower, base.device),
            _bounds(rule.upper, base.device),
            _draws(rule, base.device),
            rule.start // BLOCK,
            rule.divisor,
            rule.scale,
            out.numel(),
            COUNT=len(parents),
            DELTAS=sum(1 << i for i, yes in enumerate(rule.is_delta) if yes),
            ELECT=rule.elect,
            NORMALIZE=rule.normalize,
            SCALE=rule.scale != 1,
            **streaming_options(out.device, _threads(rule)),
        )
    return out


def _threads(rule: Rule) -> int:
    """Return how many threads share a block.

    The sums under either sign of more than eight parents, with all their masks, do not fit the
    registers of 128 threads; of 256 they do, at 64 bits of bfloat16 per access.
    """
    return 2 * THREADS if rule.elect and len(rule.weights) > ROOMY else THREADS


def _bounds(bounds: Bounds | None, device: torch.device) -> torch.Tensor | None:
    """Return bounds as ``(N,)`` float32 on the device."""
    if bounds is None or isinstance(bounds, torch.Tensor):
        return bounds
    return _on_device([bounds], torch.float32, device)


def _draws(rule: Rule, device: torch.device) -> torch.Tensor | None:
    """Return ``(2, N)`` int64 keys and thresholds; None if all values of all parents are kept."""
    if rule.thresholds is None or min(rule.thresholds) >= WORDS:
        return None
    keys = [key - 2**64 if key >= 2**63 else key for key in rule.keys]
    return _on_device([keys, rule.thresholds], torch.int64, device)


def _on_device(
    rows: Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return a table on the device without waiting for what the device is doing.

    Tables rather than arguments of the kernel, which would all be held in scalar registers: AMD's
    run out with eight parents.
    """
    table = torch.tensor(rows, dtype=dtype)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
