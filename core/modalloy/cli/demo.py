"""``modalloy demo``: compose what is installed and ask it about bundled inputs."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from modalloy.cli.output import (
    hush_transformers,
    print_json,
    print_line,
    print_note,
    print_table,
)

BUNDLE = Path(__file__).parents[1] / "demo"
"""Pictures and sounds, and ``demo.json`` with what is asked about them."""


def command(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Find the installed modalities, compose them, and ask about bundled inputs.

    Questions about inputs that no installed modality takes are left out and listed.
    """
    from modalloy.registry import Registry

    registry = Registry.discover()
    parents = [(p.modality, p.name, p.strategy, p.base) for p in registry.parents()]
    if not as_json:
        print_table("Found", ("modality", "parent", "strategy", "base"), parents)
    from modalloy.composition.compose import compose

    hush_transformers()
    started = time.perf_counter()
    model, processor = compose(registry=registry, progress=print_note)
    composed = time.perf_counter() - started
    names = ", ".join(model.config.modalities)
    if not as_json:
        print_line(f"Composed {names} over {model.config.base['id']} in {composed:.1f} s\n")
    answers, skipped = ask_bundled(model, processor)
    if as_json:
        print_json({"compose_seconds": round(composed, 2), "answers": answers, "skipped": skipped})
        return
    print_table(
        "Asked",
        ("inputs", "question", "truth", "answer", "s"),
        [
            (
                " + ".join(a["inputs"]) or "text alone",
                a["question"],
                a["truth"],
                a["answer"],
                f"{a['seconds']:.1f}",
            )
            for a in answers
        ],
    )
    for question in skipped:
        print_line(f"left out, since no modality takes its inputs: {question}")


def ask_bundled(model: Any, processor: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Ask the bundled questions that the composition has the modalities for.

    Returns:
        Answers with what was asked, and the questions that were left out.
    """
    from modalloy.cli.ask import answer

    known = {entry["content_type"] for entry in model.config.modalities.values()}
    answers, skipped = [], []
    for item in json.loads((BUNDLE / "demo.json").read_text(encoding="utf-8"))["questions"]:
        if any(one["type"] not in known for one in item["inputs"]):
            skipped.append(item["question"])
            continue
        parts = [{"type": one["type"], "path": BUNDLE / one["file"]} for one in item["inputs"]]
        content = [*parts, {"type": "text", "text": item["question"]}]
        started = time.perf_counter()
        text, _ = answer(
            model, processor, [{"role": "user", "content": content}], max_new_tokens=24
        )
        answers.append(
            {
                "inputs": [one["file"] for one in item["inputs"]],
                "question": item["question"],
                "truth": item["truth"],
                "answer": text,
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
    return answers, skipped
