"""Questions about what inputs of two to four modalities share, after the pattern of MCUB.

Question ``i`` is drawn once, about four inputs; the sets of fewer modalities drop inputs from it.
So the question whether a further modality helps is answered in pairs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, cycle
from random import Random

import attrs
from recipes.household.attributes import MIXED, TABLE, WAYS, is_mixed, shared_by, wrong_options
from recipes.household.dealing import Dealer, Medium, Record, deck, least
from recipes.household.draws import dice
from recipes.household.samples import Asked, choose, record
from recipes.household.wordings import MODALITIES, SHARED, TYPES, Kind

Degrade = Callable[[Medium, str], Medium]
"""Writes a degraded copy of a medium under a name and returns it."""
SOFT = 2
"""How many of the six pairs of four inputs may have fewer good wrong options than wanted."""


@attrs.frozen
class Drawn:
    """One question before modalities are dropped from it.

    Attributes:
        media: One input of each modality, in the order that they are shown in.
        text: What is asked, with ``{options}``.
        words: The options by the modalities that are shown.
        place: Place of the right option.
    """

    media: tuple[Medium, ...]
    text: str
    words: Mapping[tuple[str, ...], Sequence[str]]
    place: int


def subsets(least_size: int = 2) -> list[tuple[str, ...]]:
    """Sets of modalities, each sorted, small ones first."""
    sizes = range(least_size, len(MODALITIES) + 1)
    return [subset for size in sizes for subset in combinations(sorted(MODALITIES), size)]


def draw_objects(
    media: Mapping[str, Sequence[Medium]], labels: Sequence[str], count: int, rng: Random
) -> list[Drawn]:
    """Questions whose inputs all show one class: which is it?

    Args:
        media: By content type, every one with the same classes.
        labels: Class names that options come from.
        count: How many.
        rng: Of everything drawn.
    """
    dealers = {type_: Dealer(media[type_], rng) for type_ in sorted(media)}
    place, label = deck(range(WAYS), rng), deck(next(iter(dealers.values())).labels, rng)
    questions = []
    for number in range(count):
        right, where = next(label), next(place)
        taken: list[Medium] = []
        # The kinds with the fewest objects choose first what the others then avoid.
        for type_ in ("point_cloud", "video", "image", "audio"):
            taken.append(dealers[type_].take(right, {medium.id for medium in taken}))
        rng.shuffle(taken)
        words = choose(right, where, labels, rng)
        text = SHARED.naming.many[number % len(SHARED.naming.many)]
        questions.append(Drawn(tuple(taken), text, dict.fromkeys(subsets(1), words), where))
    return questions


def draw_attributes(media: Mapping[str, Sequence[Medium]], count: int, rng: Random) -> list[Drawn]:
    """Questions whose inputs show as many classes as possible: which attribute do all have?

    Args:
        media: By content type, every one with the same classes.
        count: How many.
        rng: Of everything drawn.

    Raises:
        ValueError: No two classes share an attribute.
    """
    dealers = {type_: Dealer(media[type_], rng) for type_ in sorted(media)}
    labels = next(iter(dealers.values())).labels
    most = max(len(shared_by(one, labels)) for one in TABLE)
    size = min(len(MODALITIES), most)
    if size < 2:  # noqa: PLR2004 - else nothing is shared
        raise ValueError(
            f"attributes.py: no attribute holds for two of the classes {', '.join(labels)}. Give "
            "media of more classes."
        )
    pool = [one for one in TABLE if len(shared_by(one, labels)) >= size]
    choices = {one: class_sets(one, labels) for one in pool}
    place, attribute = deck(range(WAYS), rng), deck(pool, rng)
    shown: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    questions = []
    for number in range(count):
        right, where = next(attribute), next(place)
        weights = {one: sum(shown[label] for label in one) for one in choices[right]}
        chosen = least(choices[right], weights, rng)[0]
        turn = cycle(rng.sample(chosen, len(chosen)))
        classes = {name: next(turn) for name in sorted(MODALITIES)}
        words = _words(right, classes, least(TABLE, wrong, rng), where)
        shown.update(chosen)
        wrong.update(one for one in words[tuple(classes)] if one != right)
        taken = [dealers[MODALITIES[name]].take(label) for name, label in classes.items()]
        rng.shuffle(taken)
        text = SHARED.attribute.many[number % len(SHARED.attribute.many)]
        questions.append(Drawn(tuple(taken), text, words, where))
    return questions


def class_sets(right: str, labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Classes that share ``right``, one for each modality if there are, whose questions are hard.

    A question is hard if :data:`MIXED` wrong options hold for some of its inputs. All questions
    about three or four of the classes must be, and all but :data:`SOFT` about two; where no classes
    are such, those are taken that have the fewest others.
    """
    soft = {}
    having = shared_by(right, labels)
    size = min(len(having), len(MODALITIES))
    for chosen in combinations(having, size):
        easy = [
            one
            for count in range(2, size + 1)
            for one in combinations(chosen, count)
            if sum(other != right and is_mixed(other, one) for other in TABLE) < MIXED
        ]
        soft[chosen] = len(easy), all(len(one) == 2 for one in easy)  # noqa: PLR2004 - pairs
    hard = [one for one, (count, only_pairs) in soft.items() if count <= SOFT and only_pairs]
    return hard or [one for one, counted in soft.items() if counted == min(soft.values())]


