"""Weighted sums in plain PyTorch: what the other backends are held to."""

from collections.abc import Sequence

import torch


def weighted_sum(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    divisor: float,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Return the weighted sum of checked arguments, see :func:`modalloy.kernels.weighted`.

    Args:
        tensors: Of one shape each, any floating-point types.
        weights: One per tensor, float32 values.
        divisor: A float32 value.
        out_dtype: The result's type.

    Returns:
        Of the tensors' shape.
    """
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for one, weight in zip(tensors, weights, strict=True):
        # Two steps, two roundings: add(alpha=) and addcmul may round once.
        total += one.float() * weight
    if divisor != 1:
        # By a plain number CUDA would multiply with its reciprocal, which is not IEEE division.
        total /= torch.full((), divisor, dtype=torch.float32, device=total.device)
    return total.to(out_dtype)
