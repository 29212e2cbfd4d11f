"""Sparse merges in plain PyTorch: what the other backends are held to."""

from collections.abc import Sequence

import torch

from modalloy.kernels.philox import random_words
from modalloy.kernels.sparse.rule import WORDS, Rule


def delta_merge(
    base: torch.Tensor, parents: Sequence[torch.Tensor], rule: Rule, out_dtype: torch.dtype
) -> torch.Tensor:
    """Return the merge that ``rule`` describes, see :func:`modalloy.kernels.sparse.delta_merge`.

    Args:
        base: Any shape and floating-point type.
        parents: Likewise, of the base's shape.
        rule: What is kept of each parent and how it is summed.
        out_dtype: The result's type.

    Returns:
        Of the base's shape.
    """
    origin = base.float()
    deltas = [kept_delta(origin, one, rule, i) for i, one in enumerate(parents)]
    total = in_order(deltas)
    divisor = scalar(rule.divisor, base)
    if rule.elect:
        positive = total >= 0
        agrees = [torch.where(positive, one, -one) > 0 for one in deltas]
        weights = [scalar(weight, base) for weight in rule.weights]
        # A sum that is no number stays none: nothing that is broken is to disappear.
        total = torch.where(total.isnan(), total, in_order(only(agrees, deltas)))
        divisor = in_order(only(agrees, weights))
        divisor = torch.where(divisor == 0, 1.0, divisor)
    if rule.normalize:
        total = total / divisor
    if rule.scale != 1:
        total = total * rule.scale
    return (origin + total).to(out_dtype)


def kept_delta(origin: torch.Tensor, parent: torch.Tensor, rule: Rule, i: int) -> torch.Tensor:
    """Return what is kept of parent ``i``'s delta, float32, multiplied by the parent's gain.

    Args:
        origin: The base, float32.
        parent: Of the base's shape.
        rule: See :func:`delta_merge`.
        i: Number of the parent.
    """
    delta = parent if rule.is_delta[i] else parent.float() - origin
    keep = torch.ones_like(delta, dtype=torch.bool)
    if rule.lower is not None:
        keep &= ~(delta.abs() < rule.lower[i])
    if rule.upper is not None:
        keep &= ~(delta.abs() > rule.upper[i])
    if rule.thresholds is not None and rule.thresholds[i] < WORDS:
        words = random_words(rule.keys[i], rule.start, delta.numel(), delta.device)
        keep &= words.view(delta.shape) < rule.thresholds[i]
    return torch.where(keep, delta * rule.gains[i], 0.0)


def only(agrees: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return each value where it agrees, and 0 where it does not."""
    return [torch.where(yes, one, 0.0) for yes, one in zip(agrees, values, strict=True)]


def in_order(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ``0 + v_0 + v_1 + ...``, in float32 and from left to right."""
    total = torch.zeros_like(values[0])
    for one in values:
        total += one
    return total


def scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    """Return ``value`` as a float32 tensor without dimensions on the device of ``like``.

    By a plain number CUDA would divide with its reciprocal, which is not IEEE division; and plain
    numbers alone would make a tensor of torch's default type, whatever that has been set to.
    """
    return torch.full((), value, dtype=torch.float32, device=like.device)
