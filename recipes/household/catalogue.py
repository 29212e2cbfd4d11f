"""The objects: which there are, whose, under which licence, and in which split."""

import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import combinations
from pathlib import Path

import attrs
from PIL import Image
from recipes.household.draws import dice
from recipes.household.fetch import Sources
from recipes.household.furniture import CATALOGUES, LISTING, Entry, parse_catalogue
from recipes.household.meshes import Mesh

OBJECTS = Path(__file__).with_name("objects.toml")
LICENCES = {
    "blendswap-cc-0": "CC0-1.0",
    "blendswap-cc-by": "CC-BY-3.0",
    "katorlegaz": "CC-BY-3.0-US",
    "reallusion": "CC-BY-3.0-US",
    "scopia": "CC-BY-3.0",
    "openclipart": "public-domain",
    "tuxpaint": "GPL-2.0-or-later",
}
SPLITS = {"train": 0.60, "val": 0.12, "test": 0.28}
_LEAST = {"val": 1, "test": 2}
"""Objects with a model that each class has at least in a split."""
_PLAIN = 100
"""Faces below which equal counts say nothing: many boxes are alike."""
_ALIKE = 0.02


@attrs.frozen
class Pick:
    """One chosen object, before it is read.

    Attributes:
        id: ``source/name``, unique.
        label: Class name.
        source: Key of :data:`LICENCES`.
        path: Name in the source: an icon's stem, or a path below the picture folder.
    """

    id: str
    label: str
    source: str
    path: str

    @property
    def solid(self) -> bool:
        """Whether it has a model besides its picture."""
        return self.source in CATALOGUES


@attrs.frozen
class Thing:
    """One object: what ``objects.jsonl`` holds a line of.

    Attributes:
        id: ``source/name``.
        label: Class name.
        source: Key of :data:`LICENCES`.
        licence: SPDX name, or ``public-domain``.
        creator: Author as the catalogue names him, or empty.
        group: Id of the first of its near-duplicates; a group never straddles splits.
        split: ``train``, ``val`` or ``test``.
        picture: Path of its PNG below the work folder.
        points: Path of its point cloud (PLY), or None for an object without a model.
        clip: Path of its turntable clip (MP4), or None likewise.
    """

    id: str
    label: str
    source: str
    licence: str
    creator: str
    group: str
    split: str
    picture: str
    points: str | None
    clip: str | None


@attrs.frozen
class Outline:
    """What tells models apart: numbers of vertices and faces, and extents over the largest one."""

    vertices: int
    faces: int
    extents: tuple[float, float, float]


