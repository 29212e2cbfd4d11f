"""Methods that merge whole weights: from a recipe's numbers to the rule of a tensor.

Names and defaults are those that recipes in circulation use. Each layer is trimmed by itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modalloy.errors import SpecError
from modalloy.merging.rules import Deltas, Floats, Slerp, Weighted, Whole

if TYPE_CHECKING:
    import torch


def linear(*, weight: Floats, normalize: bool) -> Weighted:
    """Average models (Wortsman et al., Model soups, arXiv 2203.05482).

    Raises:
        SpecError: The weights are to be normalised and sum to 0.
    """
    total = sum(weight)
    if normalize and abs(total) < _NOTHING:
        raise SpecError(
            f"linear: the weights {', '.join(map(str, weight))} sum to 0 and cannot be normalised; "
            "set normalize: false, or other weights"
        )
    return Weighted(weights=weight, divisor=total if normalize else 1.0)


def passthrough(*, scale: Floats) -> Weighted:
    """Take the one model as it is, scaled."""
    return Weighted(weights=scale)


def slerp(*, t: float) -> Slerp:
    """Go from the base to the other model along an arc (Shoemake, SIGGRAPH 1985)."""
    return Slerp(t=t)


def task_arithmetic(*, weight: Floats, normalize: bool, scale: float) -> Deltas:
    """Add up task vectors (Ilharco et al., arXiv 2212.04089)."""
    return Deltas(weights=weight, normalize=normalize, scale=scale)


def ties(*, weight: Floats, density: Floats, normalize: bool, scale: float) -> Deltas:
    """Trim, elect signs, and merge what agrees (Yadav et al., arXiv 2306.01708)."""
    return Deltas(weights=weight, density=density, elect=True, normalize=normalize, scale=scale)


def dare_linear(*, weight: Floats, density: Floats, normalize: bool, scale: float) -> Deltas:
    """Drop values at random, rescale the others, and add up (Yu et al., arXiv 2311.03099).

    What is kept is divided by the density, as in the paper, so that the expected delta stays.
    """
    return Deltas(weights=weight, keep=density, normalize=normalize, scale=scale)


def dare_ties(*, weight: Floats, density: Floats, normalize: bool, scale: float) -> Deltas:
    """Drop values at random, rescale, elect signs and merge what agrees (arXiv 2311.03099)."""
    return Deltas(weights=weight, keep=density, elect=True, normalize=normalize, scale=scale)


def breadcrumbs(
    *, weight: Floats, density: Floats, gamma: Floats, normalize: bool, scale: float
) -> Deltas:
    """Give up the smallest and the very largest values (Davari & Belilovsky, arXiv 2312.06795)."""
    return Deltas(weights=weight, density=density, outliers=gamma, normalize=normalize, scale=scale)


def breadcrumbs_ties(
    *, weight: Floats, density: Floats, gamma: Floats, normalize: bool, scale: float
) -> Deltas:
    """Breadcrumbs whose remaining values are elected by sign, as in TIES."""
    return Deltas(
        weights=weight,
        density=density,
        outliers=gamma,
        elect=True,
        normalize=normalize,
        scale=scale,
    )


def della(
    *, weight: Floats, density: Floats, epsilon: Floats, normalize: bool, scale: float
) -> Deltas:
    """Drop small values of a row more often than large ones, rescale each, elect signs.

    DELLA-Merging (Deep et al., arXiv 2406.11617): what is kept is divided by its own probability.
    """
    return _della(weight, density, epsilon, normalize=normalize, scale=scale, elect=True)


def della_linear(
    *, weight: Floats, density: Floats, epsilon: Floats, normalize: bool, scale: float
) -> Deltas:
    """DELLA without the election of signs."""
    return _della(weight, density, epsilon, normalize=normalize, scale=scale, elect=False)


def swudi(*, share: float, time: float, scale: float) -> Whole:
    """Minimise the deltas' interference in closed form (SWUDI), on whole matrices.

    See :func:`modalloy.merging.methods.swudi_dense`.
    """

    def function(base: "torch.Tensor | None", models: "Sequence[torch.Tensor]") -> "torch.Tensor":
        from modalloy.merging.methods import swudi_dense

        if base is None:
            raise SpecError("swudi: it merges differences from a base, and was given none")
        deltas = [model - base for model in models]
        merged: torch.Tensor = base + scale * swudi_dense(deltas, share, time)
        return merged

    return Whole(function=function)


def _della(
    weight: Floats,
    density: Floats,
    epsilon: Floats,
    *,
    normalize: bool,
    scale: float,
    elect: bool,
) -> Deltas:
    for share, spread in zip(density, epsilon, strict=True):
        if share < 1 and not (share - spread > 0 and share + spread < 1):
            raise SpecError(
                f"della: density {share:g} less or more epsilon {spread:g} must lie between 0 and "
                "1; make epsilon smaller"
            )
    return Deltas(
        weights=weight,
        keep=density,
        spread=epsilon,
        elect=elect,
        normalize=normalize,
        scale=scale,
    )


_NOTHING = 1e-12
