"""The training loss: cross-entropy on labelled tokens, the head computed for those alone."""

from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100
"""Label of positions that do not count in the loss."""


def labelled_columns(labels: torch.Tensor) -> torch.Tensor:
    """Return the columns whose next token some row has a label for: the head runs on those."""
    return (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)


def labelled_loss(logits: torch.Tensor, targets: torch.Tensor, items: Any) -> torch.Tensor:
    """Return the cross-entropy over labelled positions, in float32.

    Args:
        logits: ``(B, C, V)``.
        targets: ``(B, C)``.
        items: Labelled tokens of the whole (accumulated, distributed) batch, or ``None`` for the
            mean over this one.
    """
    flat, goal = logits.float().flatten(0, 1), targets.flatten().to(logits.device)
    if items is None:
        return F.cross_entropy(flat, goal, ignore_index=IGNORED)
    return F.cross_entropy(flat, goal, ignore_index=IGNORED, reduction="sum") / items
