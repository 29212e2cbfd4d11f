"""Finds how strongly the noisy sets must degrade pictures and words, on validation objects alone.

Run ``python -m recipes.household.calibrate --work DIR`` after build.py. For each strength a linear
probe on the encoders that the parents use, fitted on clean training inputs, answers four-way
questions about degraded validation inputs. build.py's ``PICTURE_NOISE`` and ``SPEECH_SNR`` are
the strengths where it is right about two times in three: one input then leaves room for another.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from recipes.household import catalogue, pictures, speech
from recipes.household.build import build_words, picture_medium, read_objects
from recipes.household.draws import generator
from recipes.household.fetch import fetch
from recipes.household.questions import WAYS, Medium
from torch import Tensor, nn

from modalloy_audio import speech_embedding
from modalloy_audio.reading import Waveform
from modalloy_vision import timm_encoder

VISION = {"model": "tf_efficientnet_lite0", "features": 1280}
AUDIO = {"seconds": 2.0, "tokens": 4}
DRAWS = 4
"""Degraded copies of each validation input."""


def features(
    module: nn.Module, key: str, media: Sequence[Medium], load: Callable[[Medium], Tensor]
) -> Tensor:
    """Encodes media in batches: float32 ``(N, K * F)``, each row of unit length."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(media), 32):
            batch = torch.stack([load(medium) for medium in media[start : start + 32]])
            rows.append(module(**{key: batch}).flatten(1))
    return nn.functional.normalize(torch.cat(rows), dim=1)


def fit(rows: Tensor, labels: Tensor, count: int) -> nn.Linear:
    """Logistic regression of ``labels`` (N,) int64 on ``rows`` (N, D)."""
    torch.manual_seed(0)
    probe = nn.Linear(rows.shape[1], count)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.05, weight_decay=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(16 * probe(rows), labels).backward()
        optimizer.step()
    return probe


@torch.inference_mode()
def score(probe: nn.Linear, rows: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy over all classes, and the expected one among the right and three random classes."""
    logits = probe(rows)
    right = logits.gather(1, labels[:, None])
    beaten = (logits < right).sum(1).double()
    others = logits.shape[1] - 1
    # The chance that all distractors, drawn without replacement, are among those beaten.
    chance = torch.ones_like(beaten)
    for drawn in range(WAYS - 1):
        chance *= (beaten - drawn).clamp_min(0) / (others - drawn)
    return float((beaten == others).double().mean()), float(chance.mean())


def indices(media: Sequence[Medium], labels: Sequence[str]) -> Tensor:
    """Class numbers of media, int64 (N,)."""
    return torch.tensor([labels.index(medium.label) for medium in media])


def calibrate_pictures(work: Path, train: Sequence[Medium], val: Sequence[Medium]) -> None:
    """Prints the probe's accuracy for a grid of picture degradations."""
    labels = sorted({medium.label for medium in train})
    module = timm_encoder.build(VISION)

    def clean(medium: Medium) -> Tensor:
        with Image.open(work / medium.path) as image:
            return timm_encoder.preprocess(image.convert("RGB"), VISION)["pixel_values"]

    probe = fit(features(module, "pixel_values", train, clean), indices(train, labels), len(labels))
    print("pictures           20-way  4-way")
    target = indices(val, labels)
    report("clean", *score(probe, features(module, "pixel_values", val, clean), target))
    for side, noise in product((24, 32, 48), (6.0, 10.0, 14.0)):

        def noisy(medium: Medium, side: int = side, noise: float = noise) -> Tensor:
            rng = generator("calibrate", side, noise, medium.path)
            with Image.open(work / medium.path.rsplit("#", 1)[0]) as image:
                bad = pictures.degrade(image.convert("RGB"), rng, side, BLUR, noise)
            return timm_encoder.preprocess(bad, VISION)["pixel_values"]

        rows = features(module, "pixel_values", many(val), noisy)
        report(f"side {side} noise {noise:.0f}", *score(probe, rows, target.repeat(DRAWS)))


BLUR = 0.8


def calibrate_words(work: Path, train: Sequence[Medium], val: Sequence[Medium]) -> None:
    """Prints the probe's accuracy for several signal-to-noise ratios."""
    labels = sorted({medium.label for medium in train})
    module = speech_embedding.build(AUDIO)

    def encode(wave: np.ndarray) -> Tensor:
        return speech_embedding.preprocess(Waveform(wave, speech.RATE), AUDIO)["waveform"]

    def clean(medium: Medium) -> Tensor:
        return encode(soundfile.read(work / medium.path, dtype="float32")[0])

    probe = fit(features(module, "waveform", train, clean), indices(train, labels), len(labels))
    print("words              20-way  4-way")
    target = indices(val, labels)
    report("clean", *score(probe, features(module, "waveform", val, clean), target))
    for snr in (6.0, 2.0, 0.0, -1.0, -2.0):

        def noisy(medium: Medium, snr: float = snr) -> Tensor:
            wave, _ = soundfile.read(work / medium.path.rsplit("#", 1)[0], dtype="float32")
            rng = generator("calibrate", snr, medium.path)
            return encode(speech.add_noise(wave, snr, rng))

        rows = features(module, "waveform", many(val), noisy)
        report(f"{snr:.0f} dB", *score(probe, rows, target.repeat(DRAWS)))


def many(media: Sequence[Medium]) -> list[Medium]:
    """``DRAWS`` copies of each medium whose paths end in ``#0``, ``#1``, ..., for the noise."""
    return [
        Medium(medium.id, medium.label, medium.type, f"{medium.path}#{draw}")
        for draw in range(DRAWS)
        for medium in media
    ]


def report(name: str, all_ways: float, four_ways: float) -> None:
    """Prints one line."""
    print(f"{name:18} {all_ways:6.3f} {four_ways:6.3f}", flush=True)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="build.py's folder")
    parser.add_argument("--seed", type=int, default=0, help="build.py's seed")
    arguments = parser.parse_args()
    work, seed = arguments.work, arguments.seed
    things = read_objects(work / "objects.jsonl")
    seen = {
        split: [picture_medium(thing) for thing in things if thing.split == split]
        for split in catalogue.SPLITS
    }
    calibrate_pictures(work, seen["train"], seen["val"])
    espeak = fetch(work).espeak
    labels = sorted({thing.label for thing in things})
    heard = {s: build_words(work, espeak, labels, s, seed) for s in ("train", "val")}
    calibrate_words(work, heard["train"], heard["val"])


if __name__ == "__main__":
    main()
