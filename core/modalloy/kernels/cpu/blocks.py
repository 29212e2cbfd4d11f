"""Blocks of numbers in memory, to and from float32."""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

compiled = njit(nogil=True, cache=True, error_model="numpy")
"""How kernels are compiled: kept on disk; division is not checked, which would forbid vectors."""

BLOCK = 4096
"""Elements that a kernel holds at a time: they stay in the first levels of cache. Blocks lie on a
grid that starts at a tensor's first element, whatever part of it a call works on."""

BF16, F16, F32, F64 = range(4)
"""Codes of the dtypes that are read; all but F64 are written."""

CODES = {"BF16": BF16, "F16": F16, "F32": F32, "F64": F64}
"""Code by the name that safetensors has for a dtype."""

SIZES = {BF16: 2, F16: 2, F32: 4, F64: 8}
"""Bytes of an element by code."""


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    """Turn an integer into a pointer."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@compiled
def _load_halves(halves: Any, out: Any) -> None:
    """Turn float16 bits into float32, exactly and without a branch."""
    bits = out.view(np.uint32)
    for j in range(len(out)):
        half = np.uint32(halves[j])
        size = half & np.uint32(0x7FFF)
        # The fraction as a tiny float32, and then the difference of the exponents' biases.
        bits[j] = size << np.uint32(13)
        out[j] *= np.float32(2.0**112)
        if size >= np.uint32(0x7C00):
            bits[j] = np.uint32(0x7F800000) | ((size & np.uint32(0x3FF)) << np.uint32(13))
        bits[j] |= (half & np.uint32(0x8000)) << np.uint32(16)


@compiled
def _store_halves(values: Any, halves: Any) -> None:
    """Turn float32 into float16 bits, ties to even, without a branch.

    ``values`` is overwritten.
    """
    bits = values.view(np.uint32)
    for j in range(len(values)):
        sign = (bits[j] >> np.uint32(16)) & np.uint32(0x8000)
        size = bits[j] & np.uint32(0x7FFFFFFF)
        even = (size >> np.uint32(13)) & np.uint32(1)
        normal = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + even) >> np.uint32(13)
        # Beside 0.5 a subnormal's last place is the float32's own: the addition rounds.
        bits[j] = size
        values[j] += np.float32(0.5)
        tiny = bits[j] - np.uint32(0x3F000000)
        half = tiny if size < np.uint32(0x38800000) else normal
        half = np.uint32(0x7C00) if size >= np.uint32(0x477FF000) else half
        half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
        halves[j] = np.uint16(sign | half)


@compiled
def load(address: int, code: int, first: int, out: Any) -> None:
    """Read float32 numbers.

    Args:
        address: Of element 0.
        code: Dtype of what is there.
        first: Number of the first element to read.
        out: ``(n,)`` float32, where they go.
    """
    n = len(out)
    bits = out.view(np.uint32)
    if code == BF16:
        halves = carray(_pointer(address + 2 * first), (n,), np.uint16)
        for j in range(n):
            bits[j] = np.uint32(halves[j]) << np.uint32(16)
    elif code == F32:
        singles = carray(_pointer(address + 4 * first), (n,), np.float32)
        for j in range(n):
            out[j] = singles[j]
    elif code == F16:
        halves = carray(_pointer(address + 2 * first), (n,), np.uint16)
        _load_halves(halves, out)
    else:
        doubles = carray(_pointer(address + 8 * first), (n,), np.float64)
        for j in range(n):
            out[j] = np.float32(doubles[j])


@compiled
def load_delta(address: int, code: int, first: int, base: Any, out: Any) -> None:
    """Read numbers less those of a base, float32; arguments as :func:`load`."""
    n = len(out)
    if code == BF16:
        # In one go: this is what most merges spend their time with.
        halves = carray(_pointer(address + 2 * first), (n,), np.uint16)
        for j in range(n):
            value = np.uint32(np.uint32(halves[j]) << np.uint32(16)).view(np.float32)
            out[j] = value - base[j]
    else:
        load(address, code, first, out)
        for j in range(n):
            out[j] -= base[j]


@compiled
def store(values: Any, code: int, first: int, address: int) -> None:
    """Write float32 numbers, rounded to the nearest, ties to even.

    Args:
        values: ``(n,)`` float32, overwritten.
        code: Dtype to write; not F64.
        first: Number of the element to begin at.
        address: Of element 0.
    """
    n = len(values)
    bits = values.view(np.uint32)
    if code == F32:
        singles = carray(_pointer(address + 4 * first), (n,), np.float32)
        for j in range(n):
            singles[j] = values[j]
        return
    halves = carray(_pointer(address + 2 * first), (n,), np.uint16)
    if code == BF16:
        for j in range(n):
            v = bits[j]
            even = (v >> np.uint32(16)) & np.uint32(1)
            rounded = (v + np.uint32(0x7FFF) + even) >> np.uint32(16)
            # Adding to the fraction of a NaN might carry it away.
            quiet = (v >> np.uint32(16)) | np.uint32(0x40)
            is_nan = (v & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            halves[j] = np.uint16(quiet if is_nan else rounded)
    else:
        _store_halves(values, halves)
