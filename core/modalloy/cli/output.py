"""Printing, the same way in every command: tables for people, JSON for programs.

Much of what is printed stands in files of strangers: a terminal must not take it for orders.
"""

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Control characters but for tab and newline, what turns the direction of writing, and halves of
# surrogate pairs, which cannot be written at all.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shown(text: str) -> str:
    """Return a text as it can be printed: what would drive a terminal stands as its escape."""
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


@contextlib.contextmanager
def plugins_apart() -> Iterator[None]:
    """Send to standard error whatever plugins print while they are loaded.

    So do their libraries and the processes that they start, which know the descriptor alone.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        out = sys.__stdout__
        if out is not None:
            with contextlib.suppress(OSError, ValueError):  # closed, or no file at all
                out.flush()
                kept = os.dup(out.fileno())
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, out.fileno())
                stack.callback(out.flush)
                os.dup2(2, out.fileno())
        yield


def print_json(data: Any) -> None:
    """Write plain data to standard output as indented JSON; nothing else may go there.

    What is no number, or infinite, becomes ``null``: JSON has no word for it.
    """
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)
    # Such characters stand in strings alone, where this is what JSON calls them.
    text = _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    sys.stdout.write(f"{text}\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to standard output; nothing in it is taken for markup.

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

    headings = [Column(Text(shown(column)), overflow="fold") for column in columns]
    heading = Text(shown(title), style="table.title", justify="left")
    table = Table(*headings, title=heading, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(shown(str(cell))) for cell in row))
    console = Console()
    if not console.is_terminal:
        unbounded = Console(width=1_000_000)
        console = Console(width=unbounded.measure(table).maximum)
    console.print(table)


def print_line(text: str = "") -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{shown(text)}\n")


def print_note(text: str) -> None:
    """Write a line about what is going on to standard error."""
    sys.stderr.write(f"{shown(text)}\n")
    sys.stderr.flush()


def hush_transformers() -> None:
    """Keep transformers' own bars off the terminal: what they count means nothing to a user."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def print_error(text: str, label: str = "error") -> None:
    """Write ``error: ...`` (or another label) to standard error, on one line."""
    sys.stderr.write(f"{label}: {shown(' '.join(text.splitlines()))}\n")
