"""Fit a linear classifier to the encoder's features: what training can hope for, in seconds.

    python recipe/probe.py [--data DIRECTORY]

It is fitted to the training split and counted on the validation split, for each kind of question.
What it cannot tell apart, a parent will hardly do either.
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from modalloy import Registry
from modalloy.modality import resolve
from modalloy.training.config import read_config
from numpy.typing import NDArray

RECIPE = Path(__file__).parent
RIDGE = 1.0  # added to the features' sums of squares, which are one an example
Pairs = list[tuple[NDArray[np.float64], str]]


@torch.no_grad()
def features(data: Path, split: str) -> dict[str, Pairs]:
    """Return features and answer of every chat of a split, by kind of question."""
    config = read_config(RECIPE / "train.yml")
    registry = Registry.discover(strict=False)
    modality, kind = registry.modality(config.modality), registry.encoder(config.encoder.type)
    read, preprocess = resolve(modality.read), resolve(kind.preprocess)
    encoder = resolve(kind.build)(config.encoder.config).eval()
    found: dict[str, Pairs] = defaultdict(list)
    for record in map(json.loads, (data / f"{split}.jsonl").read_text("utf-8").splitlines()):
        question, answer = record["messages"]
        path = next(part["path"] for part in question["content"] if "path" in part)
        tensors = preprocess(read(data / path, modality.limits), config.encoder.config)
        encoded = encoder(**{name: tensor[None] for name, tensor in tensors.items()})
        found[record["kind"]].append((encoded.flatten().double().numpy(), answer["content"]))
    return found


def count(train: Pairs, held: Pairs) -> int:
    """Return how many of ``held`` ridge regression on ``train`` answers right."""
    answers = sorted({answer for _, answer in train})
    given = np.stack([values for values, _ in train])
    mean, deviation = given.mean(0), given.std(0) + 1e-6
    goals = np.array([[answer == one for one in answers] for _, answer in train], dtype=float)
    rows = np.c_[(given - mean) / deviation, np.ones(len(given))]
    squares = rows.T @ rows + RIDGE * len(rows) / rows.shape[1] * np.eye(rows.shape[1])
    weights = np.linalg.solve(squares, rows.T @ goals)
    asked = np.c_[[(values - mean) / deviation for values, _ in held], np.ones(len(held))]
    chosen = (asked @ weights).argmax(1)
    return sum(answers[place] == answer for place, (_, answer) in zip(chosen, held, strict=True))


def main(data: Path) -> None:
    """Print how many held-out answers are right, by kind."""
    train, held = features(data, "train"), features(data, "val")
    for kind, pairs in sorted(held.items()):
        right = count(train[kind], pairs)
        chance = Counter(answer for _, answer in pairs).most_common(1)[0][1] / len(pairs)
        share = right / len(pairs)
        print(f"{kind}: {right} of {len(pairs)} right: {share:.1%}, chance {chance:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Probe the encoder's features.")
    parser.add_argument("--data", type=Path, default=RECIPE / "data")
    main(parser.parse_args().data)
