"""Intervals for scores of questions that share what they are about.

Two questions about one object (a picture, a voice) tend to be answered alike, and a question with
several inputs has several objects, which link it to others in every direction. So the variance of
a mean is summed over all pairs of questions that share an object, as econometrics does for
clusters in several ways (Cameron, Gelbach and Miller 2011; Aronow, Samii and Assenova 2015):
``V = sum of e_i e_j``, ``e`` being each question's part in the error. Where each question has one
object this is what resampling objects comes to. Resampling objects is not used beyond that: with a
question's weight the product of its objects' multiplicities, independent errors count 2^k - 1 fold
for k objects, with their mean only 1/k fold.
"""

import math
from collections.abc import Sequence

import attrs
import numpy as np

Z = 1.959963984540054
"""Of the normal distribution, two-sided, 95 %."""


@attrs.frozen
class Interval:
    """A value and its 95 % interval, in the value's own unit.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def share_interval(
    right: Sequence[bool],
    weights: Sequence[float],
    objects: Sequence[Sequence[str]],
    groups: Sequence[str],
) -> Interval:
    """Return a weighted share of right answers and its interval.

    A Wilson interval, with the number of questions that would have the same variance were they
    independent; so it stays within 0 and 1 and does not shrink to a point at either.

    Args:
        right: Of each question.
        weights: Of each question; they sum to 1.
        objects: Of each question; none makes it a cluster of its own.
        groups: Set of each question, whose mean its error is measured from.
    """
    hits, share = np.asarray(right, dtype=float), np.asarray(weights, dtype=float)
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    mass = np.bincount(place, weights=share, minlength=len(names))
    means = np.bincount(place, weights=share * hits, minlength=len(names)) / mass
    value = min(1.0, float(share @ hits))  # sums of shares may round beyond
    links = _linked(objects)
    clusters = len({name for some in objects for name in some}) or len(hits)
    variance = _variance(share * (hits - means[place]), links)
    spread = value * (1 - value)
    # No better than as many independent answers as there are questions, or objects where the
    # errors cancel or there are none.
    most = 1 / float(share @ share)
    count = min(most, spread / variance) if variance > 0 else min(most, float(clusters))
    z = _quantile(clusters - 1)
    centre = (value + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(spread / count + z * z / (4 * count * count))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(value, min(low, value), max(high, value))


def difference_interval(differences: Sequence[float], objects: Sequence[Sequence[str]]) -> Interval:
    """Return the mean of paired differences and its interval.

    Args:
        differences: One per question, such as -1, 0 or 1.
        objects: Of each question.
    """
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    error = (values - mean) / len(values)
    clusters = len({name for some in objects for name in some}) or len(values)
    # At least what independent questions have: sums over pairs may fall below it by chance.
    variance = max(_variance(error, _linked(objects)), float(error @ error))
    half = _quantile(clusters - 1) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def _linked(objects: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Return, for each question, those that share an object with it, itself among them."""
    members: dict[str, list[int]] = {}
    for index, names in enumerate(objects):
        for name in names:
            members.setdefault(name, []).append(index)
    arrays = {name: np.asarray(found) for name, found in members.items()}
    return [
        np.unique(np.concatenate([arrays[name] for name in names])) if names else np.array([index])
        for index, names in enumerate(objects)
    ]


def _variance(error: np.ndarray, links: Sequence[np.ndarray]) -> float:
    return float(sum(e * error[linked].sum() for e, linked in zip(error, links, strict=True)))


def _quantile(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t (Cornish and Fisher's expansion)."""
    n = max(freedom, 2)
    return Z + (Z**3 + Z) / (4 * n) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * n * n)
