"""The cells of the experiment on disk: one JSON file for a row and a column."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from recipes.household.columns import COLUMNS
from recipes.household.rows import ROWS

from modalloy.evaluation.results import Record, Results

FOLDER = "cells"


@attrs.frozen(kw_only=True)
class Cell:
    """What a row answered to a column.

    Attributes:
        row: Name of the row.
        column: Name of the column.
        n: Questions, or foretold tokens.
        identity: Digest of what the row was made of.
        questions: SHA-256 of the file of questions.
        records: Every answer.
        formed: Whether a free answer has the form that is expected, in the order of the records
            scored ``exact``.
        values: Further numbers by name.
        asked: Answers that were not there from an earlier run.
        seconds: Time that asking them took.
        measured: When, as ``2026-01-31T12:00:00+00:00``.
    """

    row: str
    column: str
    n: int
    identity: str
    questions: str
    records: tuple[Record, ...] = ()
    formed: tuple[bool, ...] = ()
    values: Mapping[str, float] = attrs.Factory(dict)
    asked: int = 0
    seconds: float = 0.0
    measured: str = ""

    def results(self, scoring: str = "options") -> Results:
        """Return the answers that were scored so."""
        return Results(records=tuple(r for r in self.records if r.scoring == scoring))


def cell_file(work: Path, row: str, column: str) -> Path:
    """Return where a cell is."""
    return work / FOLDER / row / f"{column}.json"


def write_cell(work: Path, cell: Cell) -> None:
    """Write a cell; it is whole or not there."""
    file = cell_file(work, cell.row, cell.column)
    file.parent.mkdir(parents=True, exist_ok=True)
    data = attrs.asdict(cell)
    for record in data["records"]:
        del record["scores"]  # they are in the file of answers
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def read_cell(file: Path) -> Cell:
    """Read a cell.

    Raises:
        ValueError: The file is none.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        data["records"] = tuple(
            Record(**{**one, "objects": tuple(one["objects"])}) for one in data["records"]
        )
        data["formed"] = tuple(data["formed"])
        return Cell(**data)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected a cell of recipes.household.experiment, found something else "
            f"({error!r}). Remove it, and run the experiment again"
        ) from error


def read_cells(work: Path) -> tuple[dict[tuple[str, str], Cell], list[str]]:
    """Read all cells, and leave out those that others have overtaken.

    Cells of a row are compared with one another and with other rows' cells of their column. So of
    a row only those count that were made of the same parts as the one measured last, and of a
    column those that were asked the same file of questions as the one measured last.

    Returns:
        Cell by row and column in the order of tables, and a note for every row or column that
        lost some.
    """
    files = [cell_file(work, row, column) for row in ROWS for column in COLUMNS]
    cells = [read_cell(file) for file in files if file.is_file()]
    notes = []
    for what, of, mark in (
        ("row", lambda cell: cell.row, lambda cell: cell.identity),
        ("column", lambda cell: cell.column, lambda cell: cell.questions),
    ):
        newest: dict[str, Cell] = {}
        for cell in cells:
            if of(cell) not in newest or cell.measured > newest[of(cell)].measured:
                newest[of(cell)] = cell
        kept = [cell for cell in cells if mark(cell) == mark(newest[of(cell)])]
        lost = [of(cell) for cell in cells if mark(cell) != mark(newest[of(cell)])]
        notes += [
            f"{lost.count(name)} cells of {what} {name!r} are left out: they are of an earlier "
            f"{'model' if what == 'row' else 'set of questions'}"
            for name in dict.fromkeys(lost)
        ]
        cells = kept
    return {(cell.row, cell.column): cell for cell in cells}, notes


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[bool]:
    """Hold a directory against other processes.

    Yields:
        Whether it is held; if not, another process works there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def joined(cells: Sequence[Cell], scoring: str = "options") -> Results:
    """Return the answers of several cells together."""
    return Results(records=tuple(r for cell in cells for r in cell.results(scoring).records))


def describe(cell: Cell) -> dict[str, Any]:
    """Return where a cell comes from, without its answers."""
    return attrs.asdict(cell, filter=lambda field, _: field.name not in ("records", "formed"))
