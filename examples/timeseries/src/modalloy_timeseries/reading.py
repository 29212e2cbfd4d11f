"""Reading sensor series: from whatever the caller has to columns of numbers, within limits.

Formats are told by content, never by a name's ending. Nothing is fetched and nothing is unpickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from modalloy.errors import InputError

from modalloy_timeseries.checking import TIME_NAMES, check_limit, make_series
from modalloy_timeseries.parquet import MAGIC, read_parquet
from modalloy_timeseries.series import Series
from modalloy_timeseries.text import read_csv

__all__ = ["Series", "read"]

_TABLE = 2  # axes of rows and columns


def read(source: Any, limits: Mapping[str, int]) -> Series:
    """Read one series.

    Args:
        source: The bytes of a CSV or parquet file or its path; columns by name; a list, numpy
            array or torch tensor of shape ``(n,)`` or ``(n, C)``; or a :class:`Series`.
        limits: ``"bytes"`` of a file, ``"values"`` of a series: rows times columns.

    Raises:
        InputError: The source is no series, is damaged, or is of a format not read.
        LimitError: It is larger than ``limits`` allow.
    """
    if isinstance(source, Series):
        check_limit("values", source.values.size, limits, "the series")
        return make_series(source.values, source.names, source.times, "the series")
    if isinstance(source, Path):
        return _decode(_file_bytes(source, limits), limits, str(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), limits, "the series' bytes")
    if isinstance(source, str):
        raise InputError("a series is not read from text as it is; give a path as a pathlib.Path")
    if isinstance(source, Mapping):
        return _from_columns(source, limits)
    values = _array(source, "the series")
    if values.ndim not in (1, _TABLE):
        raise InputError(
            f"the series: expected an array of shape (rows,) or (rows, columns), found "
            f"{values.shape}"
        )
    check_limit("values", values.size, limits, "the series")
    values = values.reshape(len(values), -1) if values.size else np.empty((len(values), 0))
    names = [f"column {index + 1}" for index in range(values.shape[1])]
    return make_series(values, names, None, "the series")


def _file_bytes(path: Path, limits: Mapping[str, int]) -> bytes:
    try:
        if not path.is_file():  # of a pipe, opening alone would wait
            raise InputError(f"{path}: it cannot be read (there is no such file)")
        with path.open("rb") as handle:
            return handle.read(limits["bytes"] + 1)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error})") from error


def _decode(data: bytes, limits: Mapping[str, int], what: str) -> Series:
    check_limit("bytes", len(data), limits, what)
    if data.startswith(MAGIC):
        return read_parquet(data, limits, what)
    return read_csv(data, limits, what)


def _from_columns(source: Mapping[Any, Any], limits: Mapping[str, int]) -> Series:
    columns = {str(name): _array(column, f"column {name!r}") for name, column in source.items()}
    shapes = {column.shape for column in columns.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise InputError(
            f"the series: expected columns of one length, found shapes "
            f"{', '.join(map(str, sorted(shapes))) or 'of none'}"
        )
    check_limit("values", sum(column.size for column in columns.values()), limits, "the series")
    timed = next((name for name in columns if name.lower() in TIME_NAMES), None)
    names = [name for name in columns if name != timed]
    length = next(iter(shapes))[0]
    values = np.stack([columns[n] for n in names], axis=1) if names else np.empty((length, 0))
    return make_series(values, names, None if timed is None else columns[timed], "the series")


def _array(source: Any, what: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        return np.asarray(source, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what} cannot be read from {type(source).__name__} ({error}); give bytes, a "
            "pathlib.Path, columns by name, or numbers as a list, an array or a tensor"
        ) from error
