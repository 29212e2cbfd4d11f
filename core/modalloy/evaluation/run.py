"""Evaluating: questions in, judged answers out."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from modalloy.benchmark import check_scoring
from modalloy.composition.features import FeatureStore
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import InputError
from modalloy.evaluation.answers import (
    ANSWERS_FILE,
    Answer,
    AnswerLog,
    model_fingerprint,
    question_digest,
)
from modalloy.evaluation.judging import can_judge, gold, judge
from modalloy.evaluation.prompts import Progress
from modalloy.evaluation.questions import Question
from modalloy.evaluation.results import Record, Results
from modalloy.evaluation.scoring import BATCH, answer_freely, score_options

FEATURES_FOLDER = "features"
LONGEST = 128
"""New tokens of a greedy answer at most, as in the evaluation of ModelCompose."""


def evaluate(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Iterable[Question],
    *,
    scoring: str | Sequence[str] = "options",
    batch_size: int = BATCH,
    work: Path | None = None,
    features: FeatureStore | None = None,
    benchmark: str = "",
    progress: Progress = lambda *_: None,
) -> Results:
    """Ask a composition questions and judge its answers.

    Kinds with inputs that the composition has no modality for are left out and listed with the
    reason, and so are scorings that a kind's questions cannot have.

    Args:
        model: The composition.
        processor: Its processor.
        questions: What to ask.
        scoring: Names among :data:`~modalloy.benchmark.SCORINGS`.
        batch_size: Questions at a time.
        work: Directory that keeps features and answers; what stands there is not done again.
        features: Encoded inputs to share between calls, in place of those in ``work``.
        benchmark: Name that answers are kept under.
        progress: Told what is being done, how far it is, and how far it goes.

    Raises:
        SpecError: A scoring is unknown.
        InputError: Two questions of a kind have one id, or an input cannot be read.
        FormatError: What ``work`` holds is damaged, or cannot be written.
    """
    names = check_scoring(scoring, "evaluate")
    asked = list(questions)
    _check_ids(asked)
    store = features or FeatureStore(work / FEATURES_FOLDER if work else None)
    run = _Run(model, processor, store, AnswerLog(work / ANSWERS_FILE if work else None))
    run = attrs.evolve(run, benchmark=benchmark, batch_size=batch_size, progress=progress)
    skipped = missing_kinds(processor, asked)
    asked = [question for question in asked if question.kind not in skipped]
    records: list[Record] = []
    reused = 0
    try:
        for name in names:
            reasons = {q.kind: why for q in asked if (why := can_judge(name, q)) is not None}
            skipped |= {f"{kind} ({name})": why for kind, why in sorted(reasons.items())}
            own = [question for question in asked if question.kind not in reasons]
            answers, known = run.answers(name, own)
            reused += known
            records += [_record(name, q, a) for q, a in zip(own, answers, strict=True)]
    finally:
        store.flush()
    return Results(records=tuple(records), skipped=skipped, reused=reused)


def missing_kinds(processor: ModalloyProcessor, questions: Sequence[Question]) -> dict[str, str]:
    """Return, by kind, why a composition cannot be asked its questions."""
    known = {entry["content_type"] for entry in processor.modalities.values()}
    needed: dict[str, set[str]] = {}
    for question in questions:
        needed.setdefault(question.kind, set()).update(question.content_types)
    installed = {spec.content_type: name for name, spec in processor.registry.modalities.items()}
    reasons = {}
    for kind in sorted(needed):
        lacking = sorted(needed[kind] - known)
        parts = [
            f"compose with --modality {installed[one]}"
            if one in installed
            else f"install the plugin that reads {one!r} inputs (see `modalloy plugins`)"
            for one in lacking
        ]
        if lacking:
            reasons[kind] = (
                f"this composition takes no {', '.join(lacking)} inputs; {'; '.join(parts)}"
            )
    return reasons


@attrs.frozen
class _Run:
    """What answering needs."""

    model: ModalloyForConditionalGeneration
    processor: ModalloyProcessor
    store: FeatureStore
    log: AnswerLog
    benchmark: str = ""
    batch_size: int = BATCH
    progress: Progress = lambda *_: None

    def answers(self, scoring: str, questions: Sequence[Question]) -> tuple[list[Answer], int]:
        """Return the answers to all questions, and how many were known before."""
        keys = self._keys(scoring, questions)
        answers = [None if key is None else self.log.get(key) for key in keys]
        open_ = [place for place, answer in enumerate(answers) if answer is None]
        left = [questions[place] for place in open_]

        def keep(index: int, answer: Answer) -> None:
            place = open_[index]
            answers[place] = answer
            key = keys[place]
            if key is not None:
                self.log.add(key, answer)

        if left:
            self._ask(scoring, left, keep, self._longest(scoring, questions))
        return [answer for answer in answers if answer is not None], len(questions) - len(left)

    def _keys(self, scoring: str, questions: Sequence[Question]) -> list[dict[str, str] | None]:
        if self.log.file is None:
            return [None] * len(questions)
        model = model_fingerprint(self.model, self.processor)
        keys: list[dict[str, str] | None] = []
        for question in questions:
            digest = question_digest(question, self.store, self.model, self.processor)
            key = {
                "model": model,
                "benchmark": self.benchmark,
                "scoring": scoring,
                "kind": question.kind,
                "id": question.id,
                "question": digest or "",
            }
            keys.append(key if digest else None)
        return keys

    def _longest(self, scoring: str, questions: Sequence[Question]) -> int:
        """Return how long a greedy answer may get before it can no longer be right."""
        if scoring != "exact" or not questions:
            return LONGEST
        texts = [gold(scoring, question) for question in questions]
        rows = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return min(LONGEST, 2 * max(map(len, rows)) + 4)

    def _ask(
        self,
        scoring: str,
        questions: Sequence[Question],
        keep: Callable[[int, Answer], None],
        longest: int,
    ) -> None:
        if scoring == "options":

            def chosen(index: int, scores: Sequence[float]) -> None:
                best = max(range(len(scores)), key=scores.__getitem__)
                keep(index, Answer(questions[index].options[best], tuple(scores)))

            score_options(
                self.model,
                self.processor,
                questions,
                batch_size=self.batch_size,
                features=self.store,
                found=chosen,
                progress=self.progress,
            )
            return
        answer_freely(
            self.model,
            self.processor,
            questions,
            batch_size=self.batch_size,
            max_new_tokens=longest,
            first_character=scoring == "letter",
            features=self.store,
            found=lambda index, text: keep(index, Answer(text)),
            progress=self.progress,
        )


def _check_ids(questions: Sequence[Question]) -> None:
    seen: set[tuple[str, str]] = set()
    for question in questions:
        key = (question.kind, question.id)
        if key in seen:
            raise InputError(
                f"two questions of kind {question.kind!r} have the id {question.id!r}; ids tell "
                "questions apart, so give each its own"
            )
        seen.add(key)


def _record(scoring: str, question: Question, answer: Answer) -> Record:
    return Record(
        id=question.id,
        kind=question.kind,
        scoring=scoring,
        answer=answer.text,
        gold=gold(scoring, question),
        right=judge(scoring, question, answer.text),
        objects=tuple(question.objects),
        scores=answer.scores,
    )
