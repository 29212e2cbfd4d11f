"""Copies what the repository ships: CC0 pictures and spoken words, with questions about them.

Run ``python -m recipes.household.bundle --work DIR`` after build.py. It writes
``tests/data/household`` (a few dozen test questions of each kind) and ``core/modalloy/demo`` (four
files to try the commands on), from test objects alone.
"""

import argparse
import shutil
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import attrs
from recipes.household import questions, speech
from recipes.household.build import build_words, picture_medium, read_objects, write_lines
from recipes.household.catalogue import LICENCES, Thing
from recipes.household.draws import dice
from recipes.household.fetch import fetch
from recipes.household.questions import Medium

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
DEMO = ROOT / "core" / "modalloy" / "demo"
QUESTIONS = 40
DEMO_PICTURES = {"bed.png": "blendswap-cc-0/bed1", "lamp.png": "blendswap-cc-0/desklamp"}
DEMO_WORDS = {"chair.flac": "chair", "lamp.flac": "lamp"}
"""Demo files: inputs of different classes, and a pair of one class."""
_README = """\
# {title}

{what} Written by `python -m recipes.household.bundle`.

The pictures are icons of the furniture catalogue BlendSwap-CC-0 1.8 of Sweet Home 3D, which its
LICENSE.TXT puts under [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/). The words are
spoken by espeak-ng, whose output carries no licence of its own. All belong to the test split of the
household data: no parent that modalloy ships was trained on them.

| picture | creator of the model | id |
|---|---|---|
{pictures}

| word | voicing |
|---|---|
{words}
"""


def main() -> None:
    """Writes both folders anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="build.py's folder")
    parser.add_argument("--seed", type=int, default=0, help="build.py's seed")
    arguments = parser.parse_args()
    work, seed = arguments.work, arguments.seed
    things = read_objects(work / "objects.jsonl")
    labels = sorted({thing.label for thing in things})
    free = {t.id: t for t in things if t.split == "test" and LICENCES[t.source] == "CC0-1.0"}
    seen = [picture_medium(thing) for thing in free.values()]
    heard = build_words(work, fetch(work).espeak, labels, "test", seed)
    bundle_questions(work, seen, heard, free, labels, seed)
    bundle_demo(work, seen, heard, free, seed)


def bundle_questions(
    work: Path,
    seen: Sequence[Medium],
    heard: Sequence[Medium],
    free: dict[str, Thing],
    labels: Sequence[str],
    seed: int,
) -> None:
    """Writes ``tests/data/household``: questions and the media that they show."""
    folder = DATA / "household"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = list(islice(questions.deal(heard, dice(seed, "bundle-words")), QUESTIONS))
    pictures = islice(questions.deal(seen, dice(seed, "bundle-pictures")), QUESTIONS)
    sets = {
        "vision-mc": ([[m] for m in pictures], questions.VISION),
        "audio-mc": ([[m] for m in words], questions.AUDIO),
        "vision+audio": (
            questions.pairs(seen, heard, QUESTIONS, seed, "bundle-pairs"),
            questions.SHARED,
        ),
    }
    shown: dict[str, Medium] = {}
    for kind, (inputs, wording) in sets.items():
        own = [[_relocated(medium) for medium in media] for media in inputs]
        asked = questions.choice_test(kind, own, wording, labels, seed, f"bundle-{kind}")
        write_lines(folder / f"{kind}.jsonl", asked)
        for before, after in zip(chain(*inputs), chain(*own), strict=True):
            (folder / after.path).parent.mkdir(exist_ok=True)
            shutil.copyfile(work / before.path, folder / after.path)
            shown[after.path] = after
    what = "Test questions in the format of `modalloy evaluate`, with their media."
    _readme(folder, "Household test questions", what, shown, free)


def _relocated(medium: Medium) -> Medium:
    """The medium as the bundle stores it: one folder a type, one flat name."""
    voicing = medium.id.split("/")[0]
    name = Path(medium.path).name
    path = f"image/{name}" if medium.type == "image" else f"audio/{medium.label}-{voicing}.flac"
    return attrs.evolve(medium, path=path)


def bundle_demo(
    work: Path,
    seen: Sequence[Medium],
    heard: Sequence[Medium],
    free: dict[str, Thing],
    seed: int,
) -> None:
    """Writes ``core/modalloy/demo``: :data:`DEMO_PICTURES` and :data:`DEMO_WORDS`.

    Raises:
        ValueError: A demo picture is no CC0 picture of the test split.
    """
    folder = DEMO
    folder.mkdir(parents=True, exist_ok=True)  # demo.json lies there too
    by_id = {medium.id: medium for medium in (*seen, *heard)}
    voicing = speech.voicings("test", seed)[0].name
    chosen = DEMO_PICTURES | {name: f"{voicing}/{word}" for name, word in DEMO_WORDS.items()}
    for name, id_ in chosen.items():
        if id_ not in by_id:
            raise ValueError(
                f"core/modalloy/demo/{name}: {id_} is no CC0 object of the test split (there are: "
                f"{', '.join(sorted(free))}); choose another in bundle.DEMO_PICTURES."
            )
        shutil.copyfile(work / by_id[id_].path, folder / name)
    shown = {name: by_id[id_] for name, id_ in chosen.items()}
    what = "Inputs to try the commands on; lamp.png and lamp.flac are a pair."
    _readme(folder, "Demo inputs", what, shown, free)


def _readme(
    folder: Path, title: str, what: str, shown: dict[str, Medium], free: dict[str, Thing]
) -> None:
    """Writes where each file of ``folder`` comes from."""
    rows: dict[str, list[str]] = {"image": [], "audio": []}
    for path, medium in sorted(shown.items()):
        cells: list[Any] = [path]
        if medium.type == "image":
            cells += [free[medium.id].creator or "unnamed", medium.id]
        else:
            cells += [medium.id.split("/")[0].replace("_", ", ")]
        rows[medium.type].append("| " + " | ".join(cells) + " |")
    text = _README.format(
        title=title,
        what=what,
        pictures="\n".join(rows["image"]),
        words="\n".join(rows["audio"]),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
