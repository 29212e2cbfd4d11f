"""What is asked about pictures and words, as chat samples and test questions. Pure Python.

Each modality has its own wording and its own form of answer, as parents that were trained apart
have; that is what merging has to reconcile. The questions about several inputs use words that no
training sample holds.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from random import Random
from typing import Any

import attrs
from recipes.household.draws import dice

WAYS = 4
Sample = dict[str, Any]
"""One line of a JSONL file."""


@attrs.frozen
class Medium:
    """One input file that shows or names something.

    Attributes:
        id: Object that questions are clustered by: a picture object, or ``voicing/word``.
        label: Class name.
        type: ``image`` or ``audio``.
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


@attrs.frozen
class Wording:
    """How one modality is asked and answers.

    Attributes:
        captions: Questions with a free answer.
        choices: Questions with ``{options}``.
        free: Free answer, with ``{label}``.
        chosen: Answer to a choice, with ``{label}``.
        option: One option as the question lists it, with ``{label}``.
        joint: What stands between options.
        last: What stands before the last one.
    """

    captions: tuple[str, ...]
    choices: tuple[str, ...]
    free: str
    chosen: str
    option: str = "{label}"
    joint: str = ", "
    last: str = ", "

    def listing(self, labels: Sequence[str]) -> str:
        """The options as the question lists them."""
        shown = [self.option.format(label=label) for label in labels]
        return self.joint.join(shown[:-1]) + self.last + shown[-1]


VISION = Wording(
    captions=(
        "What is this a picture of?",
        "What does the picture show?",
        "Name the object in the picture.",
        "What can you see here?",
        "Describe the picture briefly.",
    ),
    choices=(
        "Is this {options}?",
        "What do you see, {options}?",
        "The picture shows {options}. Which one?",
        "What is in the picture: {options}?",
    ),
    free="a {label}",
    chosen="It is a {label}.",
    option="a {label}",
    last=" or ",
)
AUDIO = Wording(
    captions=(
        "Which word is spoken?",
        "What does the voice say?",
        "Write down the spoken word.",
        "What word do you hear?",
        "Transcribe the recording.",
    ),
    choices=(
        "Which word is spoken? {options}",
        "Which of these does the voice say? {options}",
        "Pick the word you hear. {options}",
        "Listen and choose. {options}",
    ),
    free='"{label}"',
    chosen='I hear "{label}".',
    joint=" / ",
    last=" / ",
)
SHARED = Wording(
    captions=(),
    choices=(
        "Everything given points to one thing. Candidates: {options}.",
        "What is meant here? Possible answers: {options}.",
        "Find the common meaning among {options}.",
        "Decide what this is about. List: {options}.",
    ),
    free="{label}",
    chosen="{label}",
    joint="; ",
    last="; ",
)
"""For questions about one or more inputs whose words no training sample holds."""
WORDINGS: Mapping[str, Wording] = {"image": VISION, "audio": AUDIO}


def deal(media: Sequence[Medium], rng: Random) -> Iterator[Medium]:
    """Deals media without end: classes in turn, in each class its objects in turn, shuffled.

    So classes weigh the same whatever their size, and within a class so do objects.
    """
    by_label: dict[str, dict[str, list[Medium]]] = defaultdict(lambda: defaultdict(list))
    for medium in sorted(media, key=lambda m: (m.label, m.id, m.path)):
        by_label[medium.label][medium.id].append(medium)
    hands = {label: _hand(by_object, rng) for label, by_object in by_label.items()}
    while True:
        labels = list(hands)
        rng.shuffle(labels)
        for label in labels:
            yield next(hands[label])


def _hand(by_object: Mapping[str, Sequence[Medium]], rng: Random) -> Iterator[Medium]:
    """One class's media: every object once a round, any of its files."""
    while True:
        ids = list(by_object)
        rng.shuffle(ids)
        for id_ in ids:
            yield rng.choice(by_object[id_])


def choose(label: str, place: int, labels: Sequence[str], rng: Random) -> list[str]:
    """``WAYS`` class names with ``label`` at ``place`` and other classes, uniformly drawn."""
    options = rng.sample([other for other in labels if other != label], WAYS - 1)
    options.insert(place, label)
    return options


