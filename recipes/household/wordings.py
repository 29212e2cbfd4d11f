"""How each modality is asked and how it answers. Pure Python.

Every modality has its own words and its own form of answer, as parents that were trained apart
have; that is what merging has to reconcile. :data:`SHARED` asks about inputs of several modalities
in words that no training sample holds.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

Kind = Literal["caption", "naming", "attribute"]
KINDS: tuple[Kind, ...] = ("caption", "naming", "attribute")
MODALITIES: Mapping[str, str] = {
    "audio": "audio",
    "pointcloud": "point_cloud",
    "video": "video",
    "vision": "image",
}
"""Modality to its content type, sorted by name."""
TYPES: Mapping[str, str] = {type_: name for name, type_ in MODALITIES.items()}
"""Content type to its modality."""


@attrs.frozen
class Form:
    """One kind of question.

    Attributes:
        one: Questions about one input, with ``{options}`` where there is a choice.
        many: Questions about what several inputs share.
        answer: Answer, with ``{word}``, or ``{a}`` for the word with its article.
    """

    one: tuple[str, ...]
    many: tuple[str, ...]
    answer: str

    def answered(self, word: str) -> str:
        """The answer that means ``word``."""
        return self.answer.format(word=word, a=with_article(word))


@attrs.frozen
class Wording:
    """How one modality is asked and answers.

    Attributes:
        caption: Questions with a free answer: a class.
        naming: Questions with a choice of classes.
        attribute: Questions with a choice of attributes.
        leads: Sentences that may stand before the inputs when the question follows them.
        articles: Whether classes are listed with their article.
        joint: What stands between options.
        last: What stands before the last one.
    """

    caption: Form
    naming: Form
    attribute: Form
    leads: tuple[str, ...] = ()
    articles: bool = False
    joint: str = ", "
    last: str = ", "

    def form(self, kind: Kind) -> Form:
        """The form of one kind of question."""
        return {"caption": self.caption, "naming": self.naming, "attribute": self.attribute}[kind]

    def listing(self, kind: Kind, words: Sequence[str]) -> str:
        """The options as a question lists them."""
        articled = self.articles and kind == "naming"
        shown = [with_article(word) if articled else word for word in words]
        return self.joint.join(shown[:-1]) + self.last + shown[-1]


def with_article(word: str) -> str:
    """``word`` after "a" or "an", by its first letter."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


