"""What every reader checks, and how it says so."""

from collections.abc import Mapping, Sequence

import numpy as np
from modalloy.errors import InputError, LimitError
from numpy.typing import NDArray

from modalloy_timeseries.series import Series

TIME_NAMES = frozenset({"time", "timestamp", "datetime", "date", "t"})
"""Names, in any case, of a column that holds times."""

_FEWEST = 2


def check_limit(limit: str, found: int, limits: Mapping[str, int], what: str) -> None:
    """Check one limit of the modality.

    Args:
        limit: Its name, ``"bytes"`` or ``"values"``.
        found: What the input has, or what it has at least.
        limits: All limits.
        what: The input, for the message.

    Raises:
        LimitError: ``found`` is more than is allowed.
    """
    if found > limits[limit]:
        raise LimitError(
            f"{what}: {limits[limit]:,} {limit} are allowed, it has {found:,} or more; cut it, or "
            "average over longer intervals",
            limit=limit,
            allowed=limits[limit],
            found=found,
        )


def make_series(
    values: NDArray[np.float64],
    names: Sequence[str],
    times: NDArray[np.float64] | None,
    what: str,
) -> Series:
    """Make a series of columns, checked.

    Args:
        values: ``(n, C)``; NaN where a reading is missing.
        names: Of the columns.
        times: ``(n,)`` seconds since any moment, or ``None``.
        what: The input, for messages.

    Raises:
        InputError: There are fewer than two rows, a column without a reading, an infinite reading,
            or times that are missing or do not increase.
    """
    if values.shape[1] == 0:
        raise InputError(f"{what}: there is no column of readings in it")
    if len(values) < _FEWEST:
        raise InputError(
            f"{what}: {len(values)} rows of readings are no series; give at least {_FEWEST}"
        )
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        row, column = infinite[0]
        raise InputError(
            f"{what}: row {row + 1} of column {names[column]!r} is infinite; leave the cell empty "
            "where there is no reading"
        )
    empty = np.flatnonzero(np.isnan(values).all(axis=0))
    if len(empty):
        raise InputError(
            f"{what}: column {names[empty[0]]!r} holds no reading at all; leave it out"
        )
    if times is not None:
        # One that is missing compares as not later.
        late = np.flatnonzero(~(np.diff(times) > 0)) + 1
        if len(late) or not np.isfinite(times).all():
            row = int(late[0]) if len(late) else 0
            raise InputError(
                f"{what}: the time of row {row + 1} is missing, infinite, or not after that of "
                "the row before; sort the rows by time, one a moment"
            )
        times = times - times[0]
    return Series(values, tuple(names), times)
