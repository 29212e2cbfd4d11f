"""Measures rows: what a worker of the experiment does with a row and its columns."""

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch
from recipes.household.cells import Cell, cell_file, claimed, read_cell, write_cell
from recipes.household.columns import COLUMNS, Column, question_file, read_column, well_formed
from recipes.household.rows import BASE, ROWS, Row, Sources, open_row
from recipes.household.text_ability import Logits, foretell

from modalloy.base import resolve_base
from modalloy.cli.output import hush_transformers
from modalloy.composition.features import FeatureStore
from modalloy.evaluation.prompts import Progress
from modalloy.evaluation.questions import media_files, read_questions
from modalloy.evaluation.run import FEATURES_FOLDER, evaluate
from modalloy.registry import Registry

BATCH = 32


@attrs.frozen(kw_only=True)
class Settings:
    """What all workers share.

    Attributes:
        data: Folder of the questions and their media.
        work: Folder of features, answers and cells.
        sources: What rows are made of.
        threads: Threads of a worker.
    """

    data: Path
    work: Path
    sources: Sources
    threads: int = 1


@attrs.frozen(kw_only=True)
class Task:
    """Columns that a row is asked in one go.

    Attributes:
        stage: Which stage of the experiment it belongs to.
        row: Name of the row.
        identity: Digest of what it is made of.
        columns: Column names and how many questions each has.
    """

    stage: int
    row: str
    identity: str
    columns: tuple[tuple[str, int], ...]


def questions_digest(column: Column, data: Path) -> str:
    """Return the SHA-256 of a column's file of questions, and of its media's sizes and times.

    Media that were built anew make the column be asked anew; where their bytes are what they were,
    the answers that are kept serve.
    """
    file = question_file(column, data)
    state = file.stat()
    digest, media = _contents(file, column.group, state.st_size, state.st_mtime_ns)
    found = hashlib.sha256(digest)
    for medium in media:
        state = medium.stat()
        found.update(f"{medium.name} {state.st_size} {state.st_mtime_ns}".encode())
    return found.hexdigest()


@cache
def _contents(file: Path, group: str, *_: int) -> tuple[bytes, tuple[Path, ...]]:
    """Return the SHA-256 of a file and the media it names; read again when size or time differ."""
    questions = [] if group == "perplexity" else read_questions(file)
    media = sorted({path for question in questions for path in media_files(question)})
    return hashlib.sha256(file.read_bytes()).digest(), tuple(media)


def is_done(task_identity: str, row: str, column: str, count: int, settings: Settings) -> bool:
    """Whether a cell is there that was made of the same, with as many questions or more."""
    file = cell_file(settings.work, row, column)
    if not file.is_file():
        return False
    cell = read_cell(file)
    same = cell.identity == task_identity
    same = same and cell.questions == questions_digest(COLUMNS[column], settings.data)
    return same and (cell.values.get("wanted", cell.n) >= count)


def run_task(task: Task, settings: Settings) -> list[str]:
    """Measure a row's columns.

    Returns:
        A line about each column, for people.
    """
    torch.set_num_threads(settings.threads)
    hush_transformers()
    composition: Any = None
    lines = []
    for name, count in task.columns:
        answers = settings.work / "answers" / task.row / name
        with claimed(answers) as mine:
            if not mine:
                lines.append(f"{task.row}: {name}: another process is at it")
                continue
            if is_done(task.identity, task.row, name, count, settings):
                continue
            if composition is None:
                composition = open_row(ROWS[task.row], settings.sources, Registry.discover())
            cell = _measure(composition, task, COLUMNS[name], count, settings)
            write_cell(settings.work, cell)
        lines.append(_line(cell))
    return lines


