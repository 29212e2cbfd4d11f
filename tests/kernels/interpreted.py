"""The Triton kernels in Triton's interpreter against the reference, bit for bit.

Run as ``python interpreted.py OPERATION``, with TRITON_INTERPRET=1 in the environment. Outputs
start out as NaN and lie before a guard; both show a kernel that writes too little or too much.
"""

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from triton import language as tl
from triton.runtime import interpreter

from modalloy.kernels.lowrank import lowrank_fold
from modalloy.kernels.sparse import delta_merge
from modalloy.kernels.threshold import kth_largest
from modalloy.kernels.weighted import weighted_sum

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZES = (1, 1023, 4097, 3 * 4096 + 5)
COUNTS = (1, 3, 8, 9, 16)
GUARD = 12345.0

guards = []
plain_empty_like, plain_convert = torch.empty_like, interpreter._convert_float


def poisoned(like: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Stand for ``torch.empty_like``: NaN, and a guard behind it."""
    buffer = torch.full((like.numel() + 64,), float("nan"), dtype=dtype or like.dtype)
    buffer[like.numel() :] = GUARD
    guards.append(buffer[like.numel() :])
    return buffer[: like.numel()].view(like.shape)


def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Stand for the interpreter's conversion, whose rounding to bfloat16 loses carries."""
    if target == tl.bfloat16 and source == tl.float32:
        return torch.from_numpy(data.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    if target == tl.float32 and source == tl.bfloat16:
        return data.astype("uint32") << 16
    return plain_convert(data, source, target, rounding)


def check(found: torch.Tensor, expected: torch.Tensor, case: object) -> None:
    """Fail unless all bits agree; any NaN stands for any other."""
    assert found.dtype == expected.dtype, case
    assert found.shape == expected.shape, case
    assert torch.equal(found.isnan(), expected.isnan()), case
    same = torch.where(found.isnan(), 0, found).view(torch.uint8 if found.dim() else found.dtype)
    other = torch.where(expected.isnan(), 0, expected).view(same.dtype)
    assert torch.equal(same, other), (
        f"{case}: {(found != expected).sum()} of {found.numel()} differ"
    )
    assert all((guard == GUARD).all() for guard in guards), f"{case}: written past the end"
    guards.clear()


def both(
    operation: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what Triton makes of a call, and what the reference does."""
    found = operation(*args, **kwargs, backend="triton")
    return found, operation(*args, **kwargs, backend="reference")


def values(size: int, dtype: torch.dtype, rng: random.Random) -> torch.Tensor:
    """Return values with exact zeros, subnormals, an infinity and a NaN among them."""
    x = torch.randn(size) * 10 ** rng.uniform(-2, 1)
    x[torch.rand(size) < 0.1] = 0
    if size > 100:
        x[50:54] = torch.tensor([1e-40, -1e-40, float("inf"), float("nan")])
    return x.to(dtype)


def weighted(rng: random.Random) -> None:
    for size in SIZES:
        for count in COUNTS:
            tensors = [values(size, rng.choice(DTYPES), rng) for _ in range(count)]
            weights = [rng.uniform(-1, 1) for _ in range(count)]
            for out_dtype in DTYPES:
                rule = {"divisor": rng.choice([1.0, 0.3, 3.0]), "out_dtype": out_dtype}
                check(*both(weighted_sum, tensors, weights, **rule), (size, count, rule))


def sparse(rng: random.Random) -> None:
    for size in SIZES:
        for count in COUNTS if size < 10000 else (3, 9):
            for switches in range(8):
                # Few different values: totals of 0, where the sign is elected by rule.
                make = rng.choice([values, ties])
                base = make(size, rng.choice(DTYPES), rng)
                deltas = [rng.random() < 0.3 for _ in range(count)]
                types = [torch.float32 if yes else rng.choice(DTYPES) for yes in deltas]
                parents = [make(size, dtype, rng) for dtype in types]
                weights = [rng.choice([-0.5, 0.25, 0.7, 1.0]) for _ in range(count)]
                rule = sparse_rule(rng, base, parents[0], count, switches)
                rule |= {"is_delta": deltas, "out_dtype": rng.choice(DTYPES)}
                check(*both(delta_merge, base, parents, weights, **rule), (size, count, rule))


def ties(size: int, dtype: torch.dtype, _rng: random.Random) -> torch.Tensor:
    return torch.randint(-1, 2, (size,)).to(dtype)


def sparse_rule(
    rng: random.Random, base: torch.Tensor, parent: torch.Tensor, count: int, switches: int
) -> dict[str, Any]:
    """Return arguments in which each switch is on in half of the cases."""
    # A value that occurs, so that ">=" and ">" differ.
    edge = abs(float(parent[0].float() - base[0].float()))
    edge = edge if edge < 1e3 else 0.5
    rule = {"elect": bool(switches & 2), "normalize": rng.random() < 0.5}
    rule["scale"] = rng.choice([1.0, 0.7])
    if switches & 1:
        bounds = [edge] + [rng.uniform(0, 1) for _ in range(count - 1)]
        rule["lower"] = rng.choice([bounds, torch.tensor(bounds)])
        rule["upper"] = [edge] + [rng.uniform(0.5, 3) for _ in range(count - 1)]
    if switches & 4:
        rule["density"] = [rng.choice([0.0, 0.3, 0.9, 1.0]) for _ in range(count)]
        rule["keys"] = [rng.getrandbits(64) for _ in range(count)]
        rule["start"] = 4096 * rng.choice([0, 1, 2**21 - 1, 2**31 + 7])
        rule["gains"] = [rng.uniform(-2, 2) for _ in range(count)]
    return rule


def threshold(rng: random.Random) -> None:
    for size in SIZES:
        for dtype in DTYPES:
            base, parent = values(size, dtype, rng), values(size, dtype, rng)
            parent[torch.rand(size) < 0.5] = 0
            base[parent == 0] = 0  # most weights were not trained
            for count in sorted({1, min(2, size), (size + 1) // 3 or 1, size}):
                check(*both(kth_largest, base, parent, count), (size, dtype, count))
        found = both(kth_largest, base, parent.float(), (size + 1) // 3 or 1, is_delta=True)
        check(*found, (size, "delta"))


def lowrank(rng: random.Random) -> None:
    shapes = [(1, 1, [1]), (65, 130, [3, 8]), (64, 64, [16]), (7, 200, [40]), (130, 33, [4, 4, 64])]
    for rows, columns, ranks in shapes:
        for dtype in DTYPES:
            weight = torch.randn(rows, columns).to(dtype)
            pairs = [
                (
                    torch.randn(rows, r).to(dtype),
                    torch.randn(r, columns).to(dtype),
                    rng.uniform(-1, 1),
                )
                for r in ranks
            ]
            found = lowrank_fold(weight, pairs, out_dtype=torch.float32, backend="triton")
            exact = weight.double()
            size = weight.double().abs()
            for b, a, factor in pairs:
                exact += factor * (b.double() @ a.double())
                size += abs(factor) * (b.double().abs() @ a.double().abs())
            # A float32 sum of n products is off by at most n + 2 roundings of the sum of their
            # magnitudes, in any order (Higham, Accuracy and Stability, 3.1); one more for the
            # factor, one for the weight.
            bound = (sum(ranks) + 4) * 2.0**-24 * size
            assert ((found - exact).abs() <= bound).all(), (rows, columns, ranks, dtype)
            rounded = lowrank_fold(weight, pairs, out_dtype=dtype, backend="triton")
            check(rounded, found.to(dtype), (rows, columns, ranks, dtype))


if __name__ == "__main__":
    torch.empty_like, interpreter._convert_float = poisoned, convert
    torch.manual_seed(0)
    globals()[sys.argv[1]](random.Random(0))  # noqa: S311 -- no secret