VISION = Wording(
    caption=Form(
        one=(
            "What is this a picture of?",
            "What does the picture show?",
            "Name the object in the picture.",
            "What can you see here?",
            "Describe the picture briefly.",
        ),
        many=(
            "What do these pictures show?",
            "What kind of object is in every picture?",
            "Name what all the pictures show.",
        ),
        answer="{a}",
    ),
    naming=Form(
        one=(
            "Is this {options}?",
            "What do you see, {options}?",
            "The picture shows {options}. Which one?",
            "What is in the picture: {options}?",
        ),
        many=(
            "Is each of these {options}?",
            "What do all the pictures show, {options}?",
            "Every picture shows {options}. Which one?",
        ),
        answer="It is {a}.",
    ),
    attribute=Form(
        one=(
            "What do you see of it? It {options}?",
            "The pictured object {options}. Which one?",
            "Which fits the picture: it {options}?",
        ),
        many=(
            "What fits all the pictures: it {options}?",
            "Each pictured object {options}. Which one?",
            "What do you see of every one? It {options}?",
        ),
        answer="It {word}.",
    ),
    leads=("Look at this. ", "I took a photo. ", "Have a look: "),
    articles=True,
    last=" or ",
)
AUDIO = Wording(
    caption=Form(
        one=(
            "Which word is spoken?",
            "What does the voice say?",
            "Write down the spoken word.",
            "What word do you hear?",
            "Transcribe the recording.",
        ),
        many=(
            "Which word do all the voices say?",
            "Write down the word in all recordings.",
            "What word do you hear each time?",
        ),
        answer='"{word}"',
    ),
    naming=Form(
        one=(
            "Which word is spoken? {options}",
            "Which of these does the voice say? {options}",
            "Pick the word you hear. {options}",
            "Listen and choose. {options}",
        ),
        many=(
            "Which word is spoken each time? {options}",
            "Pick the word all voices say. {options}",
            "Listen to all and choose. {options}",
        ),
        answer='I hear "{word}".',
    ),
    attribute=Form(
        one=(
            "You hear of something that ... {options}",
            "Pick what the spoken word means. {options}",
            "Listen: what is said of it? {options}",
        ),
        many=(
            "You hear of things; each ... {options}",
            "Pick what every spoken word means. {options}",
            "Listen to all: what is said of each? {options}",
        ),
        answer="I hear what {word}.",
    ),
    leads=("Listen. ", "Someone speaks: ", "Turn the sound on. "),
    joint=" / ",
    last=" / ",
)
VIDEO = Wording(
    caption=Form(
        one=(
            "What turns round in the clip?",
            "Watch the video. What appears?",
            "Say what was filmed.",
            "What is the clip about?",
        ),
        many=(
            "What turns round in all the clips?",
            "Watch the videos. What appears in each?",
            "Say what was filmed every time.",
        ),
        answer="a turning {word}",
    ),
    naming=Form(
        one=(
            "Was this filmed: {options}?",
            "What turns round in the clip? Maybe {options}.",
            "Watch and say: {options}?",
        ),
        many=(
            "Was this filmed every time: {options}?",
            "What turns round in all the clips? Maybe {options}.",
            "Watch them and say: {options}?",
        ),
        answer="The clip shows {a}.",
    ),
    attribute=Form(
        one=(
            "Watch the filmed thing. Maybe it {options}.",
            "What goes for the thing in the clip: it {options}?",
            "Say what was filmed: something that {options}?",
        ),
        many=(
            "Watch the filmed things. Maybe each {options}.",
            "What goes for the thing in every clip: it {options}?",
            "Say what was filmed every time: something that {options}?",
        ),
        answer="The clip shows that it {word}.",
    ),
    leads=("Watch this. ", "A short film: ", "Play the clip. "),
    articles=True,
    joint=", or ",
    last=", or ",
)
POINTCLOUD = Wording(
    caption=Form(
        one=(
            "Name this shape.",
            "What form do the points make?",
            "Classify the scan.",
            "What was scanned in 3D?",
        ),
        many=(
            "Name the shape of all the scans.",
            "What form does each set of points make?",
            "Classify the scans.",
        ),
        answer="{word} shape",
    ),
    naming=Form(
        one=(
            "Classify the scan [{options}]",
            "Shape of the points? [{options}]",
            "The scanned form is in [{options}]",
        ),
        many=(
            "Classify the scans [{options}]",
            "Shape of all the points? [{options}]",
            "The scanned forms are in [{options}]",
        ),
        answer="Shape: {word}",
    ),
    attribute=Form(
        one=(
            "Trait of the scan? [{options}]",
            "Assign a trait to the points [{options}]",
            "The scanned form has a trait in [{options}]",
        ),
        many=(
            "Trait of all the scans? [{options}]",
            "Assign a trait to all the points [{options}]",
            "The scanned forms have a trait in [{options}]",
        ),
        answer="Trait: {word}",
    ),
    leads=("Scan data: ", "Points follow. ", "A 3D scan. "),
)
SHARED = Wording(
    caption=Form(one=(), many=(), answer="{word}"),
    naming=Form(
        one=(),
        many=(
            "Everything given points to one concept. Candidates: {options}.",
            "What is meant here? Possible answers: {options}.",
            "Find the common meaning among {options}.",
            "Decide which this concerns. List: {options}.",
        ),
        answer="{word}",
    ),
    attribute=Form(
        one=(),
        many=(
            "One property joins everything given. Candidates: {options}.",
            "Which statement holds throughout? Possible answers: {options}.",
            "Find the common property among these: {options}.",
            "Decide which applies without exception. List: {options}.",
        ),
        answer="{word}",
    ),
    joint="; ",
    last="; ",
)
"""For questions about several modalities; its words are also used for a single input beside them,
so that the two compare."""
WORDINGS: Mapping[str, Wording] = {
    "audio": AUDIO,
    "point_cloud": POINTCLOUD,
    "video": VIDEO,
    "image": VISION,
}
"""Content type to its wording."""
