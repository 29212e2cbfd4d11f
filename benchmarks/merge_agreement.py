"""Whether two merged models agree to one step of bfloat16."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open


def disagreements(
    ours: Path, theirs: Path, base: Path, trimmed: Sequence[Path], density: float = 0.2
) -> dict[str, float]:
    """Compare two outputs element by element.

    Args:
        ours: Directory of one.
        theirs: Directory of the other.
        base: Directory of the base.
        trimmed: Parents whose deltas were trimmed to ``density``: where a parent's magnitude is
            its threshold, which of the tied ones are kept is anyone's choice.
        density: Share kept.

    Returns:
        How many elements there are, how many are more than a step apart, not counting those tied
        at a threshold, and how many of those there are.
    """
    elements = off = tied = equal = 0
    with (
        safe_open(ours / "model.safetensors", framework="pt") as mine,
        safe_open(theirs / "model.safetensors", framework="pt") as other,
    ):
        if sorted(mine.keys()) != sorted(other.keys()):
            raise SystemExit(f"{ours} and {theirs} hold different tensors")
        for name in mine.keys():  # noqa: SIM118 - it is no mapping
            a, b = mine.get_tensor(name), other.get_tensor(name)
            apart = (_order(a) - _order(b)).abs()
            elements += a.numel()
            equal += int((apart == 0).sum())
            wrong = apart > 1
            if trimmed and bool(wrong.any()):
                at_limit = _at_threshold(name, base, trimmed, density)
                tied += int((wrong & at_limit).sum())
                wrong &= ~at_limit
            off += int(wrong.sum())
    return {"elements": elements, "off": off, "tied": tied, "equal": equal}


def _order(tensor: torch.Tensor) -> torch.Tensor:
    """Return integers that count the steps between bfloat16 numbers."""
    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _at_threshold(name: str, base: Path, parents: Sequence[Path], density: float) -> torch.Tensor:
    start = _read(base, name)
    found = torch.zeros(start.shape, dtype=torch.bool)
    for parent in parents:
        size = (_read(parent, name) - start).abs()
        kept = max(1, int(density * size.numel()))
        threshold = size.flatten().sort().values[size.numel() - kept]
        found |= size == threshold
    return found


def _read(directory: Path, name: str) -> torch.Tensor:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.float()
