"""Reading CSV: commas, semicolons, tabs or spaces between, with or without a header."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from modalloy.errors import InputError
from numpy.typing import NDArray

from modalloy_timeseries.checking import TIME_NAMES, check_limit, make_series
from modalloy_timeseries.series import Series

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_SHOWN = 20


def read_csv(data: bytes, limits: Mapping[str, int], what: str) -> Series:
    """Read a table of text.

    The first row names the columns if a cell of it is neither a number nor a time. A column
    named like a time (:data:`~modalloy_timeseries.checking.TIME_NAMES`), or the first one where it
    begins with a date, holds times: seconds, or dates as in ISO 8601. Empty cells, ``NA``, ``NaN``,
    ``null`` and ``-`` are missing readings.

    Raises:
        InputError: It is no text, a cell is no number, or a row has another number of cells.
        LimitError: There are too many values.
    """
    rows = _rows(data, limits, what)
    header = any(not _is_value(cell) for cell in rows[0])
    names = rows[0] if header else [f"column {i + 1}" for i in range(len(rows[0]))]
    body = rows[1:] if header else rows
    first = 2 if header else 1  # line number of the first row of readings, but for blank lines
    for number, row in enumerate(body, start=first):
        if len(row) != len(names):
            raise InputError(
                f"{what}: line {number} has {len(row)} cells, expected {len(names)} as in the first"
            )
    times = _time_column(names, body)
    columns = [
        _column([row[index] for row in body], name, first, what)
        for index, name in enumerate(names)
        if index != times
    ]
    values = np.stack(columns, axis=1) if columns else np.empty((len(body), 0))
    return make_series(
        values,
        [name for index, name in enumerate(names) if index != times],
        None if times is None else _moments([row[times] for row in body], first, what),
        what,
    )


def _rows(data: bytes, limits: Mapping[str, int], what: str) -> list[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what}: this is neither CSV as UTF-8 text nor a parquet file ({error})"
        ) from error
    rows: list[list[str]] = []
    cells = 0
    try:
        for row in _split(text):
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                cells += len(row)
                check_limit("values", cells, limits, what)
    except csv.Error as error:
        raise InputError(f"{what}: the text is not CSV ({error})") from error
    if not rows:
        raise InputError(f"{what}: empty, there are no readings in it")
    return rows


def _split(text: str) -> Iterable[list[str]]:
    start = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=start.count)  # the first of those that are as frequent
    if delimiter in start:
        return csv.reader(io.StringIO(text), delimiter=delimiter)
    return map(str.split, text.splitlines())


def _is_value(cell: str) -> bool:
    return cell.lower() in _MISSING or bool(_NUMBER.fullmatch(cell)) or _date(cell) is not None


def _date(cell: str) -> float | None:
    """Return the seconds of an ISO 8601 date, which is taken as UTC if it names no zone."""
    if _NUMBER.fullmatch(cell):
        return None  # 20240101 is a number here
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _time_column(names: Sequence[str], body: Sequence[Sequence[str]]) -> int | None:
    for index, name in enumerate(names):
        if name.lower() in TIME_NAMES:
            return index
    return 0 if body and _date(body[0][0]) is not None else None


def _column(cells: Sequence[str], name: str, first: int, what: str) -> NDArray[np.float64]:
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell.lower() in _MISSING:
            continue
        if not _NUMBER.fullmatch(cell):
            raise InputError(
                f"{what}: line {first + row} holds {cell[:_SHOWN]!r} in column {name[:_SHOWN]!r}, "
                "expected a number; leave out columns that hold no readings"
            )
        values[row] = float(cell)
    return values


def _moments(cells: Sequence[str], first: int, what: str) -> NDArray[np.float64]:
    times = np.empty(len(cells))
    for row, cell in enumerate(cells):
        date = _date(cell)
        if date is None and not _NUMBER.fullmatch(cell):
            raise InputError(
                f"{what}: line {first + row} has the time {cell[:_SHOWN]!r}, expected seconds or "
                "a date such as 2026-03-01T12:00:00"
            )
        times[row] = float(cell) if date is None else date
    return times
