"""Weighted sums of tensors, and sums of trimmed, dropped and elected deltas."""

from typing import Any

import numpy as np

from modalloy.kernels.cpu.blocks import BLOCK, compiled, load, load_delta, store

_STRIP = 1024
"""Elements that are worked on at a time: all that belongs to them fits the first level of cache."""

ALL = 1 << 32
"""A limit for random words that keeps everything."""


@compiled
def weighted_sum(
    addresses: Any,
    codes: Any,
    weights: Any,
    divisor: Any,
    count: int,
    out: int,
    out_code: int,
) -> None:
    """Write ``sum_i weights_i * x_i / divisor`` (see ``kernels.weighted``).

    Args:
        addresses: ``(N,)`` int64, of the first element of each input.
        codes: ``(N,)`` int64, their dtypes.
        weights: ``(N,)`` float32.
        divisor: float32.
        count: Elements.
        out: Address of the first element to write.
        out_code: Its dtype.
    """
    total = np.empty(_STRIP, np.float32)
    x = np.empty(_STRIP, np.float32)
    for start in range(0, count, _STRIP):
        n = min(_STRIP, count - start)
        for j in range(n):
            total[j] = np.float32(0)
        for i in range(len(addresses)):
            load(addresses[i], codes[i], start, x[:n])
            weight = weights[i]
            for j in range(n):
                total[j] += weight * x[j]
        if divisor != np.float32(1):
            for j in range(n):
                total[j] /= divisor
        store(total[:n], out_code, start, out)


@compiled
def delta_merge(
    addresses: Any,
    codes: Any,
    is_delta: Any,
    numbers: Any,
    limits: Any,
    keys: Any,
    switches: Any,
    factors: Any,
    first: int,
    count: int,
    out: int,
    out_code: int,
) -> None:
    """Write the base plus the merged deltas (see ``kernels.sparse``).

    Args:
        addresses: ``(1 + N,)`` int64, of the first element to merge: of the base, then of each
            parent.
        codes: ``(1 + N,)`` int64, their dtypes.
        is_delta: ``(N,)`` bool: whether a parent is a delta already.
        numbers: ``(4, N)`` float32: weights, gains, and the least and greatest magnitude kept.
        limits: ``(N,)`` uint64: a value is kept where its random word is below; :data:`ALL` draws
            none.
        keys: ``(N,)`` uint64, of the generator.
        switches: ``(3,)`` bool: trim by magnitude, elect signs, normalise.
        factors: ``(2,)`` float32: divisor where no signs are elected, and scale.
        first: Number of the first element within its tensor.
        count: Elements.
        out: Address of the first element to write.
        out_code: Its dtype.
    """
    parents = len(is_delta)
    base = np.empty(_STRIP, np.float32)
    total = np.empty(_STRIP, np.float32)
    divisor = np.empty(_STRIP, np.float32)
    deltas = np.empty((parents, _STRIP), np.float32)
    words = np.empty((parents, BLOCK), np.uint32)
    block = -1
    start = 0
    while start < count:
        place = (first + start) % BLOCK
        # Not beyond this block of the tensor's grid, which random words are laid out by.
        n = min(_STRIP, BLOCK - place, count - start)
        if (first + start) // BLOCK != block:
            block = (first + start) // BLOCK
            _draw(keys, limits, block, words)
        load(addresses[0], codes[0], start, base[:n])
        total[:n] = np.float32(0)
        for i in range(parents):
            delta = deltas[i, :n]
            if is_delta[i]:
                load(addresses[1 + i], codes[1 + i], start, delta)
            else:
                load_delta(addresses[1 + i], codes[1 + i], start, base[:n], delta)
            if limits[i] < np.uint64(ALL):
                _drop(delta, words[i, place : place + n], np.uint32(limits[i]))
            _add(delta, numbers[1, i], switches[0], numbers[2, i], numbers[3, i], total[:n])
        if switches[1]:
            _elect(deltas, numbers[0], total[:n], divisor[:n])
        _finish(switches, factors, total[:n], divisor[:n], base[:n])
        store(base[:n], out_code, start, out)
        start += n


