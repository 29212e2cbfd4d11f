"""Candidates of a coefficient search: rows, their answers, and what these are worth."""

import json
import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np

from modalloy.composition.coefficients import Coefficients, Value
from modalloy.composition.features import FeatureStore
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.evaluation.answers import Answer, AnswerLog, question_digest
from modalloy.evaluation.intervals import Interval, difference_interval, share_interval
from modalloy.evaluation.prompts import Progress
from modalloy.evaluation.questions import Question
from modalloy.evaluation.scoring import answer_freely, score_options

METRICS = {
    "logprob": "mean log-probability of the right option among the options",
    "likelihood": "mean log-likelihood of the right option as a text, end of turn included",
    "accuracy": "share of questions whose likeliest option is the right one",
}
"""What a labelled search makes as large as it can."""

LONGEST = 16
"""New tokens of a greedy answer at most, where a question has no options."""

Row = tuple[Value, ...]
"""A coefficient for each group, in the order of the composition's groups."""


@attrs.frozen(kw_only=True)
class Trial:
    """A candidate, as far as it was tried.

    Attributes:
        values: Coefficient of each group.
        n: Questions that it was asked; fewer than there are where it fell behind.
        score: By the metric, with its 95 % interval; ``None`` without labels.
        accuracy: Share of right answers, with its 95 % interval; ``None`` without labels.
        gain: By how much its score is above that of the default row on the same questions, with
            the interval of the paired differences; ``None`` without labels.
        unstable: Share of answers that change towards its two neighbours on the line, both
            counted; ``None`` for other strategies, and for the ends of the line.
    """

    values: Mapping[str, Value]
    n: int
    score: Interval | None
    accuracy: Interval | None
    gain: Interval | None
    unstable: float | None = None


