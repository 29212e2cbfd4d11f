"""Writes the report of the experiment: one table in Markdown and JSON, one HTML page.

Run ``python -m recipes.household.report --work WORK [--out docs]`` after experiment.py, or while it
runs: what is not measured yet is said to be so. The Markdown goes between the marks
``<!-- results:begin -->`` and ``<!-- results:end -->`` of ``results.md``; the text around them is
kept.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from recipes.household.cells import read_cells
from recipes.household.columns import COLUMNS, place
from recipes.household.conflicts import FILE, STREAMS
from recipes.household.figures import numbers
from recipes.household.page import markdown, page
from recipes.household.plots import all_plots
from recipes.household.rows import ROWS, searched
from recipes.household.tables import all_tables

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
RECORD = "experiment.json"
FEWER = (
    "DAMC by presence over fewer installed modalities is the same function as over all four on "
    "text alone and on prompts of one modality. On prompts of several it differs by the absent "
    "parents' text deltas, which count 0.5 where they are installed; such compositions were not "
    "run."
)
_BLANK = f"# Results\n\n{BEGIN}\n{END}\n"


def fill(text: str, generated: str, where: Path) -> str:
    """Return a text with what stands between its marks replaced.

    Args:
        text: With both marks, once each, in order.
        generated: What goes between them.
        where: The text's file, for the message.

    Raises:
        ValueError: The marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(
            f"{where}: expected the lines {BEGIN} and {END} once each, in this order; the results "
            "go between them. Put them where the tables are to stand"
        )
    return f"{before}{BEGIN}\n\n{generated.strip()}\n\n{END}{after}"


def describe(record: Mapping[str, Any], lost: Sequence[str], cells: Mapping[Any, Any]) -> list[str]:
    """Return notes about the run as a whole.

    Args:
        record: What experiment.py wrote about it; empty where it wrote nothing.
        lost: Notes about cells that were left out.
        cells: What was measured.
    """
    wanted = [(row, column) for row in ROWS for column in COLUMNS
              if place(ROWS[row], COLUMNS[column]) is not None]  # fmt: skip
    days = sorted({cell.measured[:10] for cell in cells.values()})
    notes = [
        f"{len(cells)} of {len(wanted)} cells are measured"
        + (f", from {days[0]} to {days[-1]}." if days else "."),
        FEWER,
        "Questions about several inputs are nested: the same objects, with inputs dropped.",
        *(f"{name} is left out: {why}." for name, why in record.get("left_out", {}).items()),
        *(f"{line}." for line in lost),
    ]
    versions = ", ".join(f"{name} {value}" for name, value in record.get("versions", {}).items())
    notes.append(f"Versions: {versions or 'not recorded'}.")
    notes.append(f"Data built: {record.get('data_built') or 'not recorded'}.")
    parents = [f"{one['name']} (seed {one['seed']})" for one in record.get("parents", {}).values()]
    notes.append(f"Parents: {', '.join(parents) or 'not recorded'}.")
    return notes


def write(work: Path, out: Path, coefficients: Path) -> list[Path]:
    """Write ``results.md``, ``results.json`` and ``results.html``.

    Args:
        work: Folder of the experiment.
        out: Folder of the report.
        coefficients: Folder of what searches found; need not be there.

    Returns:
        The files.

    Raises:
        ValueError: Something in ``work`` is damaged, or ``results.md`` has no marks.
    """
    cells, lost = read_cells(work)
    record = _load(work / RECORD)
    streams = _load(work / FILE).get("streams", dict.fromkeys(STREAMS, ()))
    specs = {
        row.title: searched(file)[2]
        for row in ROWS.values()
        if row.searched and row.method and (file := coefficients / f"{row.searched}.json").is_file()
    }
    tables = all_tables(cells, streams, specs)
    notes = describe(record, lost, cells)
    file = out / "results.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else _BLANK
    data = {
        "record": record,
        "notes": notes,
        "cells": numbers(cells),
        "tables": {table.name: attrs.asdict(table) for table in tables},
    }
    made = {
        file: fill(text, markdown(tables, notes), file),
        out / "results.json": json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
        + "\n",
        out / "results.html": page(tables, all_plots(cells, streams, specs), notes),
    }
    out.mkdir(parents=True, exist_ok=True)
    for path, content in made.items():
        path.write_text(content, encoding="utf-8")
    return list(made)


def _load(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON ({error}). Remove it, and run recipes.household.experiment again"
        ) from error
    return dict(data)


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of experiment.py")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the report")
    parser.add_argument(
        "--coefficients", type=Path, help="folder of searches, STRATEGY.json [WORK/coefficients]"
    )
    args = parser.parse_args()
    try:
        files = write(args.work, args.out, args.coefficients or args.work / "coefficients")
    except ValueError as error:
        sys.exit(f"error: {error}")
    for file in files:
        print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
