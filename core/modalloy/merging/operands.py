"""What models have for a stretch of a tensor, as addresses for the CPU's kernels."""

import threading
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from modalloy.checkpoints.mapped import MappedTensor
from modalloy.kernels.cpu.blocks import CODES, F32, SIZES
from modalloy.kernels.cpu.geometry import low_rank
from modalloy.merging.sources import Operand, Pair

CHUNK = 1 << 20
"""Elements that a call works on."""


class Scratch(threading.local):
    """Buffers of a thread, used over and over."""

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}

    def bytes(self, name: str, size: int) -> Any:
        """Return ``(size,)`` uint8 of a name's buffer; what was in it is lost."""
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = np.empty(size, np.uint8)
        return self._buffers[name][:size]


SCRATCH = Scratch()


@attrs.frozen
class Stretch:
    """Consecutive elements of a tensor's piece.

    Attributes:
        start: Number of the first one within the piece.
        count: How many.
    """

    start: int
    count: int


def cut(elements: int, operands: Sequence[Operand], *, rows: int = 0) -> list[Stretch]:
    """Cut a piece into stretches of about :data:`CHUNK` elements.

    Args:
        elements: Of the piece.
        operands: A low-rank one is worked out by whole rows, so that stretches end with a row.
        rows: Length of a row that stretches have to end with; 0 where they need not.
    """
    step = CHUNK
    for width in (rows, *(one.A.shape[1] for one in operands if isinstance(one, Pair))):
        if width:
            step = max(CHUNK // width, 1) * width
    return [Stretch(start, min(step, elements - start)) for start in range(0, elements, step)]


@attrs.frozen(eq=False)
class Inputs:
    """Operands as kernels take them.

    Attributes:
        addresses: ``(N,)`` int64, of the first element.
        codes: ``(N,)`` int64, of dtypes.
        is_delta: ``(N,)`` bool, whether each is a difference from the base.
    """

    addresses: Any
    codes: Any
    is_delta: Any


def place(
    base: MappedTensor, first: int, operands: Sequence[Operand], stretch: Stretch, *, values: bool
) -> Inputs:
    """Return where operands lie for a stretch, low-rank ones worked out into scratch memory.

    Args:
        base: The base's tensor; low-rank deltas are differences from it.
        first: Number of the piece's first element.
        operands: In order.
        stretch: Of the piece.
        values: Whether the base is added to low-rank deltas.
    """
    start = first + stretch.start
    count = len(operands)
    addresses = np.empty(count, np.int64)
    codes = np.empty(count, np.int64)
    is_delta = np.zeros(count, np.bool_)
    for i, operand in enumerate(operands):
        if isinstance(operand, MappedTensor):
            codes[i] = CODES[operand.dtype]
            addresses[i] = operand.address + SIZES[codes[i]] * start
            continue
        width = operand.A.shape[1]
        rows = slice(start // width, (start + stretch.count) // width)
        out = SCRATCH.bytes(f"operand {i}", 4 * stretch.count)
        code = CODES[base.dtype]
        origin = base.address + SIZES[code] * start if values else 0
        low_rank(
            operand.B[rows], operand.A, np.float32(operand.scale), origin, code, width, address(out)
        )
        addresses[i], codes[i], is_delta[i] = address(out), F32, not values
    return Inputs(addresses, codes, is_delta)


def address(array: Any) -> int:
    """Return the address of an array's first element."""
    found: int = array.__array_interface__["data"][0]
    return found
