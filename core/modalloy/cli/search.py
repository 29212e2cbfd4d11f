"""``modalloy search``: coefficients for a saved model, found on a validation set."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from modalloy.checkpoints.new_directory import write_whole
from modalloy.checkpoints.safe_files import read_object
from modalloy.cli.output import hush_transformers, print_json, print_line, print_table
from modalloy.cli.progress import progress_bar
from modalloy.composition.coefficients import (
    Coefficients,
    Value,
    make_coefficients,
    order_groups,
    show_value,
)
from modalloy.errors import FormatError, ModalloyError

_FORMAT_VERSION = 1


def command(  # noqa: PLR0913 - the options of the command line
    model: Annotated[str, typer.Argument(help="Model directory or Hub id; it is not changed.")],
    *,
    validation: Annotated[
        Path, typer.Option(help="JSONL file of questions, or directory with val-*.jsonl.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, FILE.json; must not exist.")],
    strategy: Annotated[str, typer.Option(help="grid, tpe, gradient or stability.")] = "grid",
    metric: Annotated[str, typer.Option(help="logprob, likelihood or accuracy.")] = "logprob",
    subset: Annotated[
        list[str] | None,
        typer.Option(help="Search this set only, such as vision+audio (repeatable)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each kind.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Proposals of tpe for each set [24], steps of gradient [150]."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the questions' order and of tpe.")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Directory that keeps features and answers.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Search coefficients for a model; `compose --coefficients FILE.json` takes what is written."""
    _check_out(out)
    from modalloy.evaluation.composing import read_validation
    from modalloy.evaluation.questions import first_of_each

    questions = first_of_each(read_validation(validation), limit)
    from modalloy.composition.compose import load
    from modalloy.evaluation.search import search_coefficients

    hush_transformers()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    composition = load(model)
    with progress_bar() as progress:
        result = search_coefficients(
            *composition,
            questions,
            strategy=strategy,
            metric=metric,
            subsets=None if subset is None else [filter(None, one.split("+")) for one in subset],
            trials=trials,
            seed=seed,
            work=work,
            progress=progress,
        )
    record = result.record()
    write_table(out, record)
    if as_json:
        print_json({"out": str(out), "seconds": round(result.seconds, 2), **record})
        return
    show_search(record, trials=True)
    for name, reason in result.skipped.items():
        print_line(f"left out: {name}: {reason}")
    if result.reused:
        print_line(f"{result.reused} answers were kept from an earlier run")
    print_line(f"{out}: written after {result.seconds:.1f} s")


def _check_out(out: Path) -> None:
    if out.suffix != ".json":
        raise FormatError(f"--out: {out} must end in .json; that is how a table is known", path=out)
    if out.exists():
        raise FormatError(f"--out: {out} exists; choose another place or remove it", path=out)
    if not out.resolve().parent.is_dir():
        raise FormatError(f"--out: {out.parent} is no directory; make it first", path=out)


def write_table(file: Path, record: Mapping[str, Any]) -> None:
    """Write what a search found, whole or not at all.

    Raises:
        FormatError: It cannot be written.
    """
    data = {"format_version": _FORMAT_VERSION, **record}
    write_whole(file, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_table(
    file: Path, method: str, options: Mapping[str, float]
) -> dict[frozenset[str], dict[str, Value]]:
    """Read the table of a file that ``modalloy search`` wrote, as ``compose`` takes it.

    Args:
        file: JSON.
        method: The merge method that it is to serve.
        options: Options of that method, those that are not left at their defaults.

    Raises:
        FormatError: It cannot be read, is another kind of file, or was found for another method.
    """
    try:
        data = read_object(file)
    except (OSError, FormatError) as error:
        raise _no_table(file, error) from error
    try:
        if data["format_version"] != _FORMAT_VERSION:
            raise FormatError(
                f"{file}: format_version {data['format_version']!r} is not known, expected "
                f"{_FORMAT_VERSION}; search again",
                path=file,
            )
        known = (data["method"], {**data["method_options"], **options})
        if known != (method, data["method_options"]):
            raise FormatError(
                f"{file}: its coefficients were found for method {data['method']!r} with options "
                f"{data['method_options']}, and mean something else under {method!r} with "
                f"{dict(options)}; compose with the former, or search again",
                path=file,
            )
        found = Coefficients.from_dict(data["coefficients"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise _no_table(file, error) from error
    table = {key: dict(zip(found.groups, row, strict=True)) for key, row in found.table.items()}
    if make_coefficients(table, found.groups, ("presence",)).default != found.default:
        raise FormatError(
            f"{file}: sets that its table does not hold have coefficients of their own "
            f"({dict(zip(found.groups, found.default, strict=True))}), which a table cannot say; "
            "add a row for every set",
            path=file,
        )
    return table


def _no_table(file: Path, error: Exception) -> FormatError:
    detail = error if isinstance(error, ModalloyError | OSError) else repr(error)
    return FormatError(
        f"{file} is no table of coefficients: {detail}; make one with `modalloy search`", path=file
    )


def show_search(record: Mapping[str, Any], *, trials: bool = False) -> None:
    """Print what a search found, one row per set, and every candidate if asked."""
    metric = record["metric"]
    rows = []
    for name, one in record["subsets"].items():
        found = _trial(one, one["chosen"])
        fate = _values(one["chosen"]) if one["replaced"] else "as before"
        rows.append((name, one["n"], fate, _share(found["accuracy"]), *_gain(one["gain"], metric)))
        if trials:
            _show_trials(name, one, metric)
    how = f"{record['strategy']}, seed {record['seed']}"
    columns = ("inputs", "n", "coefficients found", "right %", "gain", "95 % interval")
    title = f"Searched by {how}" + (f", for the best {metric}" if metric else ", without labels")
    print_table(title, columns, rows)


def _show_trials(name: str, one: Mapping[str, Any], metric: str | None) -> None:
    names = order_groups(one["default"])
    rows = [
        (
            *(show_value(trial["values"][group]) for group in names),
            trial["n"],
            "-" if trial["score"] is None else f"{trial['score']['value']:.4f}",
            _share(trial["accuracy"]),
            "-" if trial["unstable"] is None else f"{100 * trial['unstable']:.1f}",
            "default" if trial["values"] == one["default"] else "",
        )
        for trial in one["trials"]
    ]
    columns = (*names, "n", metric or "score", "right %", "changed %", "")
    print_table(f"Candidates for {name}", columns, rows)


def _trial(one: Mapping[str, Any], values: Mapping[str, Value]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(trial for trial in one["trials"] if trial["values"] == values)
    return found


def _values(row: Mapping[str, Value]) -> str:
    if any(isinstance(value, list | tuple) for value in row.values()):
        return "by layer"  # too many for a line: they are in the file, and in `inspect`
    return ", ".join(f"{name} {show_value(row[name])}" for name in order_groups(row))


def _share(interval: Mapping[str, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval['value']:.1f}"


def _gain(interval: Mapping[str, float] | None, metric: str | None) -> tuple[str, str]:
    """Return a gain and its interval; accuracy is shown in points."""
    if interval is None:
        return "-", "-"
    scale, digits = (100, 1) if metric == "accuracy" else (1, 4)
    value, low, high = (f"{scale * interval[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return value, f"{low} to {high}"
