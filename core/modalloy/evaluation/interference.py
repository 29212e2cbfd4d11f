"""Interference: how far the deltas of different parents pull one layer apart.

Merging works where parents change different directions of a layer and fails where they change one
value both up and down. Per linear layer and pair of parents this measures the angle between their
deltas and the share of values on whose sign they disagree (the two quantities that TIES,
arXiv 2306.01708, and its successors act on), from the parents alone: no data, no base. Norms,
biases and embeddings that a parent tuned whole are not looked at.
"""

import itertools
from collections.abc import Mapping

import attrs
import torch

from modalloy.deltas.lowrank import LowRankDelta, LowRankPair

ROWS = 512
"""Rows of a layer's delta that are formed at a time."""


@attrs.frozen
class Interference:
    """Two parents at one linear layer.

    Attributes:
        module: Name of the layer in the base.
        parents: Names of the two, sorted.
        cosine: Of the two deltas as vectors, -1 to 1; 0 where one of them is 0.
        conflict: Share of the values that both change on whose sign they disagree, 0 to 1. Two
            unrelated deltas disagree on half.
        norms: Frobenius norms of the two deltas.
    """

    module: str
    parents: tuple[str, str]
    cosine: float
    conflict: float
    norms: tuple[float, float]


def measure_interference(deltas: Mapping[str, LowRankDelta]) -> list[Interference]:
    """Compare the deltas of every pair of parents, layer by layer.

    Args:
        deltas: By name of the parent; all of one stream (text, or modality).

    Returns:
        One record per layer that both of a pair reach, sorted by layer and parents.
    """
    found = []
    for module in sorted({module for delta in deltas.values() for module in delta.pairs}):
        here = {name: d.pairs[module] for name, d in sorted(deltas.items()) if module in d.pairs}
        norms = {name: pair.norm() for name, pair in here.items()}
        for one, two in itertools.combinations(here, 2):
            product = norms[one] * norms[two]
            cosine = _inner(here[one], here[two]) / product if product else 0.0
            found.append(
                Interference(
                    module=module,
                    parents=(one, two),
                    cosine=max(-1.0, min(1.0, cosine)),
                    conflict=_conflict(here[one], here[two]),
                    norms=(norms[one], norms[two]),
                )
            )
    return found


def _inner(one: LowRankPair, two: LowRankPair) -> float:
    """Return the inner product of two deltas, without forming them.

    ``<B A, D C> = sum((B^T D) * (A C^T))``: R by R instead of O by I.
    """
    b = one.B.double().T @ two.B.double()
    a = one.A.double() @ two.A.double().T
    return one.scale * two.scale * torch.sum(b * a).item()


def _conflict(one: LowRankPair, two: LowRankPair) -> float:
    """Return the share of values on whose sign two deltas disagree, formed by chunks of rows."""
    against = both = 0
    sign = one.scale * two.scale
    for start in range(0, one.B.shape[0], ROWS):
        first, second = (
            torch.sign(pair.B[start : start + ROWS].float() @ pair.A.float()) for pair in (one, two)
        )
        product = first * second
        both += int(product.count_nonzero())
        against += int((product < 0).sum()) if sign > 0 else int((product > 0).sum())
    return against / both if both and sign else 0.0
