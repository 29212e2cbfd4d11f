"""What is done with a tensor: plain numbers, worked out by a method, carried out by the engine.

A rule does not say how: the CPU streams it in chunks, a GPU takes the tensor whole
(:mod:`modalloy.merging.whole`, which also is the specification in plain torch).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import torch

Floats = tuple[float, ...]


@attrs.frozen(kw_only=True)
class Weighted:
    """``sum_i weights_i * model_i / divisor``.

    Attributes:
        weights: One per model.
        divisor: Not 0.
    """

    weights: Floats
    divisor: float = 1.0


@attrs.frozen(kw_only=True)
class Deltas:
    """``base + scale * sum_i weights_i * delta_i``, the deltas thinned out and elected first.

    Attributes:
        weights: One per model.
        density: Share of each delta's values that is kept, the largest by magnitude; ``None``
            keeps all.
        outliers: Share of the very largest that is given up beside the smallest, if there are
            enough of those; ``None`` gives up none.
        keep: Probability with which each value is kept, and by which it is then divided; ``None``
            draws nothing.
        spread: The least kept of a row has ``keep`` less this as its probability, the largest
            that much more, by rank; ``None`` treats all alike.
        elect: Whether only values that agree in sign with the sum are summed.
        normalize: Whether the sum is divided by the weights of what was summed.
        scale: Factor of the merged delta.
    """

    weights: Floats
    density: Floats | None = None
    outliers: Floats | None = None
    keep: Floats | None = None
    spread: Floats | None = None
    elect: bool = False
    normalize: bool = False
    scale: float = 1.0


@attrs.frozen(kw_only=True)
class Slerp:
    """Spherical interpolation between the base and another model.

    Attributes:
        t: 0 is the base, 1 the other one.
    """

    t: float


@attrs.frozen(kw_only=True)
class Whole:
    """A function of whole tensors: for methods that the other rules cannot express.

    Attributes:
        function: ``(base or None, models) -> merged``, float32 tensors of one shape, on one
            device. Must not change what it is given.
    """

    function: "Callable[[torch.Tensor | None, Sequence[torch.Tensor]], torch.Tensor]"


Rule = Weighted | Deltas | Slerp | Whole

NOTHING = 0
"""A rank that no value has: nothing is kept."""


def kept_ranks(elements: int, density: float, outliers: float | None) -> tuple[int, int]:
    """Return the ranks by magnitude, 1 the largest, of the first and the last value kept.

    Args:
        elements: Of the delta.
        density: Share that is kept, rounded down, at least one value unless it is 0.
        outliers: As in :class:`Deltas`; then nothing is kept where the share rounds to nothing.

    Returns:
        The ranks; :data:`NOTHING` twice where nothing is kept.
    """
    if density >= 1:
        return 1, elements
    kept = int(density * elements)
    if outliers is None:
        kept = max(kept, 1) if density > 0 else 0
        return (1, kept) if kept else (NOTHING, NOTHING)
    smallest = max(0, elements - kept - int(outliers * elements))
    if not kept:
        return NOTHING, NOTHING
    return elements - smallest - kept + 1, elements - smallest


def slerp_weights(t: float, norm_a: float, norm_b: float, dot: float) -> Floats:
    """Return the weights of two tensors in their spherical interpolation (Shoemake, 1985).

    Args:
        t: 0 is the first, 1 the second.
        norm_a: Of the first, squared.
        norm_b: Of the second, squared.
        dot: Their inner product.

    Returns:
        The weights; those of linear interpolation where the tensors are nearly parallel.
    """
    import math

    lengths = [
        math.sqrt(square) if math.sqrt(square) > TINY else 1.0 for square in (norm_a, norm_b)
    ]
    cosine = max(-1.0, min(1.0, dot / lengths[0] / lengths[1]))
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


TINY = 1e-8
"""Length below which a tensor has no direction."""
PARALLEL = 0.9995
"""Cosine above which interpolation along the arc and along the chord are the same in float32."""
