"""The picture objects: which there are, whose, under which licence, and in which split."""

import re
import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import attrs
from PIL import Image
from recipes.household.draws import dice
from recipes.household.fetch import Sources

PICTURES = Path(__file__).with_name("pictures.toml")
CATALOGUES = {
    "blendswap-cc-0": "BlendSwap-CC-0",
    "blendswap-cc-by": "BlendSwap-CC-BY",
    "katorlegaz": "KatorLegaz",
    "reallusion": "Reallusion",
    "scopia": "Scopia",
}
"""Source name to the file name of its Sweet Home 3D catalogue."""
LICENCES = {
    "blendswap-cc-0": "CC0-1.0",
    "blendswap-cc-by": "CC-BY-3.0",
    "katorlegaz": "CC-BY-3.0-US",
    "reallusion": "CC-BY-3.0-US",
    "scopia": "CC-BY-3.0",
    "openclipart": "public-domain",
    "tuxpaint": "GPL-2.0-or-later",
}
SPLITS = {"train": 0.65, "val": 0.10, "test": 0.25}


@attrs.frozen
class Pick:
    """One chosen picture, before it is read.

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


@attrs.frozen
class Thing:
    """One object that has a picture: what ``objects.jsonl`` holds a line of.

    Attributes:
        id: ``source/name``.
        label: Class name.
        source: Key of :data:`LICENCES`.
        licence: SPDX name, or ``public-domain``.
        creator: Author as the catalogue names him, or empty.
        group: Id of the first of its near-duplicates; a group never straddles splits.
        split: ``train``, ``val`` or ``test``.
        picture: Path of its PNG below the work folder.
    """

    id: str
    label: str
    source: str
    licence: str
    creator: str
    group: str
    split: str
    picture: str


def read_picks(path: Path = PICTURES) -> tuple[list[Pick], list[list[str]]]:
    """The chosen pictures in file order, and the ids that are declared to be one object.

    Raises:
        ValueError: An unknown source, a picture chosen twice, or a declared id that is not chosen.
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
            f"{path.name}: expected every picture once and [same-object] to name chosen pictures; "
            f"found {twice or 'none'} twice and {unknown or 'none'} unknown. Correct the file."
        )
    return picks, same


def classes(picks: Iterable[Pick]) -> list[str]:
    """Class names, sorted."""
    return sorted({pick.label for pick in picks})


def read_pictures(picks: Sequence[Pick], sources: Sources) -> dict[str, tuple[Image.Image, str]]:
    """Reads every chosen picture.

    Returns:
        Per pick id the picture as its source stores it, any size and mode, and its creator.

    Raises:
        FileNotFoundError: A package does not hold a chosen picture.
    """
    found: dict[str, tuple[Image.Image, str]] = {}
    by_source: dict[str, list[Pick]] = defaultdict(list)
    for pick in picks:
        by_source[pick.source].append(pick)
    for source, chosen in sorted(by_source.items()):
        if source in CATALOGUES:
            found |= _from_catalogue(chosen, sources.furniture / f"{CATALOGUES[source]}.sh3f")
        else:
            root = sources.clipart if source == "openclipart" else sources.stamps
            for pick in chosen:
                found[pick.id] = _open(pick, root / f"{pick.path}.png"), ""
    return found


def _open(pick: Pick, path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(
            f"Picture {pick.id}: expected {path}, found no such file. Another release of the "
            "package may lack it: remove the name from pictures.toml, or take Debian 12's package."
        )
    with Image.open(path) as image:
        image.load()
        return image


def _from_catalogue(picks: Sequence[Pick], path: Path) -> dict[str, tuple[Image.Image, str]]:
    """Icons of one ``.sh3f`` archive."""
    with zipfile.ZipFile(path) as archive:
        # Java property files are Latin-1 by definition.
        text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
        entries = parse_catalogue(text)
        found: dict[str, tuple[Image.Image, str]] = {}
        for pick in picks:
            if pick.path not in entries:
                raise FileNotFoundError(
                    f"Picture {pick.id}: {path.name} lists no icon {pick.path}.png. Another "
                    "release may lack it: remove the name from pictures.toml, or take release 1.8."
                )
            icon, creator = entries[pick.path]
            with Image.open(BytesIO(archive.read(icon))) as image:
                image.load()
                found[pick.id] = image, creator
    return found


def parse_catalogue(text: str) -> dict[str, tuple[str, str]]:
    """Icon stem to (archive member, creator) of a ``PluginFurnitureCatalog.properties``."""
    entries: dict[str, dict[str, str]] = defaultdict(dict)
    for key, number, value in re.findall(r"^(icon|creator)#(\d+)=(.*)$", text, flags=re.MULTILINE):
        entries[number][key] = value.strip()
    return {
        Path(entry["icon"]).stem: (entry["icon"].lstrip("/"), entry.get("creator", ""))
        for entry in entries.values()
        if "icon" in entry
    }


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


def split(labels: Mapping[str, str], groups: Mapping[str, str], seed: int) -> dict[str, str]:
    """Splits objects, class by class and group by group, in the shares of :data:`SPLITS`.

    Every class has a test and a validation object: quotas are rounded, and at least one.

    Args:
        labels: Object id to class.
        groups: Object id to its group.
        seed: Seed of the shuffle.

    Returns:
        Object id to ``train``, ``val`` or ``test``.
    """
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for id_ in sorted(labels):
        members[labels[id_]][groups[id_]].append(id_)
    result: dict[str, str] = {}
    for label, by_group in sorted(members.items()):
        total = sum(map(len, by_group.values()))
        order = sorted(by_group)
        dice(seed, "split", label).shuffle(order)
        # A test object that stands for itself is worth more than near-copies: small groups first.
        order.sort(key=lambda name: len(by_group[name]))
        room = {name: max(1, round(total * SPLITS[name])) for name in ("test", "val")}
        for name in order:
            place = next((s for s in room if room[s] >= len(by_group[name])), "train")
            if place != "train":
                room[place] -= len(by_group[name])
            result |= dict.fromkeys(by_group[name], place)
    return result
