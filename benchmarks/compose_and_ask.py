"""Seconds and peak memory of ``modalloy compose`` and ``modalloy ask``, as a user runs them.

Run ``python benchmarks/compose_and_ask.py [--json FILE]``. Every command is a process of its own,
start-up included; memory is the process's peak resident set.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from modalloy.cli.demo import BUNDLE
from modalloy.cli.output import print_table

DEMO = json.loads((BUNDLE / "demo.json").read_text(encoding="utf-8"))["questions"]


def ask(model: str, kinds: set[str]) -> tuple[str, ...]:
    """Return the words that ask ``model`` the demo's question about inputs of just these kinds."""
    question = next(q for q in DEMO if {one["type"] for one in q["inputs"]} == kinds)
    options = [
        word
        for one in question["inputs"]
        for word in (f"--{one['type'].replace('_', '-')}", str(BUNDLE / one["file"]))
    ]
    return ("ask", model, question["question"], *options, "--json")


def run(*words: str) -> tuple[float, float]:
    """Run ``modalloy`` and return its seconds and its peak memory in MiB."""
    started = time.perf_counter()
    code = "from modalloy.cli.main import run; run()"
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-W", "ignore", "-c", code, *words], dict(os.environ)
    )
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"modalloy {' '.join(words)} failed")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            model = str(Path(folder) / f"model-{number}")
            commands = {
                "--help": ("--help",),
                "plugins": ("plugins", "--json"),
                "compose": ("compose", model, "--json"),
                "ask, picture": ask(model, {"image"}),
                "ask, all four": ask(model, {"image", "audio", "video", "point_cloud"}),
            }
            for name, words in commands.items():
                found.setdefault(name, []).append(run(*words))
    rows = {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "peak MiB": statistics.median(memory for _, memory in runs),
        }
        for name, runs in found.items()
    }
    print_table(
        f"modalloy, whole process, median of {args.rounds}",
        ("command", "seconds", "peak MiB"),
        [(n, f"{r['seconds']:.2f}", f"{r['peak MiB']:.0f}") for n, r in rows.items()],
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