@compiled
def _drop(delta: Any, words: Any, limit: Any) -> None:
    for j in range(len(delta)):
        delta[j] = delta[j] if words[j] < limit else np.float32(0)


@compiled
def _add(delta: Any, gain: Any, trim: bool, least: Any, most: Any, total: Any) -> None:
    """Trim and weigh a delta in place, and add it to the total."""
    if trim:
        for j in range(len(total)):
            size = abs(delta[j])
            kept = np.float32(0) if (size < least) | (size > most) else delta[j]
            delta[j] = kept * gain
            total[j] += kept * gain
    else:
        for j in range(len(total)):
            delta[j] *= gain
            total[j] += delta[j]


@compiled
def _elect(deltas: Any, weights: Any, total: Any, divisor: Any) -> None:
    """Sum anew what agrees in sign with the total, and the weights of what does."""
    n = len(total)
    sign = np.empty(n, np.float32)
    for j in range(n):
        up = np.float32(1) if total[j] >= np.float32(0) else np.float32(-1)
        # A sum that is no number stays none: nothing that is broken is to disappear.
        sign[j] = up if total[j] == total[j] else total[j]
        total[j] = np.float32(0)
        divisor[j] = np.float32(0)
    for i in range(len(deltas)):
        delta = deltas[i]
        weight = weights[i]
        for j in range(n):
            agrees = delta[j] * sign[j] > np.float32(0)
            total[j] += delta[j] if agrees else np.float32(0)
            divisor[j] += weight if agrees else np.float32(0)
    for j in range(n):
        divisor[j] = divisor[j] if divisor[j] != np.float32(0) else np.float32(1)
        total[j] = total[j] if sign[j] == sign[j] else sign[j]


@compiled
def _finish(switches: Any, factors: Any, total: Any, divisor: Any, base: Any) -> None:
    """Normalise and scale the total, and add it to the base in place."""
    n = len(total)
    if switches[2] and switches[1]:
        for j in range(n):
            total[j] /= divisor[j]
    elif switches[2]:
        for j in range(n):
            total[j] /= factors[0]
    scale = factors[1]
    if scale != np.float32(1):
        for j in range(n):
            total[j] *= scale
    for j in range(n):
        base[j] += total[j]


@compiled
def _draw(keys: Any, limits: Any, block: int, words: Any) -> None:
    """Draw a block's random words for the models that have any drawn."""
    for i in range(len(keys)):
        if limits[i] < np.uint64(ALL):
            random_words(keys[i], block, words[i])


@compiled
def random_words(key: Any, block: int, out: Any) -> None:
    """Draw the random words of a block: Philox4x32-10 (Salmon et al., SC 2011).

    Element e of a tensor gets word ``e // 1024 % 4`` of the counter
    ``e // 4096 * 1024 + e % 1024``: a block is 1024 counters, whose four words lie apart, so that
    no lane waits for another.

    Args:
        key: 64 bits.
        block: Number of the block.
        out: ``(4096,)`` uint32.
    """
    lanes = BLOCK // 4
    low_key, high_key = np.uint32(key), np.uint32(np.uint64(key) >> np.uint64(32))
    for j in range(lanes):
        counter = np.uint64(block) * np.uint64(lanes) + np.uint64(j)
        a, b = np.uint32(counter), np.uint32(counter >> np.uint64(32))
        c, d = np.uint32(0), np.uint32(0)
        k, q = low_key, high_key
        for _ in range(10):
            p = np.uint64(a) * np.uint64(0xD2511F53)
            r = np.uint64(c) * np.uint64(0xCD9E8D57)
            a = np.uint32(r >> np.uint64(32)) ^ b ^ k
            c = np.uint32(p >> np.uint64(32)) ^ d ^ q
            b, d = np.uint32(r), np.uint32(p)
            k = np.uint32(k + np.uint32(0x9E3779B9))
            q = np.uint32(q + np.uint32(0xBB67AE85))
        out[j] = a
        out[lanes + j] = b
        out[2 * lanes + j] = c
        out[3 * lanes + j] = d
