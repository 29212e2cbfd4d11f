"""Whether two merged models agree to one step of bfloat16."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from modalloy.merging.rules import kept_ranks


def disagreements(
    ours: Path,
    theirs: Path,
    base: Path,
    parents: Sequence[Path],
    *,
    density: float | None = None,
    outliers: float | None = None,
) -> dict[str, int]:
    """Compare two outputs element by element.

    Two kinds of difference are counted apart. Where a parent's magnitude is at a threshold, which
    of the tied values are kept is anyone's choice. And where a sum of large terms comes out near
    0, its steps of bfloat16 are finer than what float32 loses in the terms.

    Args:
        ours: Directory of one.
        theirs: Directory of the other.
        base: Directory of the base.
        parents: Directories of what was merged into it.
        density: Share of each delta that was kept by magnitude, if any was trimmed.
        outliers: Share of the largest that was given up.

    Returns:
        How many elements there are and how many are equal; of those more than a step apart, how
        many are tied, how many cancelled, and how many are neither.
    """
    counts = {"elements": 0, "equal": 0, "tied": 0, "cancelled": 0, "off": 0}
    with (
        safe_open(ours / "model.safetensors", framework="pt") as mine,
        safe_open(theirs / "model.safetensors", framework="pt") as other,
    ):
        if sorted(mine.keys()) != sorted(other.keys()):
            raise SystemExit(f"{ours} and {theirs} hold different tensors")
        for name in mine.keys():  # noqa: SIM118 - it is no mapping
            a, b = mine.get_tensor(name), other.get_tensor(name)
            apart = (_order(a) - _order(b)).abs()
            counts["elements"] += a.numel()
            counts["equal"] += int((apart == 0).sum())
            wrong = apart > 1
            if not bool(wrong.any()):
                continue
            start, tuned = _read(base, name), [_read(parent, name) for parent in parents]
            if density is not None:
                tied = wrong & _at_threshold(start, tuned, density, outliers)
                counts["tied"] += int(tied.sum())
                wrong &= ~tied
            size = torch.stack([start, *tuned]).abs().amax(0)
            cancelled = wrong & ((a.float() - b.float()).abs() <= _ROUNDING * size)
            counts["cancelled"] += int(cancelled.sum())
            counts["off"] += int((wrong & ~cancelled).sum())
    return counts


_ROUNDING = 2.0**-16
"""A 256th of a step of bfloat16, of the largest term: what float32 loses in terms and angles."""


def _order(tensor: torch.Tensor) -> torch.Tensor:
    """Return integers that count the steps between bfloat16 numbers."""
    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _at_threshold(
    start: torch.Tensor, parents: Sequence[torch.Tensor], density: float, outliers: float | None
) -> torch.Tensor:
    """Return where a parent's magnitude is the least or the greatest that is kept of it."""
    found = torch.zeros(start.shape, dtype=torch.bool)
    for parent in parents:
        size = (parent - start).abs()
        first, last = kept_ranks(size.numel(), density, outliers)
        ordered = size.flatten().sort(descending=True).values
        for rank in {first, last} - {0}:
            found |= size == ordered[rank - 1]
    return found


def _read(directory: Path, name: str) -> torch.Tensor:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.float()
