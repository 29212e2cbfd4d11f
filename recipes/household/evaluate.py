"""Measures the household parents, alone and composed, on held-out pictures and voices.

Run ``python -m recipes.household.evaluate --work DIR [--json FILE]`` after build.py, or with
``--bundled`` on the few questions that the repository carries.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

import modalloy
from modalloy.cli.output import print_table
from modalloy.cli.progress import progress_bar
from modalloy.evaluation.scoring import Question, answer_freely, choose_options, read_questions

SETS = (
    "vision-mc",
    "vision-caption",
    "audio-mc",
    "audio-caption",
    "vision+audio",
    "vision+audio-noisy",
)
MODALITIES = ("vision", "audio")
BUNDLED = Path(__file__).parents[2] / "tests" / "data" / "household"


def models(parents: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return what is measured: arguments of ``modalloy.compose`` by name.

    Args:
        parents: Directories in place of the installed parents, by ``<modality>-<strategy>``.
    """

    def of(strategy: str, *modalities: str) -> dict[str, Any]:
        names = [f"{m}-{strategy}" for m in modalities]
        return {
            "modalities": list(modalities),
            "parents": [parents[n] for n in names if n in parents],
        }

    both = ("audio", "vision")
    return {
        "vision alone, naive": of("naive", "vision") | {"method": "naive"},
        "vision alone, decoupled": of("decoupled", "vision"),
        "audio alone, naive": of("naive", "audio") | {"method": "naive"},
        "audio alone, decoupled": of("decoupled", "audio"),
        "NaiveMC mean": of("naive", *both) | {"method": "naive", "coefficients": "mean"},
        "NaiveMC sum": of("naive", *both) | {"method": "naive", "coefficients": "sum"},
        "DAMC uniform": of("decoupled", *both) | {"coefficients": "uniform"},
        "DAMC presence": of("decoupled", *both) | {"coefficients": "presence"},
    }


def measure(model: Any, processor: Any, questions: Sequence[Question], bar: Any) -> dict[str, Any]:
    """Return right choices by option likelihood, and exact free-form answers where defined."""
    chosen = choose_options(model, processor, questions, progress=bar)
    right = [pick == q.answer for pick, q in zip(chosen, questions, strict=True)]
    row: dict[str, Any] = {"n": len(questions), "accuracy": sum(right) / len(right)}
    row["standard_error"] = math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["n"])
    if all(q.reference is not None for q in questions):
        said = answer_freely(model, processor, questions, progress=bar)
        exact = [text == q.reference for text, q in zip(said, questions, strict=True)]
        row["exact"] = sum(exact) / len(exact)
    return row


def main() -> None:
    """Measure every model on every set it can read, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="directory that build.py wrote")
    parser.add_argument("--bundled", action="store_true", help="the repository's own questions")
    parser.add_argument("--split", default="test", choices=["test", "val"])
    parser.add_argument("--conflicts", action="store_true", help="two inputs, one is asked about")
    parser.add_argument("--limit", type=int, help="questions per set")
    parser.add_argument("--only", action="append", help="measure this model only (repeatable)")
    parser.add_argument("--parent", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    root, prefix = (BUNDLED, "") if args.bundled else (args.work, f"{args.split}-")
    if root is None:
        parser.error("give --work DIR or --bundled")
    sets = {
        name: read_questions(root / f"{prefix}{name}.jsonl")[: args.limit]
        for name in SETS
        if (root / f"{prefix}{name}.jsonl").is_file()
    }
    if args.conflicts and args.bundled:
        parser.error("--conflicts needs --work: the bundled media are not sorted by class")
    if args.conflicts:
        sets = conflicts(root, prefix, args.limit)
    given = {name: Path(path) for name, _, path in (p.partition("=") for p in args.parent)}
    results: dict[str, dict[str, Any]] = {}
    for name, options in models(given).items():
        if args.only and name not in args.only:
            continue
        started = time.perf_counter()
        model, processor = modalloy.compose(**options)
        readable = [s for s in sets if all(m in options["modalities"] for m in needed(s))]
        results[name] = {}
        for one in readable:
            sys.stderr.write(f"{name} on {one}\n")
            with progress_bar() as bar:
                results[name][one] = measure(model, processor, sets[one], bar)
        results[name]["seconds"] = round(time.perf_counter() - started, 1)
        if args.json:
            args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(results, list(sets))


def conflicts(root: Path, prefix: str, limit: int | None) -> dict[str, list[Question]]:
    """Return four-way questions about one input that has another, of a wrong option, beside it.

    Args:
        root: Directory of the question files.
        prefix: Of the files' names.
        limit: Questions per set.
    """
    files = {name: read_questions(root / f"{prefix}{name}-mc.jsonl") for name in MODALITIES}
    draw = random.Random(0)  # noqa: S311  # which distractor, not a secret
    sets: dict[str, list[Question]] = {}
    for asked, other in (MODALITIES, MODALITIES[::-1]):
        by_class: dict[str, list[Any]] = {}
        for question in files[other]:
            part = question.messages[0]["content"][0]
            by_class.setdefault(part["path"].parent.name, []).append(part)
        for question in files[asked][:limit]:
            part, text = question.messages[0]["content"]
            own, options = part["path"].parent.name, " ".join(question.options)
            wrong = [name for name in sorted(by_class) if name != own and name in options]
            beside = draw.choice(by_class[draw.choice(wrong)])
            for order, media in (("first", [part, beside]), ("second", [beside, part])):
                message = {"role": "user", "content": [*media, text]}
                mixed = attrs.evolve(question, messages=[message], reference=None)
                sets.setdefault(f"{asked} {order} of audio+vision", []).append(mixed)
    return sets


def needed(name: str) -> list[str]:
    """Return the modalities that a set of questions needs."""
    return name.rpartition(" ")[2].partition("-")[0].split("+")


def show(results: Mapping[str, Mapping[str, Any]], sets: Sequence[str]) -> None:
    """Print accuracy in percent, exact free-form answers in brackets."""
    rows = []
    for name, found in results.items():
        cells = []
        for one in sets:
            row = found.get(one)
            exact = f" ({100 * row['exact']:.0f})" if row and "exact" in row else ""
            cells.append(f"{100 * row['accuracy']:.1f}{exact}" if row else "-")
        rows.append((name, *cells))
    print_table("Right answers in %, exact free-form answers in brackets", ("", *sets), rows)


if __name__ == "__main__":
    main()
