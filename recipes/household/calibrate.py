"""Finds how strongly the noisy sets must degrade each kind of input, on validation objects alone.

Run ``python -m recipes.household.calibrate --work DIR`` after build.py. For each strength a linear
probe on the encoder that the parents use, fitted on clean training inputs, answers four-way
questions about degraded validation inputs. media.py's constants are the strengths where it is
right about two times in three: one input then leaves room for another.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import soundfile
import torch
from PIL import Image
from recipes.household import catalogue, media, pictures, render, shapes, speech
from recipes.household.dealing import Medium
from recipes.household.draws import generator
from recipes.household.fetch import fetch
from recipes.household.questions import WAYS
from torch import Tensor, nn

VISION = {"model": "tf_efficientnet_lite0", "features": 1280}
AUDIO = {"seconds": 2.0, "tokens": 4}
VIDEO = {"model": "tf_efficientnet_lite0", "frames": 8, "tokens": 4, "features": 1280}
POINTS = {"model": "household", "points": 1024, "colours": True, "tokens": 4, "features": 256}
Raw = Any
"""A decoded input: a picture, a wave, frames or a cloud."""


@attrs.frozen
class Sense:
    """How one content type is read, damaged and encoded.

    Attributes:
        module: The parents' encoder.
        read: Reads a file.
        encode: Preprocesses what was read to the encoder's one input.
        key: Name of that input.
        strengths: By name, what damages what was read.
    """

    module: nn.Module
    read: Callable[[Path], Raw]
    encode: Callable[[Raw], Tensor]
    key: str
    strengths: Mapping[str, Callable[[Raw, np.random.Generator], Raw]]


def image_sense() -> Sense:
    """Pictures and the vision parents' encoder."""
    from modalloy_vision import timm_encoder

    def read(path: Path) -> Raw:
        with Image.open(path) as image:
            return image.convert("RGB")

    def at(**damage: Any) -> Callable[[Raw, np.random.Generator], Raw]:
        return lambda image, rng: pictures.degrade(image, rng, **damage)

    return Sense(
        module=timm_encoder.build(VISION),
        read=read,
        encode=lambda image: timm_encoder.preprocess(image, VISION)["pixel_values"],
        key="pixel_values",
        strengths={
            f"side {side}, noise {noise}": at(side=side, blur=0.8, noise=noise)
            for side, noise in product((32, 48), (3, 6, 10, 14))
        },
    )


def audio_sense() -> Sense:
    """Spoken words and the audio parents' encoder."""
    from modalloy_audio import speech_embedding
    from modalloy_audio.reading import Waveform

    def at(snr: float) -> Callable[[Raw, np.random.Generator], Raw]:
        return lambda wave, rng: speech.add_noise(wave, snr, rng)

    return Sense(
        module=speech_embedding.build(AUDIO),
        read=lambda path: soundfile.read(path, dtype="float32")[0],
        encode=lambda wave: speech_embedding.preprocess(Waveform(wave, speech.RATE), AUDIO)[
            "waveform"
        ],
        key="waveform",
        strengths={f"{snr} dB": at(snr) for snr in (2, 0, -1, -2, -3, -4)},
    )


def video_sense() -> Sense:
    """Clips and the video parents' encoder."""
    from modalloy_video import frames_encoder
    from modalloy_video.reading import read as to_clip

    limits = {"bytes": 10**7, "seconds": 60, "pixels": 10**6, "frames": 100}

    def at(**damage: Any) -> Callable[[Raw, np.random.Generator], Raw]:
        return lambda frames, rng: media.damage_frames(frames, rng, **damage)

    return Sense(
        module=frames_encoder.build(VIDEO),
        read=render.read_clip,
        encode=lambda frames: frames_encoder.preprocess(to_clip(frames, limits), VIDEO)[
            "pixel_values"
        ],
        key="pixel_values",
        strengths={
            f"side {side}, noise {noise}": at(side=side, blur=0.8, noise=noise)
            for side, noise in product((32, 48), (5, 10, 16))
        },
    )