def places(rng: Random) -> Iterator[int]:
    """Places of the right answer, every place once in each round of ``WAYS``."""
    while True:
        order = list(range(WAYS))
        rng.shuffle(order)
        yield from order


def _message(media: Sequence[Medium], text: str) -> dict[str, Any]:
    parts: list[dict[str, str]] = [medium.part for medium in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def training(
    name: str, media: Sequence[Medium], count: int, seed: int, *, captions_only: bool = False
) -> list[Sample]:
    """Chat samples of one modality: captions and four-way choices by turns.

    Args:
        name: Start of the samples' ids, and part of the seed.
        media: Files of one modality.
        count: How many samples.
        seed: Seed of everything drawn.
        captions_only: Leave the choices out, for training a connector.
    """
    rng = dice(seed, name)
    wording, labels = WORDINGS[media[0].type], sorted({m.label for m in media})
    dealt, place = deal(media, rng), places(rng)
    samples = []
    for number in range(count):
        medium = next(dealt)
        if captions_only or number % 2 == 0:
            text = rng.choice(wording.captions)
            answer = wording.free.format(label=medium.label)
        else:
            options = choose(medium.label, next(place), labels, rng)
            text = rng.choice(wording.choices).format(options=wording.listing(options))
            answer = wording.chosen.format(label=medium.label)
        messages = [_message([medium], text), {"role": "assistant", "content": answer}]
        samples.append({"id": f"{name}-{number:04}", "messages": messages})
    rng.shuffle(samples)
    return samples


def choice_test(
    kind: str,
    inputs: Sequence[Sequence[Medium]],
    wording: Wording,
    labels: Sequence[str],
    seed: int,
    drawn: str | None = None,
) -> list[Sample]:
    """Four-way questions, one for each of ``inputs``.

    Args:
        kind: Name of the set.
        inputs: Per question the media it shows, all of one class.
        wording: How it asks.
        labels: Class names that distractors come from.
        seed: Seed of everything drawn.
        drawn: Name that the draws depend on instead of ``kind``: sets that share it ask the same
            words with the same options, so that their answers can be compared in pairs.
    """
    rng = dice(seed, drawn or kind)
    place, texts = places(rng), cycle(wording.choices)
    questions = []
    for number, media in enumerate(inputs):
        right = next(place)
        options = choose(media[0].label, right, labels, rng)
        text = next(texts).format(options=wording.listing(options))
        exact = None if wording is SHARED else wording.chosen.format(label=media[0].label)
        questions.append(
            {
                "id": f"{kind}-{number:03}",
                "kind": kind,
                "messages": [_message(media, text)],
                "options": [wording.chosen.format(label=label) for label in options],
                "answer": right,
                "reference": exact,
                "objects": [medium.id for medium in media],
            }
        )
    return questions


def caption_test(kind: str, inputs: Sequence[Medium], labels: Sequence[str]) -> list[Sample]:
    """Free-form questions, one for each of ``inputs``; the options are all classes."""
    wording = WORDINGS[inputs[0].type]
    texts = cycle(wording.captions)
    return [
        {
            "id": f"{kind}-{number:03}",
            "kind": kind,
            "messages": [_message([medium], next(texts))],
            "options": [wording.free.format(label=label) for label in labels],
            "answer": list(labels).index(medium.label),
            "reference": wording.free.format(label=medium.label),
            "objects": [medium.id],
        }
        for number, medium in enumerate(inputs)
    ]


def pairs(
    pictures: Sequence[Medium], words: Sequence[Medium], count: int, seed: int, name: str
) -> list[list[Medium]]:
    """Pairs of a picture and a spoken word of one class; every other pair has the word first."""
    rng = dice(seed, name)
    dealt = deal(pictures, rng)
    by_label: dict[str, list[Medium]] = defaultdict(list)
    for word in words:
        by_label[word.label].append(word)
    spoken = {label: deal(group, rng) for label, group in sorted(by_label.items())}
    result = []
    for number in range(count):
        picture = next(dealt)
        pair = [picture, next(spoken[picture.label])]
        result.append(pair[::-1] if number % 2 else pair)
    return result
