"""Random words that depend on a key and a position alone.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
encrypts a counter, so any part of the sequence can be computed by itself: the same mask comes out
on a CPU and on a GPU, whatever the order, the number of workers and the size of the pieces.

Element ``e`` of a tensor draws the word ``e // 1024 % 4`` of the counter
``e // 4096 * 1024 + e % 1024``: the four words of 1024 consecutive counters belong to four runs of
1024 consecutive elements, so that a GPU's neighbouring threads use neighbouring elements whichever
of the words is at hand.
"""

import torch

from modalloy.errors import SpecError

COUNTERS = 1024
"""Consecutive counters whose words are used together."""

BLOCK = 4 * COUNTERS
"""Elements that these counters serve."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def random_words(
    key: int, start: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return the random words of the elements ``start`` to ``start + count - 1``.

    Args:
        key: 64 bits; of any other integer, the lowest 64 are taken.
        start: The first element's number, a multiple of 4096.
        count: How many words.
        device: Where they are computed and returned.

    Returns:
        ``(count,)`` int64 in ``[0, 2**32)``, uniform.

    Raises:
        SpecError: ``start`` is negative or no multiple of 4096.
    """
    check_start(start)
    blocks = -(-count // BLOCK)
    first = start // BLOCK * COUNTERS
    counter = torch.arange(first, first + blocks * COUNTERS, dtype=torch.int64, device=device)
    zero = torch.zeros_like(counter)
    words = philox((counter & _MASK, counter >> 32, zero, zero), (key & _MASK, key >> 32 & _MASK))
    runs = torch.stack([word.view(blocks, COUNTERS) for word in words], dim=1)
    return runs.flatten()[:count]


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the four words that Philox4x32-10 makes of each counter.

    Args:
        counter: Four int64 tensors of one shape, the counter's words in ``[0, 2**32)``, the lowest
            first.
        key: Two words in ``[0, 2**32)``, the lowest first.

    Returns:
        Four int64 tensors of that shape, in ``[0, 2**32)``.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two words may pass 2**63. int64 wraps, which leaves the 64 bits what they
        # are; the mask drops the copies of the sign that >> shifts in.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (odd >> 32 & _MASK) ^ c1 ^ k0, (even >> 32 & _MASK) ^ c3 ^ k1
        c1, c3 = odd & _MASK, even & _MASK
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def check_start(start: int) -> None:
    """Check that a piece of a tensor begins where a block of random words does.

    Raises:
        SpecError: It does not.
    """
    if start < 0 or start % BLOCK:
        raise SpecError(
            f"start is {start}; expected a multiple of {BLOCK}, at least 0, so that no block of "
            f"random words is cut: begin the piece at {max(start, 0) // BLOCK * BLOCK}",
            subject="start",
        )
