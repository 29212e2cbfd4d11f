"""The inputs of the household data: pictures, spoken words, clips and clouds, and damaged ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import soundfile
from PIL import Image
from recipes.household import catalogue, models, pictures, render, shapes, speech
from recipes.household.catalogue import Pick, Thing
from recipes.household.dealing import Medium, write_lines
from recipes.household.draws import generator
from recipes.household.fetch import Sources

PICTURE_DAMAGE: dict[str, Any] = {"side": 48, "blur": 0.8, "noise": 6.0}
"""Degradation of pictures in the noisy sets; this and the next ones are set by calibrate.py."""
CLIP_DAMAGE: dict[str, Any] = {"side": 32, "blur": 0.8, "noise": 5.0}
"""Degradation of the frames of clips, each with noise of its own."""
CLOUD_DAMAGE: dict[str, Any] = {"count": 96, "kept": 0.6, "jitter": 0.04}
"""Degradation of point clouds."""
SPEECH_SNR = -3.0
"""Signal over noise of spoken words, in dB."""
_SUFFIXES = {"image": ".png", "audio": ".flac", "video": ".mp4", "point_cloud": ".ply"}


def build_objects(work: Path, sources: Sources, seed: int, jobs: int) -> list[Thing]:
    """Writes every object's picture and ``objects.jsonl``, or reads that where it is there."""
    listing = work / "objects.jsonl"
    if listing.exists():
        return read_objects(listing)
    picks, same = catalogue.read_picks()
    entries = catalogue.read_entries(picks, sources)
    raw = catalogue.read_pictures(picks, entries, sources)
    images = {id_: pictures.normalise(image) for id_, image in sorted(raw.items())}
    near = [pair[:2] for pair in pictures.near_duplicates(images)]
    found = models.outlines(models.find_models(picks, entries, sources), jobs)
    near += catalogue.same_models(found)
    for pair in sorted(set(near)):
        print("near-duplicates:", *pair)
    declared = [(ids[0], other) for ids in same for other in ids[1:]]
    groups = catalogue.group(list(images), [*declared, *near])
    splits = catalogue.split(picks, groups, seed)
    things = []
    for pick in sorted(picks, key=lambda p: (p.label, p.id)):
        creator = entries[pick.id].creator if pick.solid else ""
        thing = _thing(pick, creator, groups[pick.id], splits[pick.id])
        (work / thing.picture).parent.mkdir(parents=True, exist_ok=True)
        images[pick.id].save(work / thing.picture, optimize=True)
        things.append(thing)
    write_lines(listing, map(attrs.asdict, things))
    return things


def _thing(pick: Pick, creator: str, group: str, split: str) -> Thing:
    stem = f"{pick.label}/{pick.id.replace('/', '--')}"
    return Thing(
        id=pick.id,
        label=pick.label,
        source=pick.source,
        licence=catalogue.LICENCES[pick.source],
        creator=creator,
        group=group,
        split=split,
        picture=f"images/{stem}.png",
        points=f"points/{stem}.ply" if pick.solid else None,
        clip=f"clips/{stem}.mp4" if pick.solid else None,
    )


def read_objects(listing: Path) -> list[Thing]:
    """The objects that ``objects.jsonl`` lists."""
    lines = listing.read_text(encoding="utf-8").splitlines()
    return [Thing(**json.loads(line)) for line in lines]


def build_views(work: Path, things: Sequence[Thing], seed: int) -> None:
    """Writes the altered views of training objects' pictures."""
    for thing in things:
        for number in models.takes(thing, pictures.VIEWS)[1:]:
            path = work / models.take_path(thing.picture, number)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                rng = generator(seed, "view", thing.id, number)
                with Image.open(work / thing.picture) as image:
                    pictures.view(image, rng).save(path)


def build_words(
    work: Path, espeak: Path, labels: Sequence[str], split: str, seed: int
) -> list[Medium]:
    """Speaks every class name in every voicing of ``split``; training voicings in two takes."""
    media = []
    for voicing in speech.voicings(split, seed):
        for label in labels:
            id_ = f"{voicing.name}/{label}"
            takes = speech.TAKES if split == "train" else 1
            paths = [
                f"audio/{split}/{label}/{voicing.name}-{number}.flac" for number in range(takes)
            ]
            if not all((work / path).exists() for path in paths):
                (work / paths[0]).parent.mkdir(parents=True, exist_ok=True)
                wave = speech.say(espeak, label, voicing)
                for number, path in enumerate(paths):
                    rng = generator(seed, "take", id_, number)
                    heard = speech.take(wave, number, rng) if split == "train" else wave
                    speech.write(work / path, heard)
            media += [Medium(id_, label, "audio", path) for path in paths]
    return media


def shown(things: Sequence[Thing], split: str) -> dict[str, list[Medium]]:
    """All takes of the pictures, clips and clouds of one split, by content type."""
    media: dict[str, list[Medium]] = {"image": [], "video": [], "point_cloud": []}
    for thing in things:
        if thing.split != split:
            continue
        for type_, stored, most in (
            ("image", thing.picture, pictures.VIEWS),
            ("video", thing.clip, models.CLIPS),
            ("point_cloud", thing.points, models.CLOUDS),
        ):
            if stored is not None:
                paths = [models.take_path(stored, n) for n in models.takes(thing, most)]
                media[type_] += [Medium(thing.id, thing.label, type_, path) for path in paths]
    return media


def degraded(work: Path, medium: Medium, name: str, seed: int) -> Medium:
    """Writes a degraded copy of one input under ``noisy/`` and returns it.

    Raises:
        ValueError: A content type that there is no degradation for.
    """
    if medium.type not in _SUFFIXES:
        raise ValueError(
            f"Input {medium.path}: expected the content type to be one of "
            f"{', '.join(sorted(_SUFFIXES))}, found {medium.type!r}."
        )
    result = attrs.evolve(medium, path=f"noisy/{name}{_SUFFIXES[medium.type]}")
    path = work / result.path
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = generator(seed, "noisy", name, medium.id)
        _write_damaged(work / medium.path, path, medium.type, rng)
    return result


def _write_damaged(clean: Path, path: Path, type_: str, rng: np.random.Generator) -> None:
    match type_:
        case "image":
            with Image.open(clean) as image:
                pictures.degrade(image.convert("RGB"), rng, **PICTURE_DAMAGE).save(path)
        case "audio":
            wave, _ = soundfile.read(clean, dtype="float32")
            speech.write(path, speech.add_noise(np.asarray(wave), SPEECH_SNR, rng))
        case "video":
            frames = damage_frames(render.read_clip(clean), rng, **CLIP_DAMAGE)
            render.write_clip(path, frames)
        case "point_cloud":
            cloud = shapes.damage(shapes.read_cloud(clean), rng, **CLOUD_DAMAGE)
            shapes.write_cloud(path, cloud)


def damage_frames(
    frames: np.ndarray, rng: np.random.Generator, side: int, blur: float, noise: float
) -> np.ndarray:
    """Degrades each frame, uint8 (T, height, width, 3), as :func:`pictures.degrade` does one."""
    images = [Image.fromarray(frame) for frame in frames]
    return np.stack(
        [np.asarray(pictures.degrade(image, rng, side, blur, noise)) for image in images]
    )
