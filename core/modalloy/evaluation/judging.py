"""Whether an answer is right, by each way of scoring."""

import re

from modalloy.errors import InputError
from modalloy.evaluation.questions import Question

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten".split()  # noqa: SIM905 - readable
    )
} | {"none": "0"}
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_CONTRACTIONS = (
    "ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how's i'd i'm i've isn't it'd it'll let's mightn't might've mustn't must've needn't "
    "shan't she'd she's shouldn't should've somebody's someone's that'd that's there'd there's "
    "they'd they'll they're they've wasn't we'd we've weren't what'll what's where's who'd who's "
    "who've won't wouldn't would've y'all you'd you'll you're you've "
)
_APOSTROPHES = {
    word.replace("'", ""): word
    for word in _CONTRACTIONS.split()
    # Without their apostrophe these are other words.
    if word not in {"he'd", "i'd", "it'd", "let's", "she'd", "we'd", "won't", "can't"}
}


def can_judge(scoring: str, question: Question) -> str | None:
    """Return why a question cannot be scored so, or ``None`` where it can."""
    if scoring == "options":
        return None if question.options else "they have no options"
    if scoring == "letter":
        return None if question.options or question.reference else "they have no right letter"
    return None if question.reference is not None else "they have no reference"


def gold(scoring: str, question: Question) -> str:
    """Return the right answer as a scoring sees it."""
    if scoring == "options" and question.answer is not None:
        return question.options[question.answer]
    if scoring == "letter" and question.options and question.answer is not None:
        return chr(ord("A") + question.answer)
    if question.reference is None:
        raise InputError(f"question {question.id!r} cannot be scored by {scoring!r}")
    return question.reference.strip()[:1] if scoring == "letter" else question.reference


def judge(scoring: str, question: Question, answer: str) -> bool:
    """Return whether an answer is right.

    Args:
        scoring: Name among :data:`~modalloy.benchmark.SCORINGS`.
        question: With what the scoring needs.
        answer: The chosen option, or the greedy answer.
    """
    expected = gold(scoring, question)
    if scoring == "letter":
        return answer.strip()[:1] == expected
    if scoring == "evalai":
        return normalise(answer) == normalise(expected)
    return answer == expected


def normalise(text: str) -> str:
    """Return an answer as EvalAI's VQA challenge compares it.

    Lower case; no line breaks, articles or punctuation (a point or a comma inside a number
    counts: the point stays, the comma goes); number words to ten as digits; apostrophes put back
    into contractions.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip().lower()
    text = _THOUSANDS.sub("", text)
    # As EvalAI does: punctuation beside a space vanishes, between letters it parts them.
    text = _PUNCTUATION.sub(lambda mark: _parted(text, mark), text)
    text = _PERIOD.sub("", text)
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_APOSTROPHES.get(word, word).lower() for word in words if word not in _ARTICLES)


def _parted(text: str, mark: re.Match[str]) -> str:
    """Return what stands for a punctuation mark: nothing at a word's edge, else a space."""
    char = mark.group()
    return "" if f"{char} " in text or f" {char}" in text else " "
