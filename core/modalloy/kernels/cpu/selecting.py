"""The k-th largest magnitude of a delta, exactly, in one pass over it nearly always.

A sample brackets the wanted magnitude; one pass counts what lies above the bracket and tallies the
values within it. Where the bracket missed, or holds too many different values, two passes of a
histogram find it. Magnitudes are compared as the bits of float32, which order alike.
"""

from typing import Any

import numpy as np

from modalloy.kernels.cpu.blocks import BLOCK, compiled, load, load_delta

SIZE_BITS = 0x7FFFFFFF
BINS = 1 << 16
_SLOTS = 1 << 15
_FREE = np.uint32(0xFFFFFFFF)
_ZERO = np.int32(0)
_STRIP = 64
"""Elements that are looked at together: most strips have none in the bracket."""


@compiled
def _load_sizes(addresses: Any, codes: Any, is_delta: bool, start: int, base: Any, x: Any) -> None:
    """Read magnitudes of a delta as bits, into ``x`` seen as uint32."""
    if is_delta:
        load(addresses[1], codes[1], start, x)
    else:
        load(addresses[0], codes[0], start, base)
        load_delta(addresses[1], codes[1], start, base, x)
    bits = x.view(np.uint32)
    for j in range(len(x)):
        bits[j] &= np.uint32(SIZE_BITS)


@compiled
def sizes(addresses: Any, codes: Any, is_delta: bool, count: int) -> Any:
    """Return the magnitudes of ``count`` elements, ``(count,)`` uint32 bits."""
    out = np.empty(count, np.float32)
    base = np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        _load_sizes(addresses, codes, is_delta, start, base[:n], out[start : start + n])
    return out.view(np.uint32)


@compiled
def sample(addresses: Any, codes: Any, is_delta: bool, starts: Any, width: int) -> Any:
    """Return the magnitudes of runs of ``width`` elements, ``(len(starts) * width,)`` bits."""
    out = np.empty(len(starts) * width, np.float32)
    base = np.empty(width, np.float32)
    for i in range(len(starts)):
        run = out[i * width : (i + 1) * width]
        _load_sizes(addresses, codes, is_delta, starts[i], base, run)
    return out.view(np.uint32)


@compiled
def _insert(value: Any, number: int, values: Any, counts: Any) -> int:
    """Count a value; return whether it is new."""
    # Multiplied in 64 bits; the 15 highest of the lower 32 are the slot.
    slot = np.uint32(value * np.uint32(0x9E3779B1)) >> np.uint32(17)
    while values[slot] != _FREE and values[slot] != value:
        slot = (slot + np.uint32(1)) & np.uint32(_SLOTS - 1)
    counts[slot] += number
    if values[slot] == value:
        return 0
    values[slot] = value
    return 1


@compiled
def _compare(
    strip: Any, low: Any, middle: Any, high: Any, top: Any, totals: Any, slots: Any
) -> int:
    """Compare a strip with the marks; count other values of the bracket one by one.

    Args:
        strip: ``(64,)`` uint32.
        low: Lower end.
        middle: Mark between the ends.
        high: Upper end.
        top: The upper end as a mark.
        totals: ``(4,)`` int64, raised by what is above, and at each mark.
        slots: Values and counts.

    Returns:
        How many values are new.
    """
    # Sums of 32 bits over a length that the compiler knows: many elements at a time.
    over, one, two, three, inside = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for j in range(_STRIP):
        value = strip[j]
        over = np.int32(over + np.int32(value > high))
        one = np.int32(one + np.int32(value == low))
        two = np.int32(two + np.int32(value == middle))
        three = np.int32(three + np.int32(value == top))
        inside = np.int32(inside + np.int32(value >= low))
    totals[0] += over
    totals[1] += one
    totals[2] += two
    totals[3] += three
    new = 0
    if inside != over + one + two + three:
        for j in range(_STRIP):
            value = strip[j]
            if low < value < high and value != middle:
                new += _insert(value, 1, slots[0], slots[1])
    return new


@compiled
def tally(addresses: Any, codes: Any, is_delta: bool, count: int, bracket: Any) -> Any:
    """Count a chunk's magnitudes above a bracket, and each value within it.

    Weights in half precision differ by few values, each of which occurs very often. Of those, the
    bracket's ends and middle are compared with all elements at once; other values within it are
    few, and are counted one by one.

    Args:
        addresses: ``(2,)`` int64, of the first element of base and parent.
        codes: ``(2,)`` int64, their dtypes.
        is_delta: Whether the parent is a delta already.
        count: Elements.
        bracket: ``(3,)`` uint32: bits of the lower end, a value between, and the upper end; both
            ends are in the bracket, and any of the three may be equal.

    Returns:
        How many are above; the different values in the bracket, unordered, and how often each
        occurs; and whether all of them found a slot.
    """
    low, high = bracket[0], bracket[2]
    # A mark that equals another one is put where no magnitude is, so that none counts twice.
    middle = bracket[1] if low < bracket[1] < high else _FREE
    top = high if high > low else _FREE
    values = np.full(_SLOTS, _FREE, np.uint32)
    counts = np.zeros(_SLOTS, np.int64)
    slots = (values, counts)
    totals = np.zeros(4, np.int64)
    used = 0
    base = np.empty(BLOCK, np.float32)
    x = np.empty(BLOCK, np.float32)
    bits = x.view(np.uint32)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        _load_sizes(addresses, codes, is_delta, start, base[:n], x[:n])
        # A last strip is filled up with the lower mark, which is counted too often then.
        filled = -(-n // _STRIP) * _STRIP
        for j in range(n, filled):
            bits[j] = low
        totals[1] -= filled - n
        for first in range(0, filled, _STRIP):
            used += _compare(bits[first : first + _STRIP], low, middle, high, top, totals, slots)
        if used > _SLOTS // 2:
            return totals[0], values[:0], counts[:0], False
    for value, number in ((low, totals[1]), (middle, totals[2]), (top, totals[3])):
        if number:
            _insert(value, number, values, counts)
    taken = np.nonzero(values != _FREE)[0]
    return totals[0], values[taken], counts[taken], True


@compiled
def histogram(addresses: Any, codes: Any, is_delta: bool, count: int, low: Any, shift: Any) -> Any:
    """Return how many magnitudes fall into each bin, ``(BINS,)`` int64.

    Bin b holds the bits from ``low + (b << shift)`` up to the next bin's; others do not count.
    """
    bins = np.zeros(BINS, np.int64)
    base = np.empty(BLOCK, np.float32)
    x = np.empty(BLOCK, np.float32)
    bits = x.view(np.uint32)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        _load_sizes(addresses, codes, is_delta, start, base[:n], x[:n])
        for j in range(n):
            if bits[j] >= low:
                place = (bits[j] - low) >> shift
                if place < np.uint32(BINS):
                    bins[place] += 1
    return bins
