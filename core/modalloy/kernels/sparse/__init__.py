"""Merges of deltas that leave most of their values out."""

from collections.abc import Sequence

import torch

from modalloy.kernels.dispatch import check_alike, check_lengths, choose, parent_refusals
from modalloy.kernels.sparse.rule import make_rule


def delta_merge(  # noqa: PLR0913 -- one argument for each step of the formula
    base: torch.Tensor,
    parents: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    gains: Sequence[float] | None = None,
    lower: Sequence[float] | torch.Tensor | None = None,
    upper: Sequence[float] | torch.Tensor | None = None,
    density: Sequence[float] | None = None,
    keys: Sequence[int] | None = None,
    elect: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
    is_delta: Sequence[bool] | None = None,
    start: int = 0,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Return the base plus what is kept of its N parents' deltas, in one pass over the tensors.

    For parent i::

        d_i  = x_i - base
        keep = |d_i| >= lower_i  and  |d_i| <= upper_i  and  word_i < density_i * 2**32
        d_i  = gains_i * d_i where kept, else 0

        result = base + scale * (d_0 + d_1 + ...) / divisor

    With ``elect``, only deltas with the sign of their total are summed (+ where the total is 0).
    The divisor is the sum of the weights, of those that agree if a sign is elected, and 1 where
    that sum is 0 (without election: less than 1e-8); it is left out unless ``normalize``.

    So one operation covers task arithmetic (Ilharco et al., arXiv 2212.04089), TIES (Yadav et al.,
    arXiv 2306.01708: lower and elect), breadcrumbs (Davari and Belilovsky, arXiv 2312.06795: lower
    and upper) and DARE (Yu et al., arXiv 2311.03099: density, with gains of weight / density).

    Args:
        base: Any shape, contiguous; bfloat16, float16 or float32.
        parents: N of that shape on that device, any mix of these types.
        weights: N, rounded to float32.
        gains: N, rounded to float32; the weights if None.
        lower: N magnitudes, or ``(N,)`` float32 on the base's device, so that a threshold found
            there need not be waited for. What is as large as the bound is kept.
        upper: Likewise.
        density: N shares of values that are kept at random.
        keys: N integers of 64 bits; a parent's random words depend on its key and on each
            element's number alone, see :mod:`modalloy.kernels.philox`.
        elect: Whether a sign is elected.
        normalize: Whether the total is divided.
        scale: What the total is multiplied by, rounded to float32.
        is_delta: N; whether a parent is a float32 delta and not yet added to the base.
        start: The first element's number, where this is a piece of a larger tensor; a multiple of
            4096.
        out_dtype: The result's type; the base's if None.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        Of the base's shape.

    Raises:
        SpecError: The tensors differ in shape or device, or the lists in length, a density has no
            key, or ``start`` lies inside a block.
        UnknownNameError: There is no such backend.
        BackendError: Triton was asked for by name and cannot run the call.
    """
    check_lengths("delta_merge", len(parents), {})
    check_alike("delta_merge", {"base": base, **{f"parent {i}": p for i, p in enumerate(parents)}})
    rule = make_rule(
        base,
        parents,
        weights,
        gains=gains,
        lower=lower,
        upper=upper,
        density=density,
        keys=keys,
        elect=elect,
        normalize=normalize,
        scale=scale,
        is_delta=is_delta,
        start=start,
    )
    out_dtype = out_dtype or base.dtype
    refusals = parent_refusals(parents, out_dtype)
    if choose(backend, [base, *parents], op="delta_merge", refusals=refusals) == "triton":
        from modalloy.kernels.sparse.triton import delta_merge as run
    else:
        from modalloy.kernels.sparse.reference import delta_merge as run
    return run(base, parents, rule, out_dtype)
