"""Copies what the repository ships: free inputs of four modalities, with questions about them.

Run ``python -m recipes.household.bundle --work DIR`` after build.py. It writes
``tests/data/household`` (a few dozen questions of each kind) and ``core/modalloy/demo`` (four files
to try the commands on), from objects that may be redistributed freely and were not trained on.
"""

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
from recipes.household import mcub, questions
from recipes.household.catalogue import Thing
from recipes.household.dealing import Medium, Record, write_lines
from recipes.household.fetch import fetch
from recipes.household.media import build_words, degraded, read_objects, shown

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "household"
DEMO = ROOT / "core" / "modalloy" / "demo"
FREE = ("CC0-1.0", "public-domain")
"""Licences of what is shipped."""
QUESTIONS = {"test": 24, "val": 12}
"""Questions of each set by split."""
OBJECTS = 2
"""Objects, and voices, of each class and type in each split, to keep the files few."""
MOST = 6_000_000
"""Bytes that ``tests/data/household`` may take."""


@attrs.frozen
class Pick:
    """One demo file.

    Attributes:
        file: Its name in the folder.
        type: Content type.
        label: Class that it shows.
        place: Which of the free test inputs of that class, sorted by id.
    """

    file: str
    type: str
    label: str
    place: int = 0


PICKS = (
    Pick("chair.png", "image", "chair"),
    Pick("table.flac", "audio", "table"),
    Pick("bed.mp4", "video", "bed"),
    Pick("cabinet.ply", "point_cloud", "cabinet"),
)
ASKED: Sequence[tuple[Sequence[str], str, str]] = (
    (("chair.png",), "What is this a picture of?", "chair"),
    (("table.flac",), "Which word is spoken?", "table"),
    (("bed.mp4",), "What turns round in the clip?", "bed"),
    (("cabinet.ply",), "Name this shape.", "cabinet"),
    ((), "What is the capital of France?", "Paris"),
    (
        ("chair.png", "table.flac", "bed.mp4", "cabinet.ply"),
        "One property joins everything given. Candidates: is furniture; grows; has wheels.",
        "is furniture",
    ),
)
"""The demo's questions: files of :data:`PICKS`, what is asked, and what the answer should hold."""
_README = """\
# {title}

{what} Written by `python -m recipes.household.bundle`.

Pictures, clips and point clouds show models of the furniture catalogue BlendSwap-CC-0 1.8 of Sweet
Home 3D, which its LICENSE.TXT puts under
[CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/); some pictures are from openclipart,
whose authors gave them to the public domain. The words are spoken by espeak-ng, whose output
carries no licence of its own. All belong to the test and validation splits of the household data:
no parent that modalloy ships was trained on them.

| object | licence | creator | split |
|---|---|---|---|
{objects}

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
    espeak = fetch(work).espeak
    labels = sorted({thing.label for thing in things})
    free = [thing for thing in things if thing.licence in FREE]
    media = {split: shown(free, split) for split in QUESTIONS}
    for split in QUESTIONS:
        media[split]["audio"] = build_words(work, espeak, labels, split, seed)
    bundle_questions(work, media, free, labels, seed)
    bundle_demo(work, media["test"], free)


def bundle_questions(
    work: Path,
    media: Mapping[str, Mapping[str, Sequence[Medium]]],
    things: Sequence[Thing],
    labels: Sequence[str],
    seed: int,
) -> None:
    """Writes ``tests/data/household``: questions and the media that they show.

    Args:
        work: build.py's folder.
        media: Free media by split and content type.
        things: The objects that they show.
        labels: Class names that options come from.
        seed: Seed of everything drawn.

    Raises:
        ValueError: The folder became larger than :data:`MOST`.
    """
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    names: dict[str, str] = {}

    def damage(medium: Medium, _: str) -> Medium:
        """One copy for each input rather than for each question."""
        copy = degraded(work, medium, f"bundle/{Path(place(medium)).with_suffix('')}", seed)
        names[copy.path] = f"noisy/{place(copy)}"
        return copy

    used: set[str] = set()
    for split, count in QUESTIONS.items():
        few = {type_: first_objects(group, OBJECTS) for type_, group in media[split].items()}
        names |= {medium.path: place(medium) for group in few.values() for medium in group}
        sizes = {"clean": count if split == "test" else 0, "noisy": count, "single": 0}
        sets = questions.single_sets(split, few, labels, {"mc": count}, seed)
        sets |= mcub.all_sets(split, few, labels, sizes, seed, damage)
        for name, records in sorted(sets.items()):
            used.update(id_ for record in records for id_ in record["objects"])
            prefix = "" if split == "test" else f"{split}-"
            write_lines(DATA / f"{prefix}{name}.jsonl", copied(records, names, work))
    what = "Questions in the format of `modalloy evaluate`, with their media."
    write_readme(DATA, "Household questions", what, used, things)
    size = sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file())
    print(f"{DATA.relative_to(ROOT)}: {size / 1e6:.1f} MB")
    if size > MOST:
        raise ValueError(
            f"{DATA.relative_to(ROOT)}: expected at most {MOST / 1e6:.0f} MB, found "
            f"{size / 1e6:.1f} MB. Lower bundle.QUESTIONS or bundle.OBJECTS."
        )


def place(medium: Medium) -> str:
    """Where the bundle stores a medium: one folder a type, one flat name."""
    name = f"{medium.id.replace('/', '--')}{Path(medium.path).suffix}"
    return f"{medium.type}/{name}"


def first_objects(media: Iterable[Medium], count: int) -> list[Medium]:
    """The media of the first ``count`` objects of each class, by id."""
    ids: dict[str, set[str]] = defaultdict(set)
    ordered = sorted(media, key=lambda m: (m.id, m.path))
    for medium in ordered:
        if len(ids[medium.label]) < count:
            ids[medium.label].add(medium.id)
    return [medium for medium in ordered if medium.id in ids[medium.label]]


def copied(records: Sequence[Record], names: Mapping[str, str], work: Path) -> list[Record]:
    """The records with the bundle's paths, whose files are copied there."""
    result = []
    for record in records:
        (user,) = record["messages"]
        parts = []
        for part in user["content"]:
            if "path" not in part:
                parts.append(part)
                continue
            target = DATA / names[part["path"]]
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(work / part["path"], target)
            parts.append({**part, "path": names[part["path"]]})
        result.append({**record, "messages": [{**user, "content": parts}]})
    return result


