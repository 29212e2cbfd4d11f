"""Weighted sums as one Triton kernel: every tensor is read once, the result written once."""

from collections.abc import Sequence

import torch
import triton
from triton import language as tl

from modalloy.kernels.launching import streaming_options

BLOCK = 1024


@triton.jit
def weighted_sum_kernel(
    out: tl.tensor,
    tensors: tl.tuple,
    weights: tl.tuple,
    divisor: tl.tensor,
    size: tl.tensor,
    COUNT: tl.constexpr,  # noqa: N803
    DIVIDE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """Compute ``BLOCK`` elements of the sum.

    Args:
        out: Pointer to ``(size,)``, any type.
        tensors: ``COUNT`` pointers to ``(size,)``, any types. A tuple, not an array of addresses:
            so each pointer's alignment is known, and accesses can be 128 bits wide.
        weights: ``COUNT`` float32.
        divisor: float32.
        size: Number of elements.
        COUNT: Number of tensors.
        DIVIDE: Whether the divisor is used.
        BLOCK: Elements per program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(COUNT):
        x = tl.load(tensors[i] + at, mask=inside, other=0.0).to(tl.float32)
        total = total + weights[i] * x
    if DIVIDE:
        # "/" is a fast division, off by up to two units in the last place.
        total = tl.div_rn(total, tl.full((BLOCK,), divisor, tl.float32))
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def weighted_sum(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    divisor: float,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Return the weighted sum of checked arguments, see :func:`modalloy.kernels.weighted`.

    Args:
        tensors: Of one shape each, at most 16, bfloat16, float16 or float32.
        weights: One per tensor, float32 values.
        divisor: A float32 value.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        Of the tensors' shape.
    """
    out = torch.empty_like(tensors[0], dtype=out_dtype)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(out):
        weighted_sum_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            out,
            tuple(tensors),
            tuple(weights),
            divisor,
            out.numel(),
            COUNT=len(tensors),
            DIVIDE=divisor != 1,
            BLOCK=BLOCK,
            **streaming_options(out.device),
        )
    return out
