"""Input files and fair draws of them: classes in turn, objects in turn. Pure Python."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import attrs

T = TypeVar("T")
Record = dict[str, Any]
"""One line of a JSONL file."""


@attrs.frozen
class Medium:
    """One input file that shows or names something.

    Attributes:
        id: Object that questions are clustered by: a picture's, clip's and cloud's physical object,
            or ``voicing/word``.
        label: Class name.
        type: ``image``, ``audio``, ``video`` or ``point_cloud``.
        path: File below the folder of the JSONL file.
    """

    id: str
    label: str
    type: str
    path: str

    @property
    def part(self) -> dict[str, str]:
        """The content part of a chat message."""
        return {"type": self.type, "path": self.path}


class Dealer:
    """Deals media so that classes weigh the same whatever their size, and in a class its objects.

    Args:
        media: Files to deal; their order does not matter.
        rng: Breaks ties.
    """

    def __init__(self, media: Iterable[Medium], rng: Random) -> None:
        self._rng = rng
        self._files: dict[str, dict[str, list[Medium]]] = defaultdict(lambda: defaultdict(list))
        for medium in sorted(media, key=lambda m: (m.label, m.id, m.path)):
            self._files[medium.label][medium.id].append(medium)
        self._used: Counter[str] = Counter()
        self.labels = sorted(self._files)
        self._turn = deck(self.labels, rng)

    def next_label(self) -> str:
        """The next class: every one once in each round."""
        return next(self._turn)

    def take(self, label: str, avoid: Collection[str] = ()) -> Medium:
        """Any file of the object of ``label`` that was dealt least.

        Args:
            label: A class that there are media of.
            avoid: Ids of objects to pass over where the class has another.
        """
        files = self._files[label]
        ids = [id_ for id_ in files if id_ not in avoid] or list(files)
        id_ = least(ids, self._used, self._rng)[0]
        self._used[id_] += 1
        return self._rng.choice(files[id_])

    def several(self, labels: Sequence[str]) -> list[Medium]:
        """One medium for each of ``labels``, of different objects as far as there are."""
        taken: list[Medium] = []
        for label in labels:
            taken.append(self.take(label, {medium.id for medium in taken}))
        return taken


def deck(items: Sequence[T], rng: Random) -> Iterator[T]:
    """Items without end, all of them once in each round, every round shuffled anew."""
    while True:
        order = list(items)
        rng.shuffle(order)
        yield from order


def least(items: Iterable[T], used: Mapping[T, int], rng: Random) -> list[T]:
    """Items by how seldom they were used, ties shuffled."""
    order = list(items)
    rng.shuffle(order)
    return sorted(order, key=lambda item: used.get(item, 0))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Writes a JSONL file, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    part.rename(path)
