"""What is done with the parents' deltas, checked, in the numbers that all backends start from."""

import math
from collections.abc import Sequence

import attrs
import torch

from modalloy.errors import SpecError
from modalloy.kernels.dispatch import check_lengths, float32
from modalloy.kernels.philox import check_start

Bounds = tuple[float, ...] | torch.Tensor

WORDS = 2**32


@attrs.frozen(kw_only=True, eq=False)
class Rule:
    """The arguments of one merge, N parents.

    Attributes:
        weights: N float32 values.
        gains: N float32 values.
        lower: N float32 values, or ``(N,)`` float32 on the device; None where there is no bound.
        upper: Likewise.
        thresholds: N integers in ``[0, 2**32]``, below which a parent's random word keeps a value;
            None where nothing is dropped at random.
        keys: N integers in ``[0, 2**64)``, or as many as were given where nothing is drawn.
        elect: Whether a sign is elected.
        normalize: Whether the total is divided by the weights that are in it.
        scale: A float32 value.
        is_delta: N truth values.
        start: Number of the first element, a multiple of 4096.
    """

    weights: tuple[float, ...]
    gains: tuple[float, ...]
    lower: Bounds | None
    upper: Bounds | None
    thresholds: tuple[int, ...] | None
    keys: tuple[int, ...]
    elect: bool
    normalize: bool
    scale: float
    is_delta: tuple[bool, ...]
    start: int

    @property
    def divisor(self) -> float:
        """The sum of all weights in float32, first to last; 1 where it is next to nothing."""
        total = torch.zeros((), dtype=torch.float32)
        for weight in self.weights:
            total += weight
        return 1.0 if abs(float(total)) < 1e-8 else float(total)  # noqa: PLR2004 -- in the contract


def make_rule(  # noqa: PLR0913 -- one argument for each step of the formula
    base: torch.Tensor,
    parents: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    gains: Sequence[float] | None,
    lower: Sequence[float] | torch.Tensor | None,
    upper: Sequence[float] | torch.Tensor | None,
    density: Sequence[float] | None,
    keys: Sequence[int] | None,
    elect: bool,
    normalize: bool,
    scale: float,
    is_delta: Sequence[bool] | None,
    start: int,
) -> Rule:
    """Return the arguments of :func:`modalloy.kernels.sparse.delta_merge`, checked.

    Raises:
        SpecError: A list has another length than there are parents, a density has no key or is
            negative, a bound is no such tensor, or ``start`` lies inside a block.
    """
    given = {
        "weights": weights,
        "gains": gains,
        "lower": lower,
        "upper": upper,
        "density": density,
        "keys": keys,
        "is_delta": is_delta,
    }
    lengths = {name: len(values) for name, values in given.items() if values is not None}
    check_lengths("delta_merge", len(parents), lengths)
    check_start(start)
    if density is not None and keys is None:
        raise SpecError("delta_merge: density needs keys, one per parent", subject="delta_merge")
    deltas = tuple(map(bool, is_delta or [False] * len(parents)))
    for i, one in enumerate(parents):
        if deltas[i] and one.dtype != torch.float32:
            raise SpecError(
                f"delta_merge: parent {i} is given as a delta and is {one.dtype}; deltas are "
                f"torch.float32: convert it, or give the parent's own weights",
                subject="delta_merge",
            )
    return Rule(
        weights=float32(weights),
        gains=float32(weights if gains is None else gains),
        lower=_bounds("lower", lower, base),
        upper=_bounds("upper", upper, base),
        thresholds=None if density is None else tuple(map(threshold, density)),
        keys=tuple(key % 2**64 for key in keys or ()),
        elect=elect,
        normalize=normalize,
        scale=float32([scale])[0],
        is_delta=deltas,
        start=start,
    )


def threshold(density: float) -> int:
    """Return below which random word a value is kept: ``density * 2**32`` rounded down.

    Raises:
        SpecError: The density is negative or no number.
    """
    if not density >= 0:
        raise SpecError(
            f"delta_merge: density is {density}; expected the share of values that is kept, at "
            f"least 0, where 1 and more keep all",
            subject="density",
        )
    return math.floor(min(density, 1.0) * WORDS)


def _bounds(
    name: str, values: Sequence[float] | torch.Tensor | None, base: torch.Tensor
) -> Bounds | None:
    """Return bounds as float32 values, or as the tensor they are if the kernels can read it."""
    if values is None:
        return None
    if not isinstance(values, torch.Tensor):
        return float32(values)
    if values.dtype != torch.float32 or values.dim() != 1 or values.device != base.device:
        raise SpecError(
            f"delta_merge: {name} is {values.dtype} of shape {tuple(values.shape)} on "
            f"{values.device}; as a tensor it must be torch.float32 of one dimension on the base's "
            f"device, {base.device}",
            subject=name,
        )
    return values.contiguous()
