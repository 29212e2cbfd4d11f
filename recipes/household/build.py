"""Builds the household data: pictures, spoken words, training samples, test questions.

Run ``python -m recipes.household.build --work DIR [--seed 0]``; it takes up where it stopped.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import soundfile
from PIL import Image
from recipes.household import catalogue, pictures, questions, speech
from recipes.household.draws import dice, generator
from recipes.household.fetch import Sources, fetch
from recipes.household.questions import Medium

SIZES = {"train": 3000, "pretrain": 1500, "val": 200}
QUESTIONS = {"val": 200, "test": 400}
"""Questions of each set by split; caption sets, with all classes to choose from, have half."""
PICTURE_NOISE: dict[str, Any] = {"side": 32, "blur": 0.8, "noise": 10.0}
"""Degradation of pictures in the noisy sets, set by calibrate.py on validation objects."""
SPEECH_SNR = -1.0
"""Signal over noise of words in the noisy sets, in dB, set by calibrate.py likewise."""


def build_objects(work: Path, sources: Sources, seed: int) -> list[catalogue.Thing]:
    """Writes every object's picture and ``objects.jsonl``, or reads that where it is there."""
    listing = work / "objects.jsonl"
    if listing.exists():
        return read_objects(listing)
    picks, same = catalogue.read_picks()
    raw = catalogue.read_pictures(picks, sources)
    images = {id_: pictures.normalise(image) for id_, (image, _) in sorted(raw.items())}
    near = pictures.near_duplicates(images)
    for one, other, distance in near:
        print(f"near-duplicates, {distance:2} of 512 bits differ: {one} {other}")
    declared = [(ids[0], other) for ids in same for other in ids[1:]]
    groups = catalogue.group(list(images), [*declared, *((a, b) for a, b, _ in near)])
    splits = catalogue.split({pick.id: pick.label for pick in picks}, groups, seed)
    things = []
    for pick in sorted(picks, key=lambda p: (p.label, p.id)):
        path = work / "images" / pick.label / f"{pick.id.replace('/', '--')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images[pick.id].save(path, optimize=True)
        things.append(
            catalogue.Thing(
                id=pick.id,
                label=pick.label,
                source=pick.source,
                licence=catalogue.LICENCES[pick.source],
                creator=raw[pick.id][1],
                group=groups[pick.id],
                split=splits[pick.id],
                picture=path.relative_to(work).as_posix(),
            )
        )
    write_lines(listing, map(attrs.asdict, things))
    return things


def read_objects(listing: Path) -> list[catalogue.Thing]:
    """The objects that ``objects.jsonl`` lists."""
    lines = listing.read_text(encoding="utf-8").splitlines()
    return [catalogue.Thing(**json.loads(line)) for line in lines]


def build_views(work: Path, things: Sequence[catalogue.Thing], seed: int) -> list[Medium]:
    """Writes the altered views of training objects; returns them with the unaltered ones."""
    media = []
    for thing in things:
        media.append(picture_medium(thing))
        for number in range(1, pictures.VIEWS):
            path = thing.picture.replace("images/", "views/")[: -len(".png")] + f"-{number}.png"
            if not (work / path).exists():
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                rng = generator(seed, "view", thing.id, number)
                with Image.open(work / thing.picture) as image:
                    pictures.view(image, rng).save(work / path)
            media.append(attrs.evolve(picture_medium(thing), path=path))
    return media


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


def picture_medium(thing: catalogue.Thing) -> Medium:
    """The stored picture of ``thing``."""
    return Medium(thing.id, thing.label, "image", thing.picture)


def degraded(work: Path, medium: Medium, name: str, seed: int) -> Medium:
    """Writes a degraded copy of one input under ``noisy/`` and returns it."""
    suffix = ".png" if medium.type == "image" else ".flac"
    path = f"noisy/{name}{suffix}"
    result = attrs.evolve(medium, path=path)
    if (work / path).exists():
        return result
    (work / path).parent.mkdir(parents=True, exist_ok=True)
    rng = generator(seed, "noisy", name, medium.id)
    if medium.type == "image":
        with Image.open(work / medium.path) as image:
            pictures.degrade(image.convert("RGB"), rng, **PICTURE_NOISE).save(work / path)
    else:
        wave, _ = soundfile.read(work / medium.path, dtype="float32")
        speech.write(work / path, speech.add_noise(np.asarray(wave), SPEECH_SNR, rng))
    return result


