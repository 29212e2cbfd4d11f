"""Questions about one modality: as chats to train on and as questions to test with."""

from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from random import Random

import attrs
from recipes.household.attributes import TABLE, WAYS, shared_by, wrong_options
from recipes.household.dealing import Dealer, Medium, Record, deck, least
from recipes.household.draws import dice
from recipes.household.wordings import KINDS, WORDINGS, Kind

COUNTS = (1, 1, 1, 1, 1, 2, 2, 2, 3, 3)
"""How many inputs ten training questions of one kind have."""
POSITIONS = ("before",) * 6 + ("after",) * 2 + ("inside",) * 2
"""Where the inputs of ten training questions stand, seen from the question's text."""
_JOINTS = (" and ", ", then ", ". Next: ")


@attrs.frozen
class Asked:
    """One question with its answer.

    Attributes:
        media: What it shows.
        text: What it asks.
        options: Possible answers.
        answer: Place of the right one.
    """

    media: tuple[Medium, ...]
    text: str
    options: tuple[str, ...]
    answer: int


class Asker:
    """Asks about media of one modality in its wording, all classes and attributes weighing alike.

    Args:
        media: Files of one modality.
        labels: Class names that options come from.
        rng: Of everything drawn.
    """

    def __init__(self, media: Sequence[Medium], labels: Sequence[str], rng: Random) -> None:
        self._rng = rng
        self._wording = WORDINGS[media[0].type]
        self._labels = list(labels)
        self._dealer = Dealer(media, rng)
        self._place = deck(range(WAYS), rng)
        held = [one for one in TABLE if shared_by(one, self._dealer.labels)]
        self._attribute = deck(held, rng)
        self._shown: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()

    def ask(self, kind: Kind, count: int) -> Asked:
        """One question about ``count`` inputs."""
        if kind == "attribute":
            return self._ask_attribute(count)
        label = self._dealer.next_label()
        media = self._dealer.several([label] * count)
        if kind == "caption":
            words, place = self._labels, self._labels.index(label)
        else:
            place = next(self._place)
            words = choose(label, place, self._labels, self._rng)
        return self._worded(kind, media, words, place)

    def _ask_attribute(self, count: int) -> Asked:
        """Inputs of as many classes as share the attribute, so that no name gives it away."""
        right = next(self._attribute)
        having = least(shared_by(right, self._dealer.labels), self._shown, self._rng)
        self._shown.update(having[:count])
        turn = cycle(having[:count])
        labels = [next(turn) for _ in range(count)]
        words = wrong_options(right, labels, least(TABLE, self._wrong, self._rng))
        self._wrong.update(words)
        self._rng.shuffle(words)
        place = next(self._place)
        words.insert(place, right)
        return self._worded("attribute", self._dealer.several(labels), words, place)

    def _worded(
        self, kind: Kind, media: Sequence[Medium], words: Sequence[str], place: int
    ) -> Asked:
        form = self._wording.form(kind)
        text = self._rng.choice(form.many if len(media) > 1 else form.one)
        return Asked(
            media=tuple(media),
            text=text.format(options=self._wording.listing(kind, words)),
            options=tuple(form.answered(word) for word in words),
            answer=place,
        )


def choose(label: str, place: int, labels: Sequence[str], rng: Random) -> list[str]:
    """``WAYS`` class names with ``label`` at ``place`` and other classes, uniformly drawn."""
    options = rng.sample([other for other in labels if other != label], WAYS - 1)
    options.insert(place, label)
    return options


def message(media: Sequence[Medium], text: str) -> Record:
    """A user's message: the inputs, then the text."""
    parts: list[dict[str, str]] = [medium.part for medium in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def placed(media: Sequence[Medium], text: str, position: str, rng: Random) -> Record:
    """A user's message with its inputs before, after, or inside the text.

    Inside means between a lead and the question, and every other time, where there are several
    inputs, with words between them too.
    """
    if position == "before":
        return message(media, text)
    parts: list[dict[str, str]] = [medium.part for medium in media]
    if position == "after":
        return {"role": "user", "content": [{"type": "text", "text": f"{text} "}, *parts]}
    if len(media) > 1 and rng.random() < 1 / 2:
        joint = {"type": "text", "text": rng.choice(_JOINTS)}
        parts = [part for one in parts for part in (joint, one)][1:]
    lead = {"type": "text", "text": rng.choice(WORDINGS[media[0].type].leads)}
    question = {"type": "text", "text": f" {text}"}
    return {"role": "user", "content": [lead, *parts, question]}


def training(
    name: str,
    media: Sequence[Medium],
    labels: Sequence[str],
    count: int,
    seed: int,
    *,
    captions_only: bool = False,
) -> list[Record]:
    """Chat samples of one modality: captions, choices of a class and of an attribute by turns.

    Args:
        name: Start of the samples' ids, and part of the seed.
        media: Files of one modality.
        labels: Class names that options come from.
        count: How many samples.
        seed: Seed of everything drawn.
        captions_only: Captions of single inputs that stand before the text, for a connector.
    """
    rng = dice(seed, name)
    asker, position = Asker(media, labels, rng), deck(POSITIONS, rng)
    counts = {kind: deck(COUNTS, rng) for kind in KINDS}
    samples = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        if captions_only:
            asked = asker.ask("caption", 1)
            user = message(asked.media, asked.text)
        else:
            asked = asker.ask(kind, next(counts[kind]))
            user = placed(asked.media, asked.text, next(position), rng)
        said = {"role": "assistant", "content": asked.options[asked.answer]}
        samples.append({"id": f"{name}-{number:04}", "messages": [user, said]})
    rng.shuffle(samples)
    return samples


def single_test(
    set_name: str,
    kind: Kind,
    media: Sequence[Medium],
    labels: Sequence[str],
    count: int,
    seed: int,
    drawn: str,
) -> list[Record]:
    """Questions about one input each, asked and answered as the modality's parent was trained.

    Args:
        set_name: Name of the set.
        kind: What is asked.
        media: Files of one modality.
        labels: Class names that options come from.
        count: How many questions.
        seed: Seed of everything drawn.
        drawn: Further part of the seed.
    """
    asker = Asker(media, labels, dice(seed, drawn, set_name))
    return [
        record(set_name, number, asked, asked.options[asked.answer])
        for number, asked in enumerate(asker.ask(kind, 1) for _ in range(count))
    ]


def record(set_name: str, number: int, asked: Asked, reference: str | None) -> Record:
    """One line of a question file."""
    return {
        "id": f"{set_name}-{number:03}",
        "kind": set_name,
        "messages": [message(asked.media, asked.text)],
        "options": list(asked.options),
        "answer": asked.answer,
        "reference": reference,
        "objects": [medium.id for medium in asked.media],
    }
