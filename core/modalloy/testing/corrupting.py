"""Inputs that are none: damaged, cut off, lying about their size, or no input at all."""

import random
import re
from collections.abc import Iterator

_FLIPS = 12
_HEAD = 64  # bytes in which file formats say how large things are
_NUMBERS = re.compile(rb"\d+")
_MOST = b"999999999"


def corrupt(data: bytes, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield damaged versions of a file, each with what was done to it; the same ones every time.

    Args:
        data: A good file.
        seed: Of the places where bits are flipped.
    """
    yield from _cut(data)
    yield from _flipped(data, random.Random(seed))  # noqa: S311 - damage, not secrets
    yield from _claiming(data)
    yield "zeros in its place", bytes(len(data))
    yield "noise in its place", random.Random(seed).randbytes(max(len(data), 64))  # noqa: S311
    yield "another file's text in its place", b"To be, or not to be, that is the question.\n" * 3


def _cut(data: bytes) -> Iterator[tuple[str, bytes]]:
    size = len(data)
    ends = {1, 4, 16, size // 8, size // 4, size // 2, 3 * size // 4, size - 1}
    for end in sorted(ends):
        if 0 < end < size:
            yield f"cut off after {end} of {size} bytes", data[:end]


def _flipped(data: bytes, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Flip some bits, every other time in the head alone."""
    for turn in range(_FLIPS if data else 0):
        changed = bytearray(data)
        end = min(len(data), 4 * _HEAD) if turn % 2 else len(data)
        count = draw.randint(1, 1 + end // 50)
        for _ in range(count):
            changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
        yield f"{count} bits flipped in the first {end} bytes (turn {turn})", bytes(changed)


def _claiming(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Put great numbers where a header might say how large something is."""
    for start in range(0, min(_HEAD, len(data) - 4), 4):
        for what, word in (("7fffffff", b"\x7f\xff\xff\xff"), ("ffffff7f", b"\xff\xff\xff\x7f")):
            changed = data[:start] + word + data[start + 4 :]
            yield f"bytes {start} to {start + 3} replaced by {what}", changed
    for match in list(_NUMBERS.finditer(data[: 8 * _HEAD]))[:8]:
        changed = data[: match.start()] + _MOST + data[match.end() :]
        yield f"the number at byte {match.start()} replaced by {_MOST.decode()}", changed
