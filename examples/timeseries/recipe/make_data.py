"""Write synthetic logs of a machine and chats about them: what recipe/train.yml trains on.

    python recipe/make_data.py [DIRECTORY]

A log has the columns time, temperature (degrees C), vibration (mm/s) and current (A), at irregular
times, with noise and with gaps. The machine is idle, starts up, runs, overheats, or is out of
balance; someone should look at it in the last two cases.
"""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATES = {
    "idle": "It is idle.",
    "starting": "It is starting up.",
    "running": "It runs as it should.",
    "overheating": "It is overheating.",
    "unbalanced": "It is out of balance.",
}
"""Answers by state."""

ALARMING = ("overheating", "unbalanced")
QUESTIONS = {
    "state": ("What is the machine doing?", "What state is the machine in?"),
    "alarm": ("Should someone look at the machine?", "Does the machine need attention?"),
}
SPLITS = {"train": 400, "val": 40, "test": 200}
GAPS = 0.03  # of the readings are missing
PLACES = {"temperature": 1, "vibration": 3, "current": 2}
"""Columns, and their digits behind the point."""

Log = tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]


def draw(state: str, rng: np.random.Generator) -> Log:
    """Return times ``(n,)`` in seconds, and readings ``(n,)`` by column, NaN where they are missing.

    What a state looks like is in its course and in how the columns go together; the levels of
    machines differ.
    """
    count = int(rng.integers(80, 300))
    times = np.cumsum(rng.uniform(0.5, 1.5, count) * rng.uniform(0.5, 4))
    share = (times - times[0]) / (times[-1] - times[0])
    room, load = rng.uniform(15, 30), rng.uniform(4, 12)
    hot, shake = room + rng.uniform(25, 40), rng.uniform(0.8, 2)
    ramp = 1 / (1 + np.exp(-(share - rng.uniform(0.3, 0.6)) / 0.06))
    one = np.ones(count)
    temperature, vibration, current = {
        "idle": (room * one, 0.02 * one, 0.05 * one),
        "starting": (
            room + (hot - room) * np.clip(share - 0.4, 0, None) * rng.uniform(0.4, 0.9),
            shake * ramp,
            load * ramp * (1 + 1.5 * np.exp(-(((share - 0.5) / 0.1) ** 2))),
        ),
        "running": (hot * one, shake * one, load * one),
        "overheating": (
            hot + rng.uniform(20, 45) * share ** rng.uniform(1, 2),
            shake * one,
            load * (1 + rng.uniform(0.1, 0.4) * share),
        ),
        "unbalanced": (
            hot * one,
            shake * (1 + rng.uniform(1.5, 4) * share ** rng.uniform(0.7, 1.5)),
            load * one,
        ),
    }[state]
    wave = np.sin(2 * np.pi * rng.uniform(3, 9) * share + rng.uniform(0, 6))
    readings = {
        "temperature": temperature + rng.normal(0, 0.5, count),
        "vibration": np.abs(vibration * (1 + 0.1 * wave + rng.normal(0, 0.15, count))),
        "current": np.abs(current * (1 + rng.normal(0, 0.04, count))),
    }
    for column in readings.values():
        column[rng.random(count) < GAPS] = np.nan
    return times, readings


def table(log: Log) -> str:
    """Return a log as CSV, empty cells where readings are missing."""
    times, readings = log
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["time", *readings])
    for row, time in enumerate(times):
        cells = [
            "" if np.isnan(column[row]) else f"{column[row]:.{PLACES[name]}f}"
            for name, column in readings.items()
        ]
        writer.writerow([f"{time:.2f}", *cells])
    return text.getvalue()


def chat(kind: str, state: str, file: str, question: str) -> dict[str, Any]:
    """Return a question about a log and its answer."""
    alarm = "Yes." if state in ALARMING else "No."
    content = [{"type": "time_series", "path": file}, {"type": "text", "text": question}]
    return {
        "kind": kind,
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": STATES[state] if kind == "state" else alarm},
        ],
    }


def main(directory: Path) -> None:
    """Write logs and chats of all splits."""
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    states = list(STATES)
    for seed, (split, count) in enumerate(SPLITS.items()):
        rng = np.random.default_rng(seed)
        lines = []
        for number in range(count):
            state = states[number % len(states)]
            # Every fourth question is about the alarm; both kinds go through all states.
            kind = "alarm" if number // len(states) % 4 == 0 else "state"
            file = f"logs/{split}-{number:03}.csv"
            (directory / file).write_text(table(draw(state, rng)), encoding="utf-8")
            question = QUESTIONS[kind][int(rng.integers(len(QUESTIONS[kind])))]
            lines.append(json.dumps(chat(kind, state, file, question)))
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the recipe's data.")
    default = Path(__file__).parent / "data"
    parser.add_argument("directory", nargs="?", type=Path, default=default)
    main(parser.parse_args().directory)
