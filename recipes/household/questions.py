"""Writes every file of samples and questions of the household data. Pure Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.household import mcub
from recipes.household.attributes import WAYS
from recipes.household.dealing import Medium, Record, write_lines
from recipes.household.samples import single_test, training
from recipes.household.wordings import MODALITIES, Kind

__all__ = ["WAYS", "Medium", "write_all"]
SAMPLES = {"pretrain": 1500, "train": 3600, "val": 200}
"""Chats of each modality by use."""
SINGLE: Mapping[str, Mapping[str, int]] = {
    "val": {"mc": 200, "caption": 100, "attribute": 100},
    "test": {"mc": 400, "caption": 200, "attribute": 200},
}
"""Questions of each modality by split and kind."""
JOINT: Mapping[str, Mapping[str, int]] = {
    "val": {"clean": 0, "noisy": 150, "single": 0},
    "test": {"clean": 200, "noisy": 500, "single": 500},
}
"""Questions of each subset of modalities by split."""
_KINDS: Mapping[str, Kind] = {"mc": "naming", "caption": "caption", "attribute": "attribute"}


def write_all(
    work: Path,
    media: Mapping[str, Mapping[str, Sequence[Medium]]],
    labels: Sequence[str],
    seed: int,
    degrade: mcub.Degrade,
) -> None:
    """Writes the training samples and the questions of both splits as JSONL files in ``work``.

    Args:
        work: Folder that the media's paths start from.
        media: By split (``train``, ``val``, ``test``) and content type.
        labels: All class names.
        seed: Seed of everything drawn.
        degrade: Writes a degraded copy of a medium under a name and returns it.

    Raises:
        ValueError: A split has no input of some type and class.
    """
    check(media, labels)
    labels = sorted(labels)
    for modality, type_ in sorted(MODALITIES.items()):
        for use, count in SAMPLES.items():
            shown = media["val" if use == "val" else "train"][type_]
            name = f"{modality}-{use}"
            only = use == "pretrain"
            samples = training(name, shown, labels, count, seed, captions_only=only)
            write_lines(work / f"{name}.jsonl", samples)
    for split in SINGLE:
        sets = single_sets(split, media[split], labels, SINGLE[split], seed)
        sets |= mcub.all_sets(split, media[split], labels, JOINT[split], seed, degrade)
        for name, records in sets.items():
            write_lines(work / f"{split}-{name}.jsonl", records)


def single_sets(
    split: str,
    media: Mapping[str, Sequence[Medium]],
    labels: Sequence[str],
    sizes: Mapping[str, int],
    seed: int,
) -> dict[str, list[Record]]:
    """The sets of questions about one input of one modality, by name.

    Args:
        split: Name of the split, part of the seed.
        media: By content type.
        labels: Class names that options come from.
        sizes: How many questions of each kind: ``mc``, ``caption``, ``attribute``.
        seed: Seed of everything drawn.
    """
    sets = {}
    for modality, type_ in sorted(MODALITIES.items()):
        for kind, count in sizes.items():
            name = f"{modality}-{kind}"
            sets[name] = single_test(name, _KINDS[kind], media[type_], labels, count, seed, split)
    return sets


def check(media: Mapping[str, Mapping[str, Sequence[Medium]]], labels: Sequence[str]) -> None:
    """Sees to it that every class can be asked about in every split and modality.

    Raises:
        ValueError: A split has no input of some type and class, or one of another class.
    """
    for split in ("train", "val", "test"):
        for type_ in sorted(MODALITIES.values()):
            found = {medium.label for medium in media[split][type_]}
            missing, other = sorted(set(labels) - found), sorted(found - set(labels))
            if missing or other:
                raise ValueError(
                    f"household data: {split} {type_} inputs: expected every class and no other; "
                    f"found none of {', '.join(missing) or 'none missing'}, and of no known class "
                    f"{', '.join(other) or 'none'}. Pick objects of each class for each split."
                )
