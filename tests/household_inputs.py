"""Made-up inputs of the household classes, for the tests of what is asked about them."""

import re
from pathlib import Path

import attrs
from recipes.household.attributes import LABELS
from recipes.household.dealing import Medium, Record

ROOT = Path(__file__).parents[1]
SUFFIXES = {"image": "png", "audio": "flac", "video": "mp4", "point_cloud": "ply"}


def group(split: str, type_: str, objects: int, takes: int = 1) -> list[Medium]:
    """Inputs of every class, bed with one object alone to see that classes weigh the same."""
    return [
        Medium(
            f"{split}{number}/{label}" if type_ == "audio" else f"{split}/{label}{number}",
            label,
            type_,
            f"{type_}/{split}/{label}{number}-{take}.{SUFFIXES[type_]}",
        )
        for label in LABELS
        for number in range(1 if label == "bed" else objects)
        for take in range(takes)
    ]


MEDIA = {
    split: {type_: group(split, type_, objects, takes) for type_ in SUFFIXES}
    for split, objects, takes in (("train", 5, 2), ("val", 2, 1), ("test", 4, 1))
}


def degrade(medium: Medium, name: str) -> Medium:
    return attrs.evolve(medium, path=f"noisy/{name}")


def parts_of(record: Record, type_: str | None = None) -> list[dict[str, str]]:
    content = record["messages"][0]["content"]
    return [p for p in content if (p["type"] != "text" if type_ is None else p["type"] == type_)]


def text_of(record: Record) -> str:
    return "".join(part["text"] for part in parts_of(record, "text"))


def answer_of(sample: Record) -> str:
    return sample["messages"][1]["content"]


def label_of(part: dict[str, str]) -> str:
    return re.sub(r"\d.*", "", part["path"].rpartition("/")[2])
