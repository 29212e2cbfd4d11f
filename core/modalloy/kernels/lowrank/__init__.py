"""Low-rank pairs folded into the weight they belong to."""

from collections.abc import Sequence

import torch

from modalloy.errors import SpecError
from modalloy.kernels.dispatch import check_lengths, choose, output_refusals

Pair = tuple[torch.Tensor, torch.Tensor, float]


def lowrank_fold(
    weight: torch.Tensor,
    pairs: Sequence[Pair],
    *,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Return ``W + sum_m factor_m * B_m @ A_m``, the pairs as one product of all their ranks.

    A matrix product: backends differ in the order of its sums and in fused multiply-adds, so that
    results agree within float32's bound for a sum of R terms and not bit for bit.

    Args:
        weight: ``(O, I)``, contiguous; bfloat16, float16 or float32.
        pairs: ``(B, A, factor)`` each: B ``(O, R_m)``, A ``(R_m, I)``, of any ranks and
            floating-point types, on the weight's device (LoRA, Hu et al., arXiv 2106.09685).
        out_dtype: The result's type; the weight's if None.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``(O, I)``.

    Raises:
        SpecError: There is no pair, or one does not fit the weight.
        UnknownNameError: There is no such backend.
        BackendError: Triton was asked for by name and cannot run the call.
    """
    check_lengths("lowrank_fold", len(pairs), {})
    if weight.dim() != 2 or not weight.is_contiguous():  # noqa: PLR2004 -- a matrix
        raise SpecError(
            f"lowrank_fold: the weight has shape {tuple(weight.shape)} and strides "
            f"{weight.stride()}; expected a contiguous matrix",
            subject="weight",
        )
    for number, pair in enumerate(pairs):
        _check_pair(weight, number, *pair)
    b, a = stack(pairs)
    out_dtype = out_dtype or weight.dtype
    tensors, refusals = [weight, b, a], output_refusals(out_dtype)
    if choose(backend, tensors, op="lowrank_fold", refusals=refusals) == "triton":
        from modalloy.kernels.lowrank.triton import lowrank_fold as run
    else:
        from modalloy.kernels.lowrank.reference import lowrank_fold as run
    return run(weight, b, a, out_dtype)


def stack(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(O, R)`` and ``(R, I)`` float32 whose product is the sum of the pairs'."""
    b = torch.cat([b.float() * factor for b, _, factor in pairs], dim=1)
    a = torch.cat([a.float() for _, a, _ in pairs], dim=0)
    return b, a


def _check_pair(
    weight: torch.Tensor, number: int, b: torch.Tensor, a: torch.Tensor, _factor: float
) -> None:
    """Check that a pair fits the weight."""
    rows, columns = weight.shape
    shaped = b.dim() == a.dim() == 2 and b.shape[1] == a.shape[0]  # noqa: PLR2004 -- matrices
    if not shaped or (b.shape[0], a.shape[1]) != (rows, columns):
        raise SpecError(
            f"lowrank_fold: pair {number} has B {tuple(b.shape)} and A {tuple(a.shape)}; expected "
            f"({rows}, R) and (R, {columns}) for a weight of shape ({rows}, {columns})",
            subject=f"pair {number}",
        )
    if not weight.device == b.device == a.device:
        raise SpecError(
            f"lowrank_fold: pair {number} is on {b.device} and {a.device}, the weight on "
            f"{weight.device}; move one",
            subject=f"pair {number}",
        )