def read_picks(path: Path = OBJECTS) -> tuple[list[Pick], list[list[str]]]:
    """The chosen objects in file order, and the ids that are declared to be one object.

    Raises:
        ValueError: An unknown source, an object chosen twice, or a declared id that is not chosen.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    same = [ids.split() for ids in tables.pop("same-object").values()]
    picks = []
    for label, sources in tables.items():
        for source, names in sources.items():
            if source not in LICENCES:
                raise ValueError(
                    f"{path.name}: class {label!r} names the source {source!r}; expected one of "
                    f"{', '.join(LICENCES)}."
                )
            picks += [
                Pick(
                    id=f"{source}/{name.rsplit('/', 1)[-1]}", label=label, source=source, path=name
                )
                for name in names.split()
            ]
    counts = Counter(pick.id for pick in picks)
    twice = sorted(id_ for id_, count in counts.items() if count > 1)
    unknown = sorted({id_ for ids in same for id_ in ids} - set(counts))
    if twice or unknown:
        raise ValueError(
            f"{path.name}: expected every object once and [same-object] to name chosen objects; "
            f"found {twice or 'none'} twice and {unknown or 'none'} unknown. Correct the file."
        )
    return picks, same


def read_entries(picks: Sequence[Pick], sources: Sources) -> dict[str, Entry]:
    """Catalogue entries of the picks that have a model, by pick id.

    Raises:
        FileNotFoundError: A catalogue does not list a chosen object.
    """
    listings = {}
    for source in sorted({pick.source for pick in picks if pick.solid}):
        with zipfile.ZipFile(sources.catalogue(source)) as archive:
            # Java property files are Latin-1 by definition.
            listings[source] = parse_catalogue(archive.read(LISTING).decode("latin-1"))
    for pick in picks:
        if pick.solid and pick.path not in listings[pick.source]:
            raise FileNotFoundError(
                f"Object {pick.id}: {sources.catalogue(pick.source).name} lists no icon "
                f"{pick.path}.png. Another release may lack it: remove the name from "
                f"{OBJECTS.name}, or take release 1.8."
            )
    return {pick.id: listings[pick.source][pick.path] for pick in picks if pick.solid}


def read_pictures(
    picks: Sequence[Pick], entries: Mapping[str, Entry], sources: Sources
) -> dict[str, Image.Image]:
    """Every chosen picture as its source stores it, any size and mode, by pick id.

    Raises:
        FileNotFoundError: A package does not hold a chosen picture.
    """
    found: dict[str, Image.Image] = {}
    for source in sorted({pick.source for pick in picks}):
        chosen = [pick for pick in picks if pick.source == source]
        if source in CATALOGUES:
            with zipfile.ZipFile(sources.catalogue(source)) as archive:
                for pick in chosen:
                    with Image.open(BytesIO(archive.read(entries[pick.id].icon))) as image:
                        image.load()
                        found[pick.id] = image
        else:
            root = sources.clipart if source == "openclipart" else sources.stamps
            found |= {pick.id: _open(pick, root / f"{pick.path}.png") for pick in chosen}
    return found


def _open(pick: Pick, path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(
            f"Picture {pick.id}: expected {path}, found no such file. Another release of the "
            f"package may lack it: remove the name from {OBJECTS.name}, or take Debian 12's "
            "package."
        )
    with Image.open(path) as image:
        image.load()
        return image


def outline(mesh: Mesh) -> Outline:
    """What :func:`same_models` compares of a mesh."""
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    extents = used.max(0) - used.min(0)
    width, depth, height = (float(v) for v in extents / extents.max())
    return Outline(len(mesh.vertices), len(mesh.faces), (width, depth, height))


def same_models(outlines: Mapping[str, Outline]) -> list[tuple[str, str]]:
    """Pairs of ids whose models are one: recoloured, stretched or posed anew.

    Models of as many faces are one where they have the same proportions, or as many vertices too.
    """
    return [
        (one, other)
        for one, other in combinations(sorted(outlines), 2)
        if outlines[one].faces == outlines[other].faces
        and (_alike(outlines[one], outlines[other]) or _counted(outlines[one], outlines[other]))
    ]


def _alike(one: Outline, other: Outline) -> bool:
    return all(abs(a - b) <= _ALIKE for a, b in zip(one.extents, other.extents, strict=True))


def _counted(one: Outline, other: Outline) -> bool:
    return one.vertices == other.vertices and one.faces >= _PLAIN


def group(ids: Sequence[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Joins near-duplicates: id to the first id, in sorted order, of its group."""
    parent = {id_: id_ for id_ in ids}

    def root(id_: str) -> str:
        while parent[id_] != id_:
            id_ = parent[id_]
        return id_

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {id_: root(id_) for id_ in ids}


def split(picks: Sequence[Pick], groups: Mapping[str, str], seed: int) -> dict[str, str]:
    """Splits objects, class by class and group by group, in the shares of :data:`SPLITS`.

    Objects with a model and objects with only a picture are shared out apart, so that every split
    has both kinds where a class has enough of them.

    Args:
        picks: The objects.
        groups: Object id to its group.
        seed: Seed of the shuffle.

    Returns:
        Object id to ``train``, ``val`` or ``test``.

    Raises:
        ValueError: A class is left without the models of :data:`_LEAST`, or without one to learn.
    """
    placed: dict[str, str] = {}
    solid = {groups[pick.id] for pick in picks if pick.solid}
    members: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for pick in picks:
        name = groups[pick.id]
        members[pick.label, name in solid][name] += 1
    for (label, has_model), sizes in sorted(members.items(), reverse=True):
        order = sorted(sizes)
        dice(seed, "split", label, has_model).shuffle(order)
        # A test object that stands for itself is worth more than near-copies: small groups first.
        order.sort(key=lambda name: sizes[name])
        least = _LEAST if has_model else dict.fromkeys(_LEAST, int(len(order) > len(_LEAST)))
        room = {name: max(n, round(sizes.total() * SPLITS[name])) for name, n in least.items()}
        for name in order:
            # A group of two classes stays where the first of them put it.
            if name not in placed:
                placed[name] = next((s for s in room if room[s] >= sizes[name]), "train")
            if placed[name] in room:
                room[placed[name]] -= sizes[name]
    splits = {pick.id: placed[groups[pick.id]] for pick in picks}
    _check_split(picks, splits)
    return splits


def _check_split(picks: Sequence[Pick], splits: Mapping[str, str]) -> None:
    counts = Counter((pick.label, splits[pick.id]) for pick in picks if pick.solid)
    for label in classes(picks):
        for name, least in {**_LEAST, "train": 1}.items():
            if counts[label, name] < least:
                raise ValueError(
                    f"Class {label!r}: expected {least} objects with a model in the {name} split, "
                    f"found {counts[label, name]}. Add objects to {OBJECTS.name}, or part a group "
                    "that is too large."
                )


def classes(picks: Iterable[Pick]) -> list[str]:
    """Class names, sorted."""
    return sorted({pick.label for pick in picks})
