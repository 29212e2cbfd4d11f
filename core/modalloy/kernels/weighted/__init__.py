"""Weighted sums and means of tensors."""

from collections.abc import Sequence

import torch

from modalloy.kernels.dispatch import (
    check_alike,
    check_lengths,
    choose,
    float32,
    parent_refusals,
)


def weighted_sum(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    divisor: float = 1.0,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Return ``(w_0 * x_0 + w_1 * x_1 + ...) / divisor``, summed in the order given.

    Linear merging (model soups, Wortsman et al., arXiv 2203.05482).

    Args:
        tensors: Of one shape, contiguous, on one device; any mix of bfloat16, float16, float32.
        weights: One per tensor, rounded to float32.
        divisor: Rounded to float32; of 1, no division takes place.
        out_dtype: The result's type; the first tensor's if None.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        Of the tensors' shape.

    Raises:
        SpecError: The tensors differ in shape or device, or weights are missing.
        UnknownNameError: There is no such backend.
        BackendError: Triton was asked for by name and cannot run the call.
    """
    check_lengths("weighted_sum", len(tensors), {"weights": len(weights)})
    check_alike("weighted_sum", {f"tensor {i}": one for i, one in enumerate(tensors)})
    out_dtype = out_dtype or tensors[0].dtype
    refusals = parent_refusals(tensors, out_dtype)
    if choose(backend, tensors, op="weighted_sum", refusals=refusals) == "triton":
        from modalloy.kernels.weighted.triton import weighted_sum as run
    else:
        from modalloy.kernels.weighted.reference import weighted_sum as run
    (divisor,) = float32([divisor])
    return run(tensors, float32(weights), divisor=divisor, out_dtype=out_dtype)