def _measure(composition: Any, task: Task, column: Column, count: int, settings: Settings) -> Cell:
    started = time.perf_counter()
    blank = Cell(
        row=task.row,
        column=column.name,
        n=0,
        identity=task.identity,
        questions=questions_digest(column, settings.data),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if column.group == "perplexity":
        cell = _foretell(composition, ROWS[task.row], blank)
    else:
        cell = _ask(composition, column, count, settings, blank)
    return attrs.evolve(cell, seconds=round(time.perf_counter() - started, 2))


def _ask(composition: Any, column: Column, count: int, settings: Settings, blank: Cell) -> Cell:
    questions = read_column(column, settings.data, count)
    results = evaluate(
        composition.model,
        composition.processor,
        questions,
        scoring=column.scoring,
        batch_size=BATCH,
        work=settings.work / "answers" / blank.row / column.name,
        features=FeatureStore(settings.work / FEATURES_FOLDER),
        benchmark=column.group,
    )
    if results.skipped:
        raise ValueError(
            f"row {blank.row!r}: column {column.name!r} cannot be asked: "
            f"{'; '.join(f'{kind}: {why}' for kind, why in results.skipped.items())}"
        )
    by_id = {question.id: question for question in questions}
    known = {option for question in questions for option in question.options}
    return attrs.evolve(
        blank,
        n=len(questions),
        records=results.records,
        formed=tuple(
            well_formed(column, by_id[r.id], r.answer, known)
            for r in results.records
            if r.scoring == "exact"
        ),
        # A file may hold fewer than are wanted.
        values={"wanted": count},
        asked=len(results.records) - results.reused,
    )


def _foretell(composition: Any, row: Row, blank: Cell) -> Cell:
    """Score the text: with the base's own model for the row of the base."""
    tokenizer = composition.processor.tokenizer
    text = question_file(COLUMNS[blank.column], Path()).read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    score = foretell(_plain() if not row.modalities else _composed(composition.model), ids)
    values = {"perplexity": score.perplexity, "loss": score.loss, "wanted": len(ids)}
    return attrs.evolve(blank, n=score.tokens, values=values, asked=score.tokens)


def _plain() -> Logits:
    model = resolve_base(BASE).model("auto")
    return lambda ids: model(input_ids=ids).logits


def _composed(model: Any) -> Logits:
    return lambda ids: model(input_ids=ids, mm_token_type_ids=torch.zeros_like(ids)).logits


def encode_all(
    columns: Sequence[tuple[str, int]], settings: Settings, row: Row, progress: Progress
) -> int:
    """Encode the media of columns once, for all rows.

    Args:
        columns: Column names and the most questions of each.
        settings: Where media are, and where features go.
        row: Any row that reads all of them.
        progress: Told after every batch.

    Returns:
        How many media there are.
    """
    model, processor = open_row(row, settings.sources, Registry.discover())
    modality_of = {entry["content_type"]: name for name, entry in processor.modalities.items()}
    wanted: dict[tuple[str, Path], None] = {}
    for name, count in columns:
        if COLUMNS[name].group == "perplexity":
            continue
        for question in read_column(COLUMNS[name], settings.data, count):
            (parts,) = (message["content"] for message in question.messages)
            types = [part["type"] for part in parts if "path" in part]
            for type_, file in zip(types, media_files(question), strict=True):
                wanted[modality_of[type_], file] = None
    store = FeatureStore(settings.work / FEATURES_FOLDER)
    inputs = sorted(wanted)
    for start in range(0, len(inputs), BATCH):
        store.batch(model, processor, inputs[start : start + BATCH])
        progress("encoding", min(start + BATCH, len(inputs)), len(inputs))
    store.flush()
    return len(inputs)


def _line(cell: Cell) -> str:
    where = f"{cell.row}: {cell.column}:"
    if "perplexity" in cell.values:
        return f"{where} perplexity {cell.values['perplexity']:.3f} ({cell.n} tokens)"
    shown = ", ".join(
        f"{row.scoring} {100 * row.right.value:.1f} %"
        for row in attrs.evolve(cell.results("options"), records=cell.records).table()
        if row.kind != "average"
    )
    return f"{where} {shown} (n = {cell.n}, {cell.asked} new answers, {cell.seconds:.0f} s)"
