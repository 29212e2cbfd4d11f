"""``modalloy compose``: installed modalities become one model directory."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from modalloy.checkpoints.new_directory import check_free, new_directory
from modalloy.cli.output import (
    hush_transformers,
    print_json,
    print_line,
    print_note,
    print_table,
)
from modalloy.cli.progress import progress_bar
from modalloy.cli.search import read_table, show_search
from modalloy.composition.coefficients import order_groups, show_value
from modalloy.errors import SpecError
from modalloy.modality import MERGED

_STRATEGY = "grid"


def command(  # noqa: PLR0913 - the options of the command line
    out: Annotated[
        Path, typer.Argument(help="Model directory to write; must not exist, or be empty.")
    ],
    *,
    base: Annotated[str, typer.Option(help="smollm2, a directory, or a Hub id.")] = "smollm2",
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of a base from the Hub.")
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Take in this modality (repeatable); all by default.")
    ] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(help="Parent directory, or name of an installed parent (repeatable)."),
    ] = None,
    method: Annotated[str, typer.Option(help="Merge method: damc, naive, or a plugin's.")] = "damc",
    coefficients: Annotated[
        str | None,
        typer.Option(
            help="Rule (presence, uniform; with naive: mean, sum, zero), search, FILE.json that "
            "`modalloy search` wrote, or values: "
            "vision=0.5,audio=1 (and merged=1 where the method merges); a set of modalities "
            "present before a colon: vision+audio:vision=0.5,audio=0.5;..."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of the merge method, such as density=0.3 (repeatable)."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="With --coefficients search: JSONL file of questions, or directory with "
            "val-*.jsonl."
        ),
    ] = None,
    search: Annotated[str, typer.Option(help="grid, tpe, gradient or stability.")] = _STRATEGY,
    work: Annotated[
        Path | None, typer.Option(help="Directory that keeps a search's features and answers.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Compose the installed modalities over one base and save the model."""
    check_free(out)
    options = parse_options(option or ())
    spec = parse_coefficients(coefficients, method, options)
    from modalloy.evaluation.composing import SEARCH, compose

    hush_transformers()
    started = time.perf_counter()
    given = work is not None or (search, seed) != (_STRATEGY, 0)
    with progress_bar(silent=spec != SEARCH) as progress:
        asked = {"strategy": search, "seed": seed, "work": work, "progress": progress}
        model, processor = compose(
            base,
            revision=revision,
            modalities=modality,
            parents=parent or (),
            method=method,
            method_options=options,
            coefficients=spec,
            validation=validation,
            search=asked if spec == SEARCH or given else None,
            dtype=dtype,
            progress=print_note,
        )
    save(model, processor, out)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"model": str(out), "seconds": round(seconds, 2), **model.provenance})
        return
    _show_composition(f"{method} over {base}", model.provenance)
    print_line(f"{out}: composed and saved in {seconds:.1f} s")


def _show_composition(title: str, record: dict[str, Any]) -> None:
    """Print the parents of a composition, its coefficients, and what became of every tensor."""
    rows = [(p["modality"], p["name"], p["strategy"], p["licence"]) for p in record["parents"]]
    print_table(title, ("modality", "parent", "strategy", "licence"), rows)
    show_merge(record)
    show_coefficients(record["coefficients"])
    if "search" in record:
        show_search(record["search"])
    account = [
        (row["source"], row["part"], row["tensors"] or "", row["fate"])
        for row in record["accounting"]
    ]
    print_table("Every tensor", ("from", "part", "tensors", "fate"), account)


def save(model: Any, processor: Any, out: Path) -> None:
    """Write a model directory, whole or not at all.

    Raises:
        FormatError: It cannot be written; nothing is left behind.
    """
    with new_directory(out) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)


def show_merge(record: dict[str, Any]) -> None:
    """Print how the deltas of a composition were merged, where its method has more to say."""
    options = record.get("method_options") or {}
    if options:
        shown = ", ".join(f"{name} {value:g}" for name, value in options.items())
        print_line(f"merged by {record['method']}: {shown}")
    for name, value in (record.get("merge") or {}).items():
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {number:g}" for key, number in value.items())
        print_line(f"{name.replace('_', ' ')}: {shown}")


def show_coefficients(coefficients: dict[str, Any]) -> None:
    """Print the coefficients of a composition, one row per set of modalities present."""
    names = list(order_groups(coefficients["default"]))
    rows = [
        (key or "text alone", *(show_value(row[name]) for name in names))
        for key, row in coefficients["table"].items()
    ]
    modalities = [name for name in names if name != MERGED]
    if len(rows) < 2 ** len(modalities):
        rest = "others" if rows else "any prompt"
        if {"", *modalities} <= coefficients["table"].keys():
            rest = "several kinds" if len(rows) == 1 + len(modalities) else "other sets"
        rows.append((rest, *(show_value(coefficients["default"][name]) for name in names)))
    title = f"Text-stream coefficients ({coefficients['rule']})"
    print_table(title, ("inputs in the prompt", *names), rows)


def parse_coefficients(text: str | None, method: str, options: Mapping[str, float]) -> Any:
    """Read ``--coefficients``: a rule, a file's table, values by modality, or values by set.

    Args:
        text: As it was given.
        method: Merge method that a file's table is to serve.
        options: Its options.

    Raises:
        SpecError: The text is none of these.
        FormatError: The file holds no table.
    """
    if text is not None and text.endswith(".json"):
        return read_table(Path(text), method, options)
    if text is None or "=" not in text:
        return text
    groups = [group for group in text.split(";") if group.strip()]
    if len(groups) == 1 and ":" not in text:
        return _values(text)
    table = {}
    for group in groups:
        key, colon, values = group.partition(":")
        if not colon:
            raise SpecError(
                f"--coefficients: {group!r} names no set; write vision+audio:vision=0.5,audio=1",
                subject="coefficients",
            )
        table[frozenset(filter(None, key.strip().split("+")))] = _values(values)
    return table


def parse_options(given: Iterable[str]) -> dict[str, float]:
    """Read ``--option NAME=NUMBER``; a number without a point is an integer.

    Raises:
        SpecError: One is not of that form.
    """
    options: dict[str, float] = {}
    for item in given:
        name, _, value = item.partition("=")
        try:
            options[name.strip()] = int(value) if value.strip().isdecimal() else float(value)
        except ValueError as error:
            raise SpecError(f"--option: {item!r} is not NAME=NUMBER", subject="option") from error
    return options


def _values(text: str) -> dict[str, float]:
    values = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError as error:
            raise SpecError(
                f"--coefficients: {item.strip()!r} is not NAME=NUMBER", subject="coefficients"
            ) from error
    return values
