"""Merge methods of one linear layer, as pure functions.

They act on whole deltas, ``scale * B @ A``: the factors of a product are no task vectors, and
merging each by itself is another thing, see :func:`factor_mean`. Sums run in the order given;
callers give parents sorted by name, so that no bit depends on the order of installation.
"""

from collections.abc import Sequence

import torch

from modalloy.deltas.lowrank import LowRankPair
from modalloy.errors import DeltaError
from modalloy.merging.rules import kept_ranks


def task_sum(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of the deltas: task arithmetic (Ilharco et al., arXiv 2212.04089).

    Args:
        deltas: ``(O, I)`` float32 each.
    """
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total


def mean(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the deltas, ``(O, I)`` float32 each."""
    return task_sum(deltas) / len(deltas)


def ties(deltas: Sequence[torch.Tensor], density: float = 0.2) -> torch.Tensor:
    """Trim, elect signs, and average what agrees (Yadav et al., arXiv 2306.01708, section 4).

    Each layer is trimmed by itself, where the authors rank all values of a model at once: a
    parent's large layers do not silence its small ones.

    Args:
        deltas: ``(O, I)`` float32 each.
        density: Share of each delta's values that is kept, the largest by magnitude.

    Returns:
        ``(O, I)`` float32; 0 where no value is left or the kept ones cancel.
    """
    trimmed = [trim(delta, density) for delta in deltas]
    elected = task_sum(trimmed).sign()
    agreeing = [torch.where(delta.sign() == elected, delta, 0.0) for delta in trimmed]
    count = task_sum([(delta != 0).float() for delta in agreeing])
    return task_sum(agreeing) / count.clamp(min=1)


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Return ``delta`` with all but its largest values set to 0.

    Args:
        delta: ``(O, I)`` float32.
        density: Share that is kept, rounded down, at least one value;
            values as large as the smallest kept one are kept too.
    """
    size = delta.abs()
    _, kept = kept_ranks(delta.numel(), density, None)
    smallest = size.flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(size >= smallest, delta, 0.0)


def mmer_mask(delta: torch.Tensor, merged: torch.Tensor, strictness: float = 1.0) -> torch.Tensor:
    """Return which values of a merged delta serve one parent (MMER, arXiv 2505.17110).

    A reconstruction: the rule follows TALL-masks (Wang et al., arXiv 2405.07813), with the signs
    compared as well. A value serves the parent if it has the parent's sign and the parent's own
    value is not small beside what the others made of it.

    Args:
        delta: The parent's ``(O, I)`` float32.
        merged: Of all parents ``(O, I)`` float32.
        strictness: What the difference from the merged value is multiplied by before it is
            compared with the parent's own value.

    Returns:
        ``(O, I)`` bool.
    """
    agrees = delta * merged > 0
    return agrees & (delta.abs() >= strictness * (merged - delta).abs())


def factor_mean(pairs: Sequence[LowRankPair]) -> LowRankPair:
    """Return ``scale * (mean B) @ (mean A)``, what ModelCompose's released script computes.

    It is not the mean of the products: the factors of one parent meet those of the others.

    Raises:
        DeltaError: The pairs differ in rank or scale, so that their factors have no mean.
    """
    first = pairs[0]
    if any((one.rank, one.scale) != (first.rank, first.scale) for one in pairs):
        shown = ", ".join(f"rank {one.rank} scale {one.scale:g}" for one in pairs)
        raise DeltaError(
            f"factors can only be averaged where all parents have one rank and scale; found {shown}"
        )
    a, b = ([getattr(one, factor).float() for one in pairs] for factor in "AB")
    return LowRankPair(mean(a), mean(b), first.scale)


def swudi(pairs: Sequence[LowRankPair], share: float = 0.85, time: float = 300.0) -> LowRankPair:
    """Minimise the parents' interference in closed form (SWUDI).

    WUDI (arXiv 2503.08099) looks for the delta tau with the least
    ``sum_i |(tau - tau_i) tau_i^T|^2 / |tau_i|^2``, whose gradient flow has the solution
    ``tau_0 - tau_0 V f V^T + D V (f / l) V^T`` with ``C = sum_i tau_i^T tau_i / |tau_i|^2 =
    V diag(l) V^T``, ``D = sum_i tau_i tau_i^T tau_i / |tau_i|^2`` and ``f = 1 - exp(-time * l)``.

    All of it lies in the span of the parents' A, so nothing wider than the sum of their ranks is
    decomposed, and the result is exact with at most that rank.

    Args:
        pairs: Of one layer.
        share: Of the directions of that span, the largest eigenvalues first, how many the flow
            acts along; along the others the sum of the deltas, ``tau_0``, stays.
        time: At which the flow is stopped.

    Returns:
        A pair with orthonormal A, float32.
    """
    span = torch.linalg.qr(torch.cat([one.A.double() for one in pairs]).T).Q
    deltas = [one.scale * (one.B.double() @ (one.A.double() @ span)) for one in pairs]
    merged = _flow(deltas, share, time)
    return LowRankPair(span.T.float().contiguous(), merged.float(), 1.0)


def swudi_dense(
    deltas: Sequence[torch.Tensor], share: float = 0.85, time: float = 300.0
) -> torch.Tensor:
    """Merge whole deltas by :func:`swudi`; what is no matrix is averaged, as the authors do.

    Args:
        deltas: ``(O, I)`` float32 each. I by I matrices are decomposed, in float64.
        share: As in :func:`swudi`, of all I directions.
        time: As in :func:`swudi`.
    """
    if deltas[0].ndim != 2:  # noqa: PLR2004
        return mean(deltas)
    return _flow([delta.double() for delta in deltas], share, time).float()


def _flow(deltas: Sequence[torch.Tensor], share: float, time: float) -> torch.Tensor:
    """Return the gradient flow's solution for deltas ``(O, K)`` float64."""
    start = task_sum(deltas)
    deltas = [delta for delta in deltas if bool(delta.any())]
    if not deltas:
        return start
    grams = [delta.T @ delta / delta.square().sum() for delta in deltas]
    values, vectors = torch.linalg.eigh(task_sum(grams))
    flow = -torch.expm1(-time * values)
    # Rounding makes eigenvalues of 0 tiny; D is 0 along those, and the quotient is not.
    moved = values > values[-1] * values.numel() * torch.finfo(values.dtype).eps
    moved[: values.numel() - round(share * values.numel())] = False
    flow, quotient = (torch.where(moved, v, 0.0) for v in (flow, flow / values))
    goal = task_sum([d @ gram for d, gram in zip(deltas, grams, strict=True)])
    return start - ((start @ vectors) * flow - (goal @ vectors) * quotient) @ vectors.T
