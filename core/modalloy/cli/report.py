"""``modalloy report``: results of several models beside one another, question by question."""

from pathlib import Path
from typing import Annotated

import attrs
import typer

from modalloy.cli.output import print_json, print_line, print_table
from modalloy.errors import SpecError


def command(
    results: Annotated[list[Path], typer.Argument(help="Files that `modalloy evaluate` wrote.")],
    *,
    scoring: Annotated[
        str | None, typer.Option(help="options, letter, exact or evalai; the first by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare models on the questions that all were asked; the first is what others are held to."""
    from modalloy.evaluation.comparing import compare, read_results

    lines = compare({label: read_results(file) for label, file in _labels(results)}, scoring)
    if as_json:
        print_json([attrs.asdict(line) for line in lines])
        return
    rows = [
        (
            line.row.kind,
            line.label,
            line.row.n,
            f"{100 * line.row.right.value:.1f}",
            f"{100 * line.row.right.low:.1f} to {100 * line.row.right.high:.1f}",
            "-" if line.difference is None else f"{100 * line.difference.value:+.1f}",
            ""
            if line.difference is None
            else f"{100 * line.difference.low:+.1f} to {100 * line.difference.high:+.1f}",
        )
        for line in lines
    ]
    first = lines[0]
    columns = ("kind", "results", "n", "right %", "95 % interval", "points more", "95 % interval")
    print_table(f"Right answers, scored by {first.row.scoring}", columns, rows)
    print_line(f"points more: than {first.label}, paired by question")


def _labels(files: list[Path]) -> list[tuple[str, Path]]:
    """Return files with the shortest names that tell them apart."""
    stems = [file.stem for file in files]
    labels = [file.stem if stems.count(file.stem) == 1 else str(file) for file in files]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise SpecError(f"{twice[0]} is given more than once", subject="report")
    return list(zip(labels, files, strict=True))
