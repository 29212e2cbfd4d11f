"""``modalloy evaluate``: a composition, measured on a benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from modalloy.checkpoints.new_directory import write_whole
from modalloy.cli.compose import parse_coefficients
from modalloy.cli.output import (
    hush_transformers,
    print_json,
    print_line,
    print_note,
    print_table,
)
from modalloy.cli.progress import progress_bar
from modalloy.errors import FormatError, InputError, SpecError, nearest
from modalloy.modality import resolve
from modalloy.registry import Registry

if TYPE_CHECKING:
    from modalloy.composition.compose import Composition
    from modalloy.evaluation.questions import Question
    from modalloy.evaluation.results import Results
    from modalloy.evaluation.retention import Retained


def command(  # noqa: PLR0913 - the options of the command line
    model: Annotated[
        str | None,
        typer.Argument(help="Model directory or Hub id; left out, one is composed in memory."),
    ] = None,
    *,
    revision: Annotated[
        str | None,
        typer.Option(help="Of MODEL's Hub repository; without MODEL, of --base's."),
    ] = None,
    benchmark: Annotated[str, typer.Option(help="Name of a benchmark (see `modalloy plugins`).")],
    data: Annotated[Path | None, typer.Option(help="Directory of the benchmark's files.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only questions of this kind (repeatable).")
    ] = None,
    scoring: Annotated[
        list[str] | None,
        typer.Option(help="options, letter, exact or evalai in place of its own (repeatable)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each kind.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 32,
    work: Annotated[
        Path | None, typer.Option(help="Directory that keeps features and answers.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write all results to this file, for `modalloy report`.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="As `modalloy compose`; with MODEL, for opening its parents alone."),
    ] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Without MODEL: likewise.")] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(help="Without MODEL: likewise. With it: parents to compare it with."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Without MODEL: likewise.")] = None,
    coefficients: Annotated[str | None, typer.Option(help="Without MODEL: likewise.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all results as JSON.")] = False,
) -> None:
    """Ask a model a benchmark's questions and show how many answers are right, by kind."""
    registry = Registry.discover()
    spec = registry.benchmark(benchmark)
    _check_options(model, data, out, modality=modality, method=method, values=coefficients)
    scorings = scoring or list(spec.scoring)
    from modalloy.benchmark import check_scoring

    check_scoring(scorings, "--scoring")
    # Questions and media are looked at before anything slow.
    questions = _chosen(resolve(spec.questions)(data, None if kind else limit), kind, limit)
    composing = {
        "base": base or "smollm2",
        "revision": revision,
        "modalities": modality,
        "parents": parent or (),
        "method": method or "damc",
        "coefficients": parse_coefficients(coefficients, method or "damc", {}),
    }
    hush_transformers()
    composition = _open(model, revision, composing, dtype, registry)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    from modalloy.composition.features import FeatureStore

    store = FeatureStore(work / "features" if work else None)
    alone = {}
    if spec.against_parents:
        from modalloy.evaluation.retention import parents_alone

        of_base = revision if model is None else None
        alone = parents_alone(composition, parent or (), registry, base=base, revision=of_base)
    asker = _Asker(benchmark, scorings, batch_size, work, store)
    results = asker(composition, questions)
    report: dict[str, Any] = {"model": model, "benchmark": benchmark, **results.to_dict()}
    rows: list[Retained] = []
    if spec.against_parents:
        rows = _against_parents(asker, alone, questions, results)
        report["retention"] = [{**attrs.asdict(row), "ratio": row.ratio} for row in rows]
    if out is not None:
        _write(out, report)
    if as_json:
        print_json(report)
        return
    _show(benchmark, results)
    if rows:
        _show_retention(rows)


@attrs.frozen
class _Asker:
    """Asks compositions the same way, keeping the features of inputs between them."""

    benchmark: str
    scoring: list[str]
    batch_size: int
    work: Path | None
    store: Any

    def __call__(self, composition: "Composition", questions: "Sequence[Question]") -> "Results":
        from modalloy.evaluation.run import evaluate

        with progress_bar() as progress:
            return evaluate(
                composition.model,
                composition.processor,
                questions,
                scoring=self.scoring,
                batch_size=self.batch_size,
                work=self.work,
                features=self.store,
                benchmark=self.benchmark,
                progress=progress,
            )


def _check_options(
    model: str | None,
    data: Path | None,
    out: Path | None,
    *,
    modality: list[str] | None,
    method: str | None,
    values: str | None,
) -> None:
    given = {"--modality": modality, "--method": method, "--coefficients": values}
    foreign = [name for name, value in given.items() if value]
    if model is not None and foreign:
        raise SpecError(
            f"{', '.join(foreign)} say how to compose a model, and MODEL is one already; leave "
            "MODEL out, or them",
            subject="evaluate",
        )
    if data is not None and not data.is_dir():
        raise FormatError(f"--data: {data} is no directory", path=data)
    if out is not None and not out.resolve().parent.is_dir():
        raise FormatError(f"--out: {out.parent} is no directory; make it first", path=out)


def _chosen(
    questions: "list[Question]", kinds: list[str] | None, limit: int | None
) -> "list[Question]":
    """Return the questions of the kinds asked for."""
    from modalloy.evaluation.questions import first_of_each

    known = sorted({question.kind for question in questions})
    for kind in kinds or ():
        if kind not in known:
            raise InputError(
                f"--kind: there are no questions of kind {kind!r}; there are {', '.join(known)}."
                f"{nearest(kind, known)}"
            )
    return first_of_each([q for q in questions if not kinds or q.kind in kinds], limit)


def _open(
    model: str | None,
    revision: str | None,
    composing: dict[str, Any],
    dtype: str,
    registry: Registry,
) -> "Composition":
    from modalloy.composition.compose import compose, load

    if model is not None:
        return load(model, revision=revision, dtype=dtype, registry=registry)
    return compose(**composing, dtype=dtype, registry=registry, progress=print_note)


def _against_parents(
    asker: _Asker,
    alone: dict[str, dict[str, Any]],
    questions: "Sequence[Question]",
    composed: "Results",
) -> "list[Retained]":
    from modalloy.evaluation.retention import of_type, open_alone, retained

    answers = []
    for content_type, options in alone.items():
        own = of_type(questions, content_type)
        if own:
            print_note(f"asking the {options['modalities'][0]} parent alone")
            answers.append(asker(open_alone(options), own))
    return retained(answers, composed)


def _show(benchmark: str, results: "Results") -> None:
    rows = [
        (
            row.kind,
            row.scoring,
            row.n,
            f"{100 * row.right.value:.1f}",
            f"{100 * row.right.low:.1f} to {100 * row.right.high:.1f}",
        )
        for row in results.table()
    ]
    print_table(benchmark, ("kind", "scoring", "n", "right %", "95 % interval"), rows)
    for name, reason in results.skipped.items():
        print_line(f"left out: {name}: {reason}")
    if results.reused:
        print_line(f"{results.reused} answers were kept from an earlier run")


def _show_retention(rows: "Sequence[Retained]") -> None:
    cells = [
        (
            row.kind,
            row.scoring,
            row.n,
            f"{100 * row.alone:.1f}",
            f"{100 * row.composed:.1f}",
            "-" if row.ratio is None else f"{row.ratio:.3f}",
        )
        for row in rows
    ]
    columns = ("kind", "scoring", "n", "parent alone %", "composed %", "ratio")
    print_table("Retention", columns, cells)


def _write(file: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(file, f"{text}\n")
