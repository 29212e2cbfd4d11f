"""Measures every composition of the household parents on every set of questions.

Run ``python -m recipes.household.experiment --data DIR --work WORK`` from the repository's root,
``DIR`` being the folder that build.py wrote, and then ``python -m recipes.household.report --work
WORK``. It may be stopped at any moment and goes on where it stopped; what is most wanted comes
first. Several may run at once on one ``WORK``, with other rows or columns.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from recipes.household.asking import Settings, Task, encode_all, is_done, run_task
from recipes.household.columns import COLUMNS, STAGES, place, question_file
from recipes.household.conflicts import write_conflicts
from recipes.household.rows import ALL, ROWS, Sources, identity, lacking

import modalloy
from modalloy.cli.progress import progress_bar
from modalloy.errors import nearest
from modalloy.parent import read_manifest
from modalloy.registry import Registry

RECORD = "experiment.json"


def plan(
    rows: Mapping[str, str],
    columns: Sequence[str],
    settings: Settings,
    *,
    last: int = max(STAGES),
    limit: int | None = None,
) -> list[Task]:
    """Return what is still to be measured, the most wanted first.

    Args:
        rows: Identity by name of the rows to measure.
        columns: Names of the columns.
        settings: Where questions are, and what is there already.
        last: Stage to end with.
        limit: Most questions of a cell.
    """
    found: dict[tuple[int, str], list[tuple[str, int]]] = {}
    for row, mark in rows.items():
        for column in columns:
            where = place(ROWS[row], COLUMNS[column])
            if where is None or where[0] > last:
                continue
            count = min(where[1], limit or where[1])
            if not is_done(mark, row, column, count, settings):
                found.setdefault((where[0], row), []).append((column, count))
    order = list(ROWS)
    return [
        Task(stage=stage, row=row, identity=rows[row], columns=tuple(cells))
        for (stage, row), cells in sorted(
            found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
        )
    ]


def record(settings: Settings, left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return what the report says about the run as a whole."""
    registry = Registry.discover()
    parents = {}
    for strategy in ("decoupled", "naive"):
        for modality in ALL:
            directory = settings.sources.parent(modality, strategy, registry)
            if directory is not None:
                manifest = read_manifest(directory)
                parents[f"{modality}-{strategy}"] = {
                    "name": manifest.name,
                    "seed": manifest.training.get("config", manifest.training).get("seed"),
                    "licence": manifest.licence,
                }
    built = settings.data / "objects.jsonl"
    stamp = datetime.fromtimestamp(built.stat().st_mtime, UTC) if built.is_file() else None
    return {
        "left_out": dict(left_out),
        "parents": parents,
        "data_built": stamp.date().isoformat() if stamp else None,
        "versions": {
            "modalloy": modalloy.__version__,
            **{name: version(name) for name in ("torch", "transformers")},
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }


def run(tasks: Sequence[Task], settings: Settings, jobs: int) -> list[str]:
    """Measure all tasks, ``jobs`` at a time, and return what went wrong."""
    begin = time.perf_counter()
    failed: list[str] = []

    def say(number: int, task: Task, lines: Sequence[str]) -> None:
        minutes = (time.perf_counter() - begin) / 60
        print(f"[{minutes:6.1f} min] {number} of {len(tasks)}: stage {task.stage}", flush=True)
        for line in lines:
            print(f"    {line}", flush=True)

    if jobs == 1:
        for number, task in enumerate(tasks, start=1):
            say(number, task, run_task(task, settings))
        return failed
    # Spawned, not forked: this process holds threads of torch.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures: dict[Future[list[str]], Task] = {
            pool.submit(run_task, task, settings): task for task in tasks
        }
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                task = futures[future]
                error = future.exception()
                if error is None:
                    say(number, task, future.result())
                else:
                    # The other rows are worth having all the same.
                    failed.append(f"{task.row}, stage {task.stage}: {error!r}")
                    say(number, task, [failed[-1]])
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def choose(what: str, names: Sequence[str] | None, known: Mapping[str, Any]) -> list[str]:
    """Return the names asked for in the order of tables, all if none is.

    Raises:
        ValueError: One is not known.
    """
    for name in names or ():
        if name not in known:
            raise ValueError(
                f"--{what}: there is no {what} {name!r}; there are {', '.join(known)}."
                f"{nearest(name, known)}"
            )
    return [name for name in known if not names or name in names]