def _words(
    right: str, classes: Mapping[str, str], order: Sequence[str], where: int
) -> dict[tuple[str, ...], list[str]]:
    """Options by subset; those of all modalities stay in their places as far as they can."""
    everything = wrong_options(right, list(classes.values()), order)
    words = {}
    for subset in subsets():
        wrong = wrong_options(right, [classes[name] for name in subset], order, everything)
        wrong.insert(where, right)
        words[subset] = wrong
    return words


def questions(
    set_name: str,
    kind: Kind,
    drawn: Iterable[Drawn],
    subset: tuple[str, ...],
    degrade: Degrade | None = None,
    noisy: str = "",
) -> list[Record]:
    """The questions about the inputs of ``subset``.

    Args:
        set_name: Name of the set.
        kind: ``naming`` or ``attribute``.
        drawn: What is asked.
        subset: Modalities, sorted.
        degrade: Degrades the inputs, or ``None`` to show them as they are.
        noisy: Start of the degraded copies' names; sets that share it share the copies.
    """
    records = []
    for number, one in enumerate(drawn):
        media = [medium for medium in one.media if TYPES[medium.type] in subset]
        if degrade is not None:
            media = [degrade(m, f"{noisy}/{number:03}-{TYPES[m.type]}") for m in media]
        words = one.words[subset]
        asked = Asked(
            media=tuple(media),
            text=one.text.format(options=SHARED.listing(kind, words)),
            options=tuple(SHARED.form(kind).answered(word) for word in words),
            answer=one.place,
        )
        records.append(record(set_name, number, asked, None))
    return records


def all_sets(
    split: str,
    media: Mapping[str, Sequence[Medium]],
    labels: Sequence[str],
    sizes: Mapping[str, int],
    seed: int,
    degrade: Degrade,
) -> dict[str, list[Record]]:
    """Every set of questions about several modalities, by name.

    Args:
        split: Name of the split, part of the seed and of the degraded copies' names.
        media: By content type.
        labels: Class names that options come from.
        sizes: How many ``clean``, ``noisy`` and ``single`` questions a set has; a single question
            shows one input of the four-modality object question, as a control.
        seed: Seed of everything drawn.
        degrade: Degrades an input.
    """
    common = set.intersection(*({m.label for m in group} for group in media.values()))
    kept = {type_: [m for m in group if m.label in common] for type_, group in media.items()}
    count = max(sizes.values())
    objects = draw_objects(kept, labels, count, dice(seed, split, "mcub-object"))
    attributes = draw_attributes(kept, count, dice(seed, split, "mcub-attribute"))
    kinds: list[tuple[str, Kind, list[Drawn]]] = [
        ("object", "naming", objects),
        ("attribute", "attribute", attributes),
    ]
    copies: dict[str, Medium] = {}

    def degraded(medium: Medium, name: str) -> Medium:
        """One copy for all sets that show it."""
        if name not in copies:
            copies[name] = degrade(medium, name)
        return copies[name]

    sets = {}
    for name, kind, drawn in kinds:
        for subset in subsets():
            start, noisy = f"mcub-{name}-{'+'.join(subset)}", f"{split}/{name}"
            sets[start] = questions(start, kind, drawn[: sizes["clean"]], subset)
            start += "-noisy"
            sets[start] = questions(start, kind, drawn[: sizes["noisy"]], subset, degraded, noisy)
    for one in sorted(MODALITIES):
        start, noisy = f"single-object-{one}-noisy", f"{split}/object"
        shown = objects[: sizes["single"]]
        sets[start] = questions(start, "naming", shown, (one,), degraded, noisy)
    return {name: records for name, records in sets.items() if records}