def cloud_sense() -> Sense:
    """Point clouds and the point cloud parents' encoder."""
    from modalloy_pointcloud import pointnet
    from modalloy_pointcloud.cloud import PointCloud

    def encode(cloud: shapes.Cloud) -> Tensor:
        colours = cloud.colours.astype(np.float32) / np.float32(255)
        return pointnet.preprocess(PointCloud(cloud.points, colours), POINTS)["points"]

    def at(**damage: Any) -> Callable[[Raw, np.random.Generator], Raw]:
        return lambda cloud, rng: shapes.damage(cloud, rng, **damage)

    return Sense(
        module=pointnet.build(POINTS),
        read=shapes.read_cloud,
        encode=encode,
        key="points",
        strengths={
            f"{count} points, jitter {jitter}": at(count=count, kept=0.6, jitter=jitter)
            for count, jitter in product((48, 96, 192), (0.02, 0.04, 0.06))
        },
    )


SENSES: Mapping[str, Callable[[], Sense]] = {
    "image": image_sense,
    "audio": audio_sense,
    "video": video_sense,
    "point_cloud": cloud_sense,
}


@torch.no_grad()
def features(sense: Sense, inputs: Sequence[Tensor]) -> Tensor:
    """Encodes inputs in batches: float32 ``(N, K * F)``, each row of unit length."""
    rows = [
        sense.module(**{sense.key: torch.stack(list(inputs[start : start + 16]))}).flatten(1)
        for start in range(0, len(inputs), 16)
    ]
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
    """Accuracy over all classes, and the expected one among the right and three random classes.

    Classes weigh the same, as they do in the questions.
    """
    logits = probe(rows)
    right = logits.gather(1, labels[:, None])
    beaten = (logits < right).sum(1).double()
    others = logits.shape[1] - 1
    # The chance that all distractors, drawn without replacement, are among those beaten.
    chance = torch.ones_like(beaten)
    for drawn in range(WAYS - 1):
        chance *= (beaten - drawn).clamp_min(0) / (others - drawn)
    weight = 1 / labels.bincount(minlength=logits.shape[1]).double()[labels]
    weight /= weight.sum()
    return float((weight * (beaten == others)).sum()), float((weight * chance).sum())


def calibrate(
    work: Path,
    sense: Sense,
    train: Sequence[Medium],
    val: Sequence[Medium],
    labels: Sequence[str],
    draws: int,
) -> None:
    """Prints the probe's accuracies on clean and on damaged validation inputs.

    Args:
        work: Folder that the media's paths start from.
        sense: How the type is read, damaged and encoded.
        train: Clean inputs that the probe is fitted on.
        val: Inputs that it is asked about.
        labels: All class names.
        draws: Damaged copies of each of ``val``.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    known = [sense.encode(sense.read(work / medium.path)) for medium in train]
    target = torch.tensor([numbers[medium.label] for medium in train])
    probe = fit(features(sense, known), target, len(labels))
    raw = [sense.read(work / medium.path) for medium in val]
    asked = torch.tensor([numbers[medium.label] for medium in val])
    report("clean", *score(probe, features(sense, [sense.encode(one) for one in raw]), asked))
    for name, damage in sense.strengths.items():
        bad = [
            sense.encode(damage(one, generator("calibrate", name, medium.path, draw)))
            for draw in range(draws)
            for one, medium in zip(raw, val, strict=True)
        ]
        report(name, *score(probe, features(sense, bad), asked.repeat(draws)))


def report(name: str, all_ways: float, four_ways: float) -> None:
    """Prints one line."""
    print(f"  {name:24} {all_ways:6.3f} {four_ways:6.3f}", flush=True)


def main() -> None:
    """Prints the tables of the chosen content types."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="build.py's folder")
    parser.add_argument("--seed", type=int, default=0, help="build.py's seed")
    parser.add_argument("--draws", type=int, default=4, help="damaged copies of each input")
    parser.add_argument("--types", nargs="+", choices=sorted(SENSES), default=list(SENSES))
    arguments = parser.parse_args()
    work = arguments.work
    things = media.read_objects(work / "objects.jsonl")
    labels = sorted({thing.label for thing in things})
    given = {split: media.shown(things, split) for split in catalogue.SPLITS}
    for split in ("train", "val"):
        espeak = fetch(work).espeak
        given[split]["audio"] = media.build_words(work, espeak, labels, split, arguments.seed)
    for type_ in arguments.types:
        print(f"{type_:26} {len(labels)}-way  {WAYS}-way")
        # Varied takes teach the parents; the probe does with the stored ones, to be quick.
        plain = [m for m in given["train"][type_] if not m.path.startswith("views/")]
        calibrate(work, SENSES[type_](), plain, given["val"][type_], labels, arguments.draws)


if __name__ == "__main__":
    main()
