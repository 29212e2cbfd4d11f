"""What the operations compute, once more: value by value, in Python's own numbers.

Python computes in double precision. One operation on two float32 numbers, rounded to double and
then to float32, is the float32 operation: double has more than twice the digits (Figueroa, 1995).
"""

import math
import struct
from collections.abc import Sequence
from typing import Any

M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85


def f32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = M0 * c[0], M1 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 % 2**32, p0 >> 32 ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + W0) % 2**32, (k[1] + W1) % 2**32]
    return c


def random_word(key: int, element: int) -> int:
    c = element // 4096 * 1024 + element % 1024
    words = philox4x32((c % 2**32, c >> 32, 0, 0), (key % 2**32, key >> 32))
    return words[element // 1024 % 4]


def weighted_sum(columns: Sequence[float], weights: Sequence[float], divisor: float = 1.0) -> float:
    """One element: ``columns`` are its values in the tensors."""
    total = 0.0
    for x, w in zip(columns, weights, strict=True):
        total = f32(total + f32(f32(w) * x))
    return total if f32(divisor) == 1 else f32(total / f32(divisor))


def delta_merge(
    base: float,
    columns: Sequence[float],
    weights: Sequence[float],
    *,
    element: int = 0,
    **rule: Any,
) -> float:
    """One element of a merge; see :func:`modalloy.kernels.sparse.delta_merge`."""
    values = []
    for i, x in enumerate(columns):
        d = x if rule.get("is_delta", [False] * 99)[i] else f32(x - base)
        keep = True
        if "lower" in rule:
            keep = keep and not abs(d) < f32(rule["lower"][i])
        if "upper" in rule:
            keep = keep and not abs(d) > f32(rule["upper"][i])
        if "density" in rule and rule["density"][i] < 1:
            word = random_word(rule["keys"][i], rule.get("start", 0) + element)
            keep = keep and word < math.floor(rule["density"][i] * 2**32)
        values.append(f32(f32(rule.get("gains", weights)[i]) * d) if keep else 0.0)
    used = list(range(len(values)))
    if rule.get("elect"):
        sign = 1 if _sum(values) >= 0 else -1
        used = [i for i in used if values[i] * sign > 0]
    total = _sum([values[i] for i in used])
    divisor = _sum([f32(weights[i]) for i in used])
    if (divisor == 0) if rule.get("elect") else (abs(divisor) < 1e-8):
        divisor = 1.0
    if rule.get("normalize"):
        total = f32(total / divisor)
    if rule.get("scale", 1) != 1:
        total = f32(f32(rule["scale"]) * total)
    return f32(base + total)


def _sum(values: Sequence[float]) -> float:
    total = 0.0
    for one in values:
        total = f32(total + one)
    return total
