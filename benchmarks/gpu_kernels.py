"""Bandwidth of the Triton kernels on this machine's GPU, beside that of a plain copy.

Run ``python benchmarks/gpu_kernels.py [--json FILE] [--elements N]``. Each kernel is first held to
the reference, on the GPU and on the CPU; one that differs is not timed, and the exit code is 1.
Without a GPU or without Triton the exit code is 2.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from modalloy.cli.output import print_table
from modalloy.kernels.lowrank import lowrank_fold
from modalloy.kernels.sparse import delta_merge
from modalloy.kernels.threshold import kth_largest
from modalloy.kernels.weighted import weighted_sum

BF16, FP32 = torch.bfloat16, torch.float32
Call = Callable[[str], torch.Tensor]

CHECKED = 1_000_003
"""Elements in a check: no round number, so that the last block is cut."""
COLUMNS, RANK = 4096, 64


def streaming(device: str, size: int) -> dict[str, tuple[Call, int]]:
    """Return the calls of kernels that pass over their tensors once, by backend, and their bytes.

    Args:
        device: Of the tensors.
        size: Elements of each.
    """
    base = _noise(0, size, device)
    parents = [(base + 0.1 * _noise(1 + i, size, device)).to(BF16) for i in range(8)]
    base16, other = base.to(BF16), base + 1
    density, keys = [0.3] * 8, [(17 + i) << 33 for i in range(8)]
    lower = [0.05] * 8
    return {
        "weighted sum, 3 bf16": (
            lambda b: weighted_sum(parents[:3], [0.2, 0.3, 0.5], backend=b),
            8 * size,
        ),
        "weighted mean, 2 fp32": (
            lambda b: weighted_sum([base, other], [0.2, 0.3], divisor=0.5, backend=b),
            12 * size,
        ),
        "task arithmetic, 3 bf16": (
            lambda b: delta_merge(base16, parents[:3], [0.2, 0.3, 0.5], backend=b),
            10 * size,
        ),
        "TIES, 4 bf16": (
            lambda b: delta_merge(
                base16,
                parents[:4],
                [1.0] * 4,
                lower=lower[:4],
                elect=True,
                normalize=True,
                backend=b,
            ),
            12 * size,
        ),
        "breadcrumbs, 4 bf16": (
            lambda b: delta_merge(
                base16, parents[:4], [0.3] * 4, lower=lower[:4], upper=[0.2] * 4, backend=b
            ),
            12 * size,
        ),
        "DARE, 8 bf16": (
            lambda b: delta_merge(
                base16, parents, [0.3] * 8, gains=[1.0] * 8, density=density, keys=keys, backend=b
            ),
            20 * size,
        ),
        "DARE and TIES, 8 bf16": (
            lambda b: delta_merge(
                base16,
                parents,
                [0.3] * 8,
                lower=lower,
                elect=True,
                normalize=True,
                backend=b,
                density=density,
                keys=keys,
            ),
            20 * size,
        ),
        # Both passes read both tensors.
        "threshold, bf16": (
            lambda b: kth_largest(base16, parents[0], size // 5, backend=b),
            8 * size,
        ),
    }


def folding(device: str, rows: int) -> tuple[Call, int]:
    """Return the call of the low-rank kernel, and its bytes."""
    weight = _noise(20, rows * COLUMNS, device).view(rows, COLUMNS).to(BF16)
    b = _noise(21, rows * RANK, device).view(rows, RANK)
    a = _noise(22, RANK * COLUMNS, device).view(RANK, COLUMNS)
    moved = 4 * weight.numel() + 4 * (b.numel() + a.numel())
    return lambda name: lowrank_fold(weight, [(b, a, 0.1)], backend=name), moved


def _noise(seed: int, size: int, device: str) -> torch.Tensor:
    """Return normal values that are the same on every device."""
    made = torch.randn(min(size, CHECKED), generator=torch.Generator().manual_seed(seed))
    return made.to(device).repeat(-(-size // made.numel()))[:size].contiguous()


def failures() -> list[str]:
    """Return the kernels that differ from the reference."""
    found = []
    here, there = streaming("cuda", CHECKED), streaming("cpu", CHECKED)
    for name, (call, _) in here.items():
        mine = call("triton")
        same = torch.equal(mine, call("reference"))
        if not same or not torch.equal(mine.cpu(), there[name][0]("reference")):
            found.append(name)
    call, _ = folding("cuda", 130)
    exact, _ = folding("cpu", 130)
    # One rounding to bfloat16 apart at most: sums of 64 products in float32 differ by far less.
    if not torch.allclose(call("triton").cpu().float(), exact("reference").float(), 2**-7, 1e-5):
        found.append("low-rank fold")
    return found


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median time that the GPU takes over ``work``."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _copy(size: int) -> Callable[[], object]:
    """Return a plain copy of ``size`` float32 numbers."""
    one = torch.zeros(size, dtype=FP32, device="cuda")
    other = torch.empty_like(one)
    return lambda: other.copy_(one)


def measure(size: int, rounds: int, broken: list[str]) -> dict[str, Any]:
    """Return what was measured of all kernels that are not broken."""
    copy = 8 * size / milliseconds(_copy(size), rounds) / 1e6
    calls = {**streaming("cuda", size), "low-rank fold": folding("cuda", size // COLUMNS)}
    rows = {}
    for name, (call, moved) in calls.items():
        if name not in broken:
            took = milliseconds(lambda call=call: call("triton"), rounds)  # type: ignore[misc]
            plain = milliseconds(lambda call=call: call("reference"), 3)  # type: ignore[misc]
            speed = moved / took / 1e6
            rows[name] = {"ms": took, "GB/s": speed, "of copy": speed / copy, "reference ms": plain}
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "elements": size,
        "copy GB/s": copy,
        "kernels": rows,
        "differ from the reference": broken,
    }


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 27, help="of each tensor")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available() or find_spec("triton") is None:
        print(
            "This machine has no GPU, or no Triton: there is nothing to measure.", file=sys.stderr
        )
        raise SystemExit(2)
    found = measure(args.elements, args.rounds, failures())
    print_table(
        f"{found['device']}, {args.elements} elements; a copy moves {found['copy GB/s']:.0f} GB/s",
        ("kernel", "ms", "GB/s", "of a copy's", "reference ms"),
        [
            (
                n,
                f"{r['ms']:.3f}",
                f"{r['GB/s']:.0f}",
                f"{r['of copy']:.0%}",
                f"{r['reference ms']:.2f}",
            )
            for n, r in found["kernels"].items()
        ],
    )
    for name in found["differ from the reference"]:
        print(f"{name}: differs from the reference and was not timed", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(1 if found["differ from the reference"] else 0)


if __name__ == "__main__":
    main()