@attrs.define(eq=False, kw_only=True)
class Ground:
    """The questions of one set of modalities, and the answers of every candidate so far.

    Attributes:
        model: The composition.
        processor: Its processor.
        store: Features of the inputs: all that candidates share.
        log: Answers of this and of earlier runs.
        identity: Fingerprint of the composition, its coefficients aside.
        groups: Names of the groups, in the order of rows.
        present: The set of modalities.
        questions: In the order in which they are asked.
        metric: Name among :data:`METRICS`.
        start: The row that stays unless another is better.
        progress: Told after every candidate.
        unstable: Of rows, where it was worked out.
        reused: How many answers were taken from an earlier run.
    """

    model: ModalloyForConditionalGeneration
    processor: ModalloyProcessor
    store: FeatureStore
    log: AnswerLog
    identity: str
    groups: tuple[str, ...]
    present: frozenset[str]
    questions: list[Question]
    metric: str
    start: Row
    progress: Progress
    unstable: dict[Row, float] = attrs.Factory(dict)
    reused: int = 0
    _answers: dict[Row, list[Answer]] = attrs.Factory(dict)
    _digests: dict[int, str | None] = attrs.Factory(dict)

    @property
    def name(self) -> str:
        """The set as it is written in tables."""
        return "+".join(sorted(self.present)) or "text alone"

    @property
    def labelled(self) -> bool:
        """Whether the right option of every question is known."""
        return all(q.options and q.answer is not None for q in self.questions)

    def answers(self, row: Row, count: int) -> list[Answer]:
        """Return a candidate's answers to the first ``count`` questions, asking what is open."""
        known = self._answers.setdefault(row, [])
        if len(known) < count:
            known += self._find(row, range(len(known), count))
        return known[:count]

    def score(self, row: Row, count: int | None = None) -> float:
        """Return a candidate's mean by the metric over the first questions, all by default."""
        return float(np.mean(self._merits(row, count or len(self.questions))))

    def trials(self) -> tuple[Trial, ...]:
        """Return what became of every candidate, in the order in which they were tried."""
        return tuple(self._trial(row, len(answers)) for row, answers in self._answers.items())

    def gain(self, row: Row, count: int | None = None) -> Interval:
        """Return by how much a candidate's score is above that of the default row."""
        count = count or len(self.questions)
        pairs = zip(self._merits(row, count), self._merits(self.start, count), strict=True)
        objects = [question.objects for question in self.questions[:count]]
        return difference_interval([a - b for a, b in pairs], objects)

    def named(self, row: Row) -> dict[str, Value]:
        """Return a row by group."""
        return dict(zip(self.groups, row, strict=True))

    def _merits(self, row: Row, count: int, metric: str | None = None) -> list[float]:
        merit = _MERITS[metric or self.metric]
        answers = self.answers(row, count)
        return [merit(q, a) for q, a in zip(self.questions, answers, strict=False)]

    def _trial(self, row: Row, count: int) -> Trial:
        values, unstable = self.named(row), self.unstable.get(row)
        if not self.labelled:
            return Trial(
                values=values, n=count, score=None, accuracy=None, gain=None, unstable=unstable
            )
        asked = self.questions[:count]
        objects = [question.objects for question in asked]
        right = [merit > 0 for merit in self._merits(row, count, "accuracy")]
        kinds = [question.kind for question in asked]
        accuracy = share_interval(right, [1 / count] * count, objects, kinds)
        score = accuracy
        if self.metric != "accuracy":
            score = difference_interval(self._merits(row, count), objects)
        return Trial(
            values=values,
            n=count,
            score=score,
            accuracy=accuracy,
            gain=self.gain(row, count),
            unstable=unstable,
        )

    def _find(self, row: Row, places: Sequence[int]) -> list[Answer]:
        """Return answers to questions, those that an earlier run kept as they are."""
        keys = {place: self._key(row, place) for place in places}
        found: dict[int, Answer] = {}
        for place, key in keys.items():
            answer = None if key is None else self.log.get(key)
            if answer is not None:
                found[place] = answer
        self.reused += len(found)

        def keep(place: int, answer: Answer) -> None:
            found[place] = answer
            key = keys[place]
            if key is not None:
                self.log.add(key, answer)

        # All its prompts hold the same set, so one row serves them as a table would.
        self.model.coefficients = Coefficients(self.groups, row)
        self._ask([place for place in places if place not in found], keep)
        return [found[place] for place in places]

    def _ask(self, places: Sequence[int], keep: Callable[[int, Answer], None]) -> None:
        choices = [place for place in places if self.questions[place].options]
        free = [place for place in places if not self.questions[place].options]

        def chosen(index: int, scores: Sequence[float]) -> None:
            best = max(range(len(scores)), key=scores.__getitem__)
            text = self.questions[choices[index]].options[best]
            keep(choices[index], Answer(text, tuple(scores)))

        if choices:
            score_options(
                self.model,
                self.processor,
                [self.questions[place] for place in choices],
                features=self.store,
                found=chosen,
            )
        if free:
            answer_freely(
                self.model,
                self.processor,
                [self.questions[place] for place in free],
                max_new_tokens=LONGEST,
                features=self.store,
                found=lambda index, text: keep(free[index], Answer(text)),
            )

    def _key(self, row: Row, place: int) -> dict[str, str] | None:
        """Return what an answer is found again by; ``None`` where an input has no identity."""
        question = self.questions[place]
        if place not in self._digests:
            self._digests[place] = question_digest(question, self.store, self.model, self.processor)
        digest = self._digests[place]
        if digest is None:
            return None
        return {
            "model": self.identity,
            "benchmark": f"search {json.dumps(self.named(row))}",
            "scoring": "options" if question.options else f"greedy {LONGEST}",
            "kind": question.kind,
            "id": question.id,
            "question": digest,
        }


def _right(question: Question, scores: Sequence[float]) -> float:
    if question.answer is None:
        raise ValueError(f"question {question.id!r} has no answer")  # callers look at `labelled`
    return scores[question.answer]


def _logprob(question: Question, answer: Answer) -> float:
    return _right(question, log_shares(answer.scores))


def _accuracy(question: Question, answer: Answer) -> float:
    return float(answer.scores.index(max(answer.scores)) == question.answer)


_MERITS: Mapping[str, Callable[[Question, Answer], float]] = {
    "logprob": _logprob,
    "likelihood": lambda question, answer: _right(question, answer.scores),
    "accuracy": _accuracy,
}


def log_shares(scores: Sequence[float]) -> list[float]:
    """Return the log-probability of each option among the options, from log-likelihoods."""
    most = max(scores)
    total = most + math.log(sum(math.exp(score - most) for score in scores))
    return [score - total for score in scores]