def build_questions(
    work: Path,
    split: str,
    seen: Sequence[Medium],
    heard: Sequence[Medium],
    labels: Sequence[str],
    seed: int,
) -> None:
    """Writes the question sets of one split's pictures ``seen`` and words ``heard``."""
    count = QUESTIONS[split]
    for name, media in (("vision", seen), ("audio", heard)):
        dealt = list(islice(questions.deal(media, dice(seed, split, name)), count))
        wording = questions.WORDINGS[media[0].type]
        kind = f"{name}-mc"
        inputs = [[medium] for medium in dealt]
        asked = questions.choice_test(kind, inputs, wording, labels, seed, f"{split}-{kind}")
        write_lines(work / f"{split}-{kind}.jsonl", asked)
        kind = f"{name}-caption"
        asked = questions.caption_test(kind, dealt[: count // 2], labels)
        write_lines(work / f"{split}-{kind}.jsonl", asked)
    both = questions.pairs(seen, heard, count, seed, f"{split}-pairs")
    noisy = [
        [degraded(work, m, f"{split}/{number:03}-{m.type}", seed) for m in pair]
        for number, pair in enumerate(both)
    ]
    sets = {"vision+audio": both, "vision+audio-noisy": noisy}
    for name, type_ in (("vision", "image"), ("audio", "audio")):
        sets[f"{name}-noisy"] = [[m for m in pair if m.type == type_] for pair in noisy]
    for kind, inputs in sets.items():
        shared = questions.SHARED
        asked = questions.choice_test(kind, inputs, shared, labels, seed, f"{split}-shared")
        write_lines(work / f"{split}-{kind}.jsonl", asked)


def build_samples(
    work: Path, name: str, train: Sequence[Medium], val: Sequence[Medium], seed: int
) -> None:
    """Writes the chat files of one modality: the connector's, training and validation."""
    for use, media in (("pretrain", train), ("train", train), ("val", val)):
        samples = questions.training(
            f"{name}-{use}", media, SIZES[use], seed, captions_only=use == "pretrain"
        )
        write_lines(work / f"{name}-{use}.jsonl", samples)


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes a JSONL file, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    part.rename(path)


def report(things: Sequence[catalogue.Thing]) -> None:
    """Prints how many objects each class has, by split and by source."""
    columns = [*catalogue.SPLITS, *catalogue.LICENCES]
    print(f"{'class':10}" + "".join(f"{column:>17}" for column in columns))
    total: Counter[str] = Counter()
    for label in sorted({thing.label for thing in things}):
        counts: Counter[str] = Counter()
        for thing in things:
            if thing.label == label:
                counts.update([thing.split, thing.source])
        total += counts
        print(f"{label:10}" + "".join(f"{counts[column]:17}" for column in columns))
    print(f"{'all':10}" + "".join(f"{total[column]:17}" for column in columns))


def build(work: Path, seed: int) -> None:
    """Builds everything below ``work``; what is there already is kept."""
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begin:5.0f} s] {text}", flush=True)

    work.mkdir(parents=True, exist_ok=True)
    sources = fetch(work)
    missing = speech.missing_variants(sources.espeak)
    if missing:
        raise FileNotFoundError(
            f"espeak-ng lacks the voice variants {', '.join(missing)}; expected those of "
            "release 1.51. Install that release, or take them out of speech.VARIANTS."
        )
    things = build_objects(work, sources, seed)
    labels = sorted({thing.label for thing in things})
    report(things)
    split = {name: [t for t in things if t.split == name] for name in catalogue.SPLITS}
    say("pictures done; views of training objects")
    seen = {name: list(map(picture_medium, split[name])) for name in ("val", "test")}
    seen["train"] = build_views(work, split["train"], seed)
    heard = {}
    for name in catalogue.SPLITS:
        say(f"speaking {len(labels)} words in {len(speech.VARIANTS[name])} {name} voicings")
        heard[name] = build_words(work, sources.espeak, labels, name, seed)
    for modality, media in (("vision", seen), ("audio", heard)):
        build_samples(work, modality, media["train"], media["val"], seed)
    say("training samples written; questions and noisy inputs")
    for name in QUESTIONS:
        build_questions(work, name, seen[name], heard[name], labels, seed)
    say(f"done: {work}")


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for all results")
    parser.add_argument("--seed", type=int, default=0, help="seed of splits, draws and noise")
    arguments = parser.parse_args()
    build(arguments.work, arguments.seed)


if __name__ == "__main__":
    main()
