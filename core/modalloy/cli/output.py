"""Printing, the same way in every command: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(data: Any) -> None:
    """Write plain data to standard output as indented JSON; nothing else may go there."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to standard output; cells are shown as they are, without markup.

    Where the output is no terminal, lines are not cut to its width, so that they can be searched.

    Args:
        title: Line above the table.
        columns: Headings.
        rows: Cells, as many as there are columns.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    headings = [Column(column, overflow="fold") for column in columns]
    table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        unbounded = Console(width=1_000_000)
        console = Console(width=unbounded.measure(table).maximum)
    console.print(table)


def print_line(text: str = "") -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{text}\n")


def print_note(text: str) -> None:
    """Write a line about what is going on to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def hush_transformers() -> None:
    """Keep transformers' own bars off the terminal: what they count means nothing to a user."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def print_error(text: str, label: str = "error") -> None:
    """Write ``error: ...`` (or another label) to standard error, on one line."""
    sys.stderr.write(f"{label}: {' '.join(text.splitlines())}\n")
