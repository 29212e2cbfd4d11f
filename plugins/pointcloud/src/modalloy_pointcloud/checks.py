"""What every reader checks, and how it says so."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalloy.errors import InputError, LimitError
from modalloy_pointcloud.cloud import PointCloud

_FULL = 255


def check_limit(limit: str, found: int, limits: Mapping[str, int], what: str) -> None:
    """Check one limit of the modality.

    Args:
        limit: Its name: ``"bytes"``, ``"points"`` or ``"faces"``.
        found: What the input has.
        limits: All limits.
        what: The input, for the message.

    Raises:
        LimitError: ``found`` is more than is allowed.
    """
    if found > limits[limit]:
        raise LimitError(
            f"{what}: {found:,} {limit}, at most {limits[limit]:,} are allowed; make it smaller",
            limit=limit,
            allowed=limits[limit],
            found=found,
        )


def finish(xyz: NDArray[Any], rgb: NDArray[np.float32] | None, what: str) -> PointCloud:
    """Make a cloud of coordinates and colours, checked.

    Args:
        xyz: ``(n, 3)``, any real dtype.
        rgb: ``(n, 3)`` float32 of 0 to 1, see :func:`unit_colours`, or ``None``.
        what: The input, for messages.

    Raises:
        InputError: There are fewer than two places, or a number is NaN or infinite.
    """
    if len(xyz) == 0:
        raise InputError(f"{what}: empty, there are no points in it")
    with np.errstate(over="ignore"):  # what overflows is infinite, and reported below
        xyz = np.ascontiguousarray(xyz, dtype=np.float32)
    check_finite(xyz, what)
    if (xyz == xyz[0]).all():
        count = "a single point" if len(xyz) == 1 else f"{len(xyz):,} points in a single place"
        raise InputError(f"{what}: {count} has no shape; give at least two places")
    return PointCloud(xyz, rgb)


def check_finite(xyz: NDArray[Any], what: str) -> None:
    """Check that no coordinate is NaN or infinite.

    Raises:
        InputError: One is; the message says how many and which first.
    """
    bad = np.flatnonzero(~np.isfinite(xyz).all(axis=1))
    if len(bad):
        raise InputError(
            f"{what}: {len(bad):,} of {len(xyz):,} points have coordinates that are NaN, infinite "
            f"or beyond float32, point {bad[0]} first; leave them out"
        )


def unit_colours(rgb: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Bring colours to 0..1, told by their range: values above 1 mean 0 to 255.

    Args:
        rgb: ``(n, 3)``, any real dtype; values of 0 to 1, or of 0 to 255.
        what: The input, for messages.

    Raises:
        InputError: A value is NaN, negative or above 255.
    """
    low, high = (float(rgb.min()), float(rgb.max())) if rgb.size else (0.0, 0.0)
    if not (low >= 0 and high <= _FULL):
        raise InputError(
            f"{what}: colours reach from {low:g} to {high:g}; expected red, green and blue of 0 "
            "to 1, or of 0 to 255"
        )
    return np.ascontiguousarray(rgb / (_FULL if high > 1 else 1), dtype=np.float32)