def available(
    names: Sequence[str], asked: Sequence[str] | None, sources: Sources
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the identity of rows that can be opened, and why others cannot.

    Raises:
        ValueError: A row that was asked for by name cannot be opened, or none can.
    """
    registry = Registry.discover()
    reasons = {name: lacking(ROWS[name], sources, registry) for name in names}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    for name in asked or ():
        if name in left_out:
            raise ValueError(f"--row {name}: {left_out[name]}")
    if len(left_out) == len(names):
        raise ValueError(f"no row can be measured: {'; '.join(sorted(set(left_out.values())))}")
    marks = {
        name: identity(ROWS[name], sources, registry) for name in names if name not in left_out
    }
    return marks, left_out


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that build.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for answers and cells")
    parser.add_argument("--row", action="append", help="measure this row only (repeatable)")
    parser.add_argument("--column", action="append", help="this column only (repeatable)")
    stages = "; ".join(f"{number}: {text}" for number, text in STAGES.items())
    parser.add_argument(
        "--priority", type=int, choices=STAGES, default=max(STAGES), help=f"last stage. {stages}"
    )
    parser.add_argument("--limit", type=int, help="questions of a cell at most")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--features", action="store_true", help="encode the media, ask nothing")
    parser.add_argument("--joint", type=Path, help="model directory of joint.py [WORK/joint]")
    parser.add_argument(
        "--coefficients", type=Path, help="folder of searches, STRATEGY.json [WORK/coefficients]"
    )
    parser.add_argument("--parents", type=Path, help="folder with MODALITY-STRATEGY directories")
    return parser.parse_args()


def main() -> None:
    """Measure what is asked for and not there yet."""
    args = parse()
    sources = Sources(
        joint=args.joint or args.work / "joint",
        coefficients=args.coefficients or args.work / "coefficients",
        parents=args.parents,
    )
    settings = Settings(data=args.data, work=args.work, sources=sources, threads=args.threads)
    try:
        marks, left_out = available(choose("row", args.row, ROWS), args.row, sources)
        columns = choose("column", args.column, COLUMNS)
    except ValueError as error:
        sys.exit(f"error: {error}")
    absent = [c for c in columns if not question_file(COLUMNS[c], args.data).is_file()]
    if args.column and absent:
        sys.exit(f"error: --column {absent[0]}: {args.data} has no such questions")
    columns = [name for name in columns if name not in absent]
    left_out |= dict.fromkeys(absent, "its questions are not in the data")
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    args.work.mkdir(parents=True, exist_ok=True)
    tasks = plan(marks, columns, settings, last=args.priority, limit=args.limit)
    if not args.row and not args.column:
        text = json.dumps(record(settings, left_out), indent=2) + "\n"
        (args.work / RECORD).write_text(text, encoding="utf-8")
        write_conflicts(args.work, sources)
    _encode(tasks, settings)
    if args.features:
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    failed = run(tasks, settings, min(args.jobs, max(len(tasks), 1)))
    if failed:
        sys.exit("error: " + "\n".join(failed))


def _encode(tasks: Sequence[Task], settings: Settings) -> None:
    """Encode what the tasks ask about, by the first row that reads it all."""
    counts: dict[str, int] = {}
    for task in tasks:
        for name, count in task.columns:
            counts[name] = max(count, counts.get(name, 0))
    needed = {modality for name in counts for modality in COLUMNS[name].modalities}
    readers = [ROWS[task.row] for task in tasks if needed <= set(ROWS[task.row].modalities)]
    if not needed or not readers:
        return
    import torch

    torch.set_num_threads(settings.threads)
    # The simplest one: what it makes of the features does not matter.
    reader = min(readers, key=lambda row: (row.method is None, row.name != "connectors"))
    with progress_bar() as bar:
        total = encode_all(sorted(counts.items()), settings, reader, bar)
    print(f"{total} media are encoded", flush=True)


if __name__ == "__main__":
    main()
