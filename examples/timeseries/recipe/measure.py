"""Ask a composed model about held-out logs, as `modalloy ask` does, and count what is right.

    python recipe/measure.py MODEL [--data DIRECTORY] [--count N]

Exit code 1 where the answers to any kind of question are not better than chance, which is to give
the most frequent answer.
"""

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import modalloy

Z = 1.96  # of the normal distribution, two-sided, 95 %


def interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson's)."""
    share = right / count
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2) / (1 + Z * Z / count)
    return centre - half, centre + half


def answer(model: Any, processor: Any, messages: list[dict[str, Any]]) -> str:
    """Return the greedy answer to a conversation."""
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    return str(processor.decode(new, skip_special_tokens=True)).strip()


def main(directory: str, data: Path, count: int) -> int:
    """Print how many of the first ``count`` answers are right, to the letter, by kind."""
    lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    model, processor = modalloy.load(directory)
    truths: dict[str, list[str]] = defaultdict(list)
    right: Counter[str] = Counter()
    for record in map(json.loads, lines):
        question, truth = record["messages"]
        for part in question["content"]:
            if "path" in part:
                part["path"] = str(data / part["path"])
        truths[record["kind"]].append(truth["content"])
        right[record["kind"]] += answer(model, processor, [question]) == truth["content"]
    better = True
    for kind, given in sorted(truths.items()):
        low, high = interval(right[kind], len(given))
        chance = Counter(given).most_common(1)[0][1] / len(given)
        better &= low > chance
        print(
            f"{kind}: {right[kind]} of {len(given)} right: {right[kind] / len(given):.1%} "
            f"(95 % interval {low:.1%} to {high:.1%}), chance {chance:.1%}"
        )
    return 0 if better else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a composed model.")
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--count", type=int, default=200)
    given = parser.parse_args()
    sys.exit(main(given.model, given.data, given.count))
