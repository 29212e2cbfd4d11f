"""``modalloy merge``: whole models become one, by a recipe."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from modalloy.cli.output import print_json, print_line, print_note, print_table
from modalloy.cli.progress import progress_bar
from modalloy.errors import SpecError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([KMG]B)")


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the recipe.")],
    out: Annotated[
        Path, typer.Argument(help="Model directory to write; must not exist, or be empty.")
    ],
    *,
    device: Annotated[str, typer.Option(help="cpu, or a GPU such as cuda.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; by default one for each core.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a merge that was stopped.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of methods that draw random numbers.")] = 0,
    shard_size: Annotated[str, typer.Option(help="Bytes of a file at most.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Merge whole models, adapters and parents by a recipe; mergekit's are read as they are."""
    from modalloy.merging.merge import merge

    size = parse_size(shard_size)
    try:
        with progress_bar() as progress:
            result = merge(
                recipe,
                out,
                device=device,
                workers=workers,
                resume=resume,
                seed=seed,
                shard_size=size,
                progress=progress,
                say=print_note,
            )
    except KeyboardInterrupt:
        if (out.parent / f".{out.name}.partial").exists():
            print_note("what is merged so far is kept; the same command with --resume goes on")
        raise
    if as_json:
        print_json(
            {
                "model": str(out),
                "seconds": round(result.seconds, 2),
                "resumed": result.resumed,
                **result.record,
            }
        )
        return
    show_merge(result.record)
    if result.resumed:
        print_line(f"{result.resumed} tensors had been written before")
    print_line(f"{out}: merged and saved in {result.seconds:.1f} s")


def show_merge(record: Mapping[str, Any]) -> None:
    """Print what was merged, and what became of every tensor."""
    recipe = record["recipe"]
    title = f"{recipe['merge_method']} over {recipe.get('base_model', 'no base')}"
    models = [(one["label"], one["kind"], one["model"]) for one in record["models"]]
    print_table(title, ("model", "kind", "from"), models)
    rows = [(row["source"], row["tensors"] or "", row["fate"]) for row in record["accounting"]]
    print_table("Every tensor", ("of", "tensors", "fate"), rows)


def parse_size(text: str) -> int:
    """Return the bytes that a size such as ``5GB`` means.

    Raises:
        SpecError: It is no size.
    """
    found = _SIZE.fullmatch(text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size > 0:
        return size
    raise SpecError(f"--shard-size must be such as 5GB or 500MB, found {text!r}")