def bundle_demo(work: Path, media: Mapping[str, Sequence[Medium]], things: Sequence[Thing]) -> None:
    """Writes ``core/modalloy/demo``: :data:`PICKS`, and :data:`ASKED` as ``demo.json``.

    Raises:
        ValueError: There is no such input.
    """
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir(parents=True)
    used = set()
    for pick in PICKS:
        found = sorted((m for m in media[pick.type] if m.label == pick.label), key=lambda m: m.id)
        if len(found) <= pick.place:
            classes = sorted({medium.label for medium in media[pick.type]})
            raise ValueError(
                f"core/modalloy/demo/{pick.file}: expected at least {pick.place + 1} free test "
                f"inputs of type {pick.type} and class {pick.label}, found {len(found)} (there are "
                f"some of: {', '.join(classes)}); choose another in bundle.PICKS."
            )
        shutil.copyfile(work / found[pick.place].path, DEMO / pick.file)
        used.add(found[pick.place].id)
    types = {pick.file: pick.type for pick in PICKS}
    asked = [
        {
            "inputs": [{"type": types[file], "file": file} for file in files],
            "question": question,
            "truth": truth,
        }
        for files, question, truth in ASKED
    ]
    lines = ",\n".join(f"    {json.dumps(one)}" for one in asked)
    (DEMO / "demo.json").write_text(f'{{\n  "questions": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    what = "Inputs to try the commands on; `modalloy demo` asks what `demo.json` lists."
    write_readme(DEMO, "Demo inputs", what, used, things)


def write_readme(
    folder: Path, title: str, what: str, used: Iterable[str], things: Sequence[Thing]
) -> None:
    """Writes where the files of ``folder`` come from.

    Args:
        folder: Where to.
        title: Heading.
        what: What the folder holds.
        used: Ids of what is shown.
        things: All free objects; what is none of them is a word.
    """
    by_id = {thing.id: thing for thing in things}
    objects = [
        f"| {id_} | {by_id[id_].licence} | {by_id[id_].creator or 'unnamed'} | {by_id[id_].split} |"
        for id_ in sorted(used)
        if id_ in by_id
    ]
    voicings = sorted({id_.partition("/")[0] for id_ in used if id_ not in by_id})
    words = f"Voices (variant, accent, speed, pitch): {'; '.join(voicings)}."
    text = _README.format(
        title=title,
        what=what,
        objects="\n".join(objects),
        words=words.replace("_", ", "),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
