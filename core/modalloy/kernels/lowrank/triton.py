"""Folding of low-rank pairs as one Triton kernel: the product never is in memory by itself."""

import torch
import triton
from torch.nn import functional as F
from triton import language as tl

TILE = 64
"""Rows and columns of the weight that one program computes."""
RANKS = 16
"""Ranks that are multiplied at a time, the fewest that tl.dot takes."""


@triton.jit
def lowrank_fold_kernel(
    out: tl.tensor,
    weight: tl.tensor,
    b: tl.tensor,
    a: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rank: tl.tensor,
    TILE: tl.constexpr,  # noqa: N803
    RANKS: tl.constexpr,  # noqa: N803
) -> None:
    """Compute one tile of ``W + B @ A``.

    Args:
        out: Pointer to ``(rows, columns)``, any type.
        weight: Likewise.
        b: Pointer to ``(rows, rank)`` float32.
        a: Pointer to ``(rank, columns)`` float32.
        rows: O.
        columns: I.
        rank: R, a multiple of ``RANKS``.
        TILE: Rows and columns of the tile.
        RANKS: Ranks multiplied at a time.
    """
    across = tl.cdiv(columns, TILE)
    tile = tl.program_id(0).to(tl.int64)
    row = (tile // across) * TILE + tl.arange(0, TILE)[:, None]
    column = (tile % across) * TILE + tl.arange(0, TILE)[None, :]
    step = tl.arange(0, RANKS)
    total = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, rank, RANKS):
        left = tl.load(b + row * rank + (first + step)[None, :], mask=row < rows, other=0.0)
        right = tl.load(
            a + (first + step)[:, None] * columns.to(tl.int64) + column,
            mask=column < columns,
            other=0.0,
        )
        # "ieee": the default, tf32, keeps 10 bits of each factor.
        total = tl.dot(left, right, total, input_precision="ieee")
    at = row * columns + column
    inside = (row < rows) & (column < columns)
    total = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + total
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def lowrank_fold(
    weight: torch.Tensor, b: torch.Tensor, a: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    """Return ``W + B @ A``, see :func:`modalloy.kernels.lowrank.lowrank_fold`.

    Args:
        weight: ``(O, I)`` bfloat16, float16 or float32.
        b: ``(O, R)`` float32, factors included.
        a: ``(R, I)`` float32.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        ``(O, I)``.
    """
    out = torch.empty_like(weight, dtype=out_dtype)
    if out.numel() == 0:
        return out
    missing = -b.shape[1] % RANKS
    b, a = F.pad(b, (0, missing)), F.pad(a, (0, 0, 0, missing))
    rows, columns = weight.shape
    with torch.cuda.device_of(out):
        lowrank_fold_kernel[(triton.cdiv(rows, TILE) * triton.cdiv(columns, TILE),)](
            out, weight, b, a, rows, columns, b.shape[1], TILE=TILE, RANKS=RANKS, num_warps=4
        )
    return out
