"""What is true of each class: the table behind the attribute questions. Pure Python.

Attributes are predicates that finish "it ...". Where reasonable people could differ, or where some
of the data's objects differ (cups without a handle), an entry is ``None`` and never asked about.
"""

from collections.abc import Iterable, Mapping, Sequence

import attrs

WAYS = 4
"""Options of a question."""
MIXED = 2
"""How many wrong options must hold for some input, so that one input alone cannot decide."""
_LABELS = """
bed bike bottle cabinet car chair cup door lamp person plant radiator shelf sink sofa stove table
toilet tree window
"""
LABELS = tuple(_LABELS.split())
"""The 20 classes."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@attrs.frozen
class Attribute:
    """For which classes a predicate holds; it does not hold for the classes that are not named.

    Attributes:
        true: Classes that it holds for.
        arguable: Classes that it may or may not hold for.
    """

    true: frozenset[str] = attrs.field(converter=_names)
    arguable: frozenset[str] = attrs.field(default="", converter=_names)


TABLE: Mapping[str, Attribute] = {
    "is furniture": Attribute("bed cabinet chair shelf sofa table", "lamp sink stove toilet"),
    "is for sitting or lying on": Attribute("bed bike chair sofa toilet", "car"),
    "has wheels": Attribute("bike car", "bed cabinet chair shelf table"),
    "belongs in a kitchen": Attribute(
        "bottle cabinet cup sink stove table",
        "chair door lamp person plant radiator shelf window",
    ),
    "belongs in a bathroom": Attribute(
        "sink toilet", "bottle cabinet cup door lamp person plant radiator shelf window"
    ),
    "needs water": Attribute("person plant sink toilet tree", "bottle car cup radiator"),
    "is fixed to a building": Attribute(
        "door radiator sink toilet window", "cabinet lamp shelf stove"
    ),
    "opens and shuts": Attribute("bottle cabinet car door stove window", "person sofa toilet"),
    "can hold liquid": Attribute("bottle cup sink toilet", "car person plant radiator stove tree"),
    "is often found outdoors": Attribute(
        "bike car plant tree", "bottle chair door lamp person sofa table window"
    ),
    "stores things": Attribute("cabinet shelf", "bed bottle car cup person sofa stove"),
    "stands on legs": Attribute("bed chair person table", "cabinet lamp shelf sink sofa stove"),
    "fits in one hand": Attribute("bottle cup", "lamp plant"),
    "moves from place to place": Attribute("bike car person", "chair"),
    "grows": Attribute("person plant tree"),
    "gets hot": Attribute("radiator stove", "bike car cup lamp person"),
    "gives light": Attribute("car lamp", "bike stove window"),
    "is soft": Attribute("bed sofa", "car chair person plant"),
    "is used at meals": Attribute("chair cup table", "bottle cabinet lamp person sink sofa stove"),
    "has a flat top": Attribute(
        "cabinet shelf stove table",
        "bed car chair door lamp radiator sink sofa toilet window",
    ),
    "has a handle": Attribute(
        "cabinet car door stove window", "bike bottle cup lamp radiator sink toilet"
    ),
    "is switched on and off": Attribute("car lamp radiator stove"),
}
"""Predicates in the order that they are listed in."""


def holds(attribute: str, label: str) -> bool | None:
    """Whether ``attribute`` holds for the class ``label``; ``None`` where that is arguable.

    Raises:
        ValueError: The table does not know the class.
    """
    if label not in LABELS:
        raise ValueError(
            f"attributes.py: unknown class {label!r}; expected one of {', '.join(LABELS)}. Add it "
            "to LABELS and decide every attribute of TABLE for it."
        )
    entry = TABLE[attribute]
    return None if label in entry.arguable else label in entry.true


def shared_by(attribute: str, labels: Iterable[str]) -> list[str]:
    """The classes among ``labels`` that ``attribute`` holds for, sorted."""
    return sorted(label for label in labels if holds(attribute, label))


def is_mixed(attribute: str, labels: Iterable[str]) -> bool:
    """Whether ``attribute`` holds for some of ``labels``, not for others, and is never arguable."""
    return {holds(attribute, label) for label in labels} == {True, False}


def is_absent(attribute: str, labels: Iterable[str]) -> bool:
    """Whether ``attribute`` holds for none of ``labels``, beyond argument."""
    return {holds(attribute, label) for label in labels} == {False}


def wrong_options(
    right: str, labels: Sequence[str], order: Sequence[str], kept: Sequence[str] = ()
) -> list[str]:
    """Attributes that do not hold for all of ``labels``: wrong options beside ``right``.

    As many as possible hold for some of the inputs: at least :data:`MIXED` where the table allows.

    Args:
        right: An attribute that holds for all of ``labels``.
        labels: Classes of the inputs.
        order: Every attribute, the most wanted first.
        kept: Options of the same question about more inputs. Each stays, in its place, if it is
            still wrong and the mixed ones do not become too few.

    Returns:
        ``WAYS - 1`` attributes.

    Raises:
        ValueError: The table holds too few.
    """
    mixed = [one for one in order if one != right and is_mixed(one, labels)]
    absent = [one for one in order if one != right and is_absent(one, labels)]
    slots: list[str | None] = [one if one in mixed or one in absent else None for one in kept]
    slots += [None] * (WAYS - 1 - len(slots))
    for place in reversed(range(WAYS - 1)):
        spare = [one for one in mixed if one not in slots]
        certain = sum(one in mixed for one in slots) + slots.count(None)
        if slots[place] in absent and certain < MIXED and spare:
            slots[place] = spare[0]
    fresh = iter([one for one in (*mixed, *absent) if one not in slots])
    found = [one or next(fresh, None) for one in slots]
    result = [one for one in found if one is not None]
    if len(result) < len(found):
        raise ValueError(
            f"attributes.py: {right!r} asked of {', '.join(labels)} has only {len(result)} wrong "
            f"options; expected {WAYS - 1}. Decide more entries of TABLE, or leave it out."
        )
    return result
