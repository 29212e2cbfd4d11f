"""What cells come to: shares, paired differences and ratios, with intervals clustered by object."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from recipes.household.cells import Cell, joined
from recipes.household.columns import COLUMNS, KINDS, SKILLS, fused
from recipes.household.mcub import subsets
from recipes.household.rows import JOINT, ROWS

from modalloy.evaluation.intervals import Interval, difference_interval, share_interval
from modalloy.evaluation.results import Row

Cells = Mapping[tuple[str, str], Cell]
"""Cell by row and column."""


def sized(*sizes: int, kinds: Sequence[str] = tuple(KINDS), noisy: bool = True) -> tuple[str, ...]:
    """Return the columns about so many inputs; of one input, the controls."""
    columns = [
        fused(kind, subset, noisy=noisy)
        for subset in subsets()
        if len(subset) in sizes
        for kind in kinds
    ]
    if 1 in sizes and noisy and "object" in kinds:
        columns += [name for name, column in COLUMNS.items() if column.group == "single"]
    return tuple(columns)


FAMILIES: Mapping[str, tuple[str, ...]] = {
    "4 inputs": sized(4),
    "3 inputs": sized(3),
    "2 inputs": sized(2),
    "2 to 4 inputs": sized(2, 3, 4),
}
"""Noisy columns that are averaged, each weighing the same."""
COMPARED = sized(3, 4)
"""Columns that rows are compared on."""
FOUR = sized(4)


@attrs.frozen
class Measured:
    """A number, its 95 % interval, and how many questions it is of.

    Attributes:
        interval: The value and its interval.
        n: Questions.
    """

    interval: Interval
    n: int


def share(
    cells: Cells, row: str, columns: Sequence[str], scoring: str = "options"
) -> Measured | None:
    """Return a row's share of right answers, columns weighing the same.

    ``None`` unless every column is measured: another average would not compare.
    """
    own = [cells[row, name] for name in columns if (row, name) in cells]
    if not own or len(own) < len(columns):
        return None
    found = joined(own, scoring).table()
    return Measured(found[-1].right, found[-1].n) if found else None


def formed(cells: Cells, row: str, column: str) -> Measured | None:
    """Return the share of a row's free answers that have a form that was asked for or trained."""
    cell = cells.get((row, column))
    if cell is None or not cell.formed:
        return None
    n = len(cell.formed)
    objects = [record.objects for record in cell.results("exact").records]
    return Measured(share_interval(cell.formed, [1 / n] * n, objects, [column] * n), n)


def aligned(
    cells: Cells, rows: Sequence[str], columns: Sequence[str]
) -> tuple[np.ndarray, list[tuple[str, ...]]] | None:
    """Return the answers of several rows to the questions that all of them were asked.

    Returns:
        Whether each is right, ``(rows, questions)`` float64, and the questions' objects. ``None``
        unless every row has every column.
    """
    tables = []
    for row in rows:
        if not columns or any((row, name) not in cells for name in columns):
            return None
        records = joined([cells[row, name] for name in columns]).records
        tables.append({(record.kind, record.id): record for record in records})
    common = [key for key in tables[0] if all(key in table for table in tables)]
    if not common:
        return None
    right = np.array([[float(table[key].right) for key in common] for table in tables])
    return right, [tables[0][key].objects for key in common]


def difference(cells: Cells, row: str, other: str, columns: Sequence[str]) -> Measured | None:
    """Return by how much ``row`` is more often right than ``other``, question by question."""
    found = aligned(cells, [row, other], columns)
    if found is None:
        return None
    right, objects = found
    return Measured(difference_interval((right[0] - right[1]).tolist(), objects), len(objects))


def ratio(
    above: np.ndarray, below: np.ndarray, objects: Sequence[Sequence[str]]
) -> Interval | None:
    """Return the quotient of two paired means and its interval (linearised).

    ``None`` where the interval of the lower mean holds 0: then nothing can be said.

    Args:
        above: ``(questions,)`` float64.
        below: The same.
        objects: Of each question.
    """
    if difference_interval(below.tolist(), objects).low <= 0:
        return None
    mean = float(below.mean())
    value = float(above.mean()) / mean
    return difference_interval((value + (above - value * below) / mean).tolist(), objects)


def gap_closed(cells: Cells, row: str, start: str) -> Measured | str | None:
    """Return which part of the way from ``start`` to joint training a row goes, at four inputs.

    ``None`` where something is not measured; a reason where joint training is not surely better.
    """
    joint = best_of(cells, JOINT, FOUR)
    found = None if joint is None else aligned(cells, [row, start, joint], FOUR)
    if found is None:
        return None
    (own, begin, goal), objects = found
    interval = ratio(own - begin, goal - begin, objects)
    if interval is None:
        return "joint training is not surely better"
    return Measured(interval, len(objects))


def retention(cells: Cells, row: str, modality: str) -> Measured | str | None:
    """Return a row's accuracy on a modality's own questions relative to the parent's alone."""
    parent = f"{modality}-{ROWS[row].strategy}"
    found = aligned(cells, [row, parent], [f"{modality}-{skill}" for skill in SKILLS])
    if found is None:
        return None
    right, objects = found
    interval = ratio(right[0], right[1], objects)
    if interval is None:
        return "the parent is never right"
    return Measured(interval, len(objects))


def best_of(cells: Cells, rows: Sequence[str], columns: Sequence[str] = COMPARED) -> str | None:
    """Return the row that is right most often; ``None`` where none is measured.

    It is chosen on the same questions, which favours it, so differences from it are cautious.
    """
    shares = {row: share(cells, row, columns) for row in rows}
    known = {row: found.interval.value for row, found in shares.items() if found is not None}
    return max(known, key=lambda row: known[row]) if known else None


def numbers(cells: Cells) -> dict[str, Any]:
    """Return every cell's share with its interval and n, as plain data by row and column."""
    found: dict[str, dict[str, Any]] = {}
    for (row, column), cell in cells.items():
        shares = {r.scoring: attrs.asdict(r) for r in _rows(cell)}
        entry: dict[str, Any] = {"n": cell.n, "measured": cell.measured, **shares}
        kept_form = formed(cells, row, column)
        if kept_form is not None:
            entry["formed"] = attrs.asdict(kept_form)
        if "perplexity" in cell.values:
            entry["perplexity"] = cell.values["perplexity"]
        found.setdefault(row, {})[column] = entry
    return found


def _rows(cell: Cell) -> list[Row]:
    """Return a cell's rows of results, one for each scoring."""
    return [r for scoring in COLUMNS[cell.column].scoring for r in cell.results(scoring).table()]
