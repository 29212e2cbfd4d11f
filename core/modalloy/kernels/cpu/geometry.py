"""Angles between tensors, and products of low rank."""

from typing import Any

import numpy as np

from modalloy.kernels.cpu.blocks import BLOCK, compiled, load, store

_LANES = 16


@compiled
def inner_products(addresses: Any, codes: Any, count: int) -> Any:
    """Return ``|a|^2``, ``|b|^2`` and ``a . b`` of each block of two tensors.

    Args:
        addresses: ``(2,)`` int64, of the first elements, which begin a block.
        codes: ``(2,)`` int64, their dtypes.
        count: Elements.

    Returns:
        ``(blocks, 3)`` float64: partial sums whose total does not depend on how a tensor was cut
        into chunks.
    """
    blocks = (count + BLOCK - 1) // BLOCK
    out = np.zeros((blocks, 3), np.float64)
    a = np.zeros(BLOCK, np.float32)
    b = np.zeros(BLOCK, np.float32)
    lanes = np.empty((3, _LANES), np.float64)
    for block in range(blocks):
        n = min(BLOCK, count - block * BLOCK)
        a[n:] = np.float32(0)
        b[n:] = np.float32(0)
        load(addresses[0], codes[0], block * BLOCK, a[:n])
        load(addresses[1], codes[1], block * BLOCK, b[:n])
        lanes[:] = 0.0
        for j in range(0, BLOCK, _LANES):
            for k in range(_LANES):
                x, y = np.float64(a[j + k]), np.float64(b[j + k])
                lanes[0, k] += x * x
                lanes[1, k] += y * y
                lanes[2, k] += x * y
        for k in range(_LANES):
            for q in range(3):
                out[block, q] += lanes[q, k]
    return out


@compiled
def low_rank(b: Any, a: Any, scale: Any, base: int, base_code: int, width: int, out: int) -> None:
    """Write rows of ``scale * B @ A``, or of a base plus that, in float32.

    Args:
        b: ``(rows, R)`` float32: those rows of B.
        a: ``(R, I)`` float32.
        scale: float32.
        base: Address of the base's first row among them; 0 where there is none.
        base_code: Its dtype.
        width: I.
        out: Address of ``(rows, I)`` float32.
    """
    ranks = a.shape[0]
    row = np.empty(width, np.float32)
    for i in range(len(b)):
        for j in range(width):
            row[j] = np.float32(0)
        for r in range(ranks):
            factor = b[i, r]
            line = a[r]
            for j in range(width):
                row[j] += factor * line[j]
        for j in range(width):
            row[j] *= scale
        if base != 0:
            start = np.empty(width, np.float32)
            load(base, base_code, i * width, start)
            for j in range(width):
                row[j] += start[j]
        store(row, 2, i * width, out)
