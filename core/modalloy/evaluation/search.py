"""Coefficient search: a row of the presence table for each set of modalities, found on questions.

What DAMC's authors call adaptive adjustment (arXiv 2402.12750, section 3.3): coefficients chosen on
a validation set. Here each set of modalities has a row of its own, so that what is found for two
modalities changes nothing for one, where every parent stays whole.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from modalloy.composition.coefficients import Coefficients, make_coefficients
from modalloy.composition.features import FeatureStore
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import InputError, SpecError, nearest
from modalloy.evaluation.answers import AnswerLog, model_fingerprint, question_digest
from modalloy.evaluation.candidates import METRICS, Ground, Row
from modalloy.evaluation.learning import learn_coefficients
from modalloy.evaluation.prompts import Progress
from modalloy.evaluation.questions import Question
from modalloy.evaluation.run import FEATURES_FOLDER, missing_kinds
from modalloy.evaluation.searched import SearchResult, SubsetSearch
from modalloy.evaluation.strategies import (
    import_optuna,
    judge_gradient,
    search_grid,
    search_stability,
    search_tpe,
)

SEARCH_FILE = "search.jsonl"
"""File of the work directory that keeps the candidates' answers."""

STRATEGIES = {
    "grid": "equal values over a small grid, by successive halving",
    "tpe": "the grid, then optuna's TPE over one coefficient per parent",
    "gradient": "one coefficient per parent and layer, learned on four fifths of the questions",
    "stability": "the scale at which answers change least; looks at no label",
}
"""The ways to search."""

TRIALS = {"tpe": 24, "gradient": 150}
"""Proposals of TPE for each set, and steps of gradient descent, unless a caller says otherwise."""

JUDGED = 5
"""One question in so many is kept from the gradient, to judge what it found."""


def search_coefficients(  # noqa: PLR0913 - all but three are options by name
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Iterable[Question],
    *,
    strategy: str = "grid",
    metric: str = "logprob",
    subsets: Iterable[Iterable[str]] | None = None,
    trials: int | None = None,
    seed: int = 0,
    work: Path | None = None,
    progress: Progress = lambda *_: None,
) -> SearchResult:
    """Find coefficients for sets of modalities on a composition's own answers.

    The model is left as it was; the result's ``apply`` makes it run on what was found. A set keeps
    its row unless another is better by the metric, over all its questions, or over those that
    nothing was learned from (``"gradient"``). Without labels
    (``"stability"``) the row of the steadiest answers is taken, and the metric is not looked at.

    Args:
        model: The composition, of a method that knows coefficients by presence.
        processor: Its processor.
        questions: Of a validation split, never the test's; each serves the set of modalities that
            its inputs have. Labels are not needed by ``"stability"``, nor options.
        strategy: Name among :data:`STRATEGIES`.
        metric: Name among :data:`~modalloy.evaluation.candidates.METRICS`.
        subsets: Sets of modalities to search. All that questions have, of two modalities or more,
            if left out: alone, a parent is whole with coefficient 1.
        trials: Proposals of TPE for each set, or steps of the gradient; :data:`TRIALS` if left
            out.
        seed: Of the order of questions, and of TPE.
        work: Directory that keeps features and answers (``search.jsonl``); a broken run goes on.
        progress: Told after every candidate.

    Raises:
        SpecError: An option is unknown, the merge method knows no coefficients by presence, or
            the base is none that a gradient can be had over.
        InputError: No question serves a set, too few do, or one has no label where labels are
            needed.
        MissingComponentError: Optuna is not installed, and TPE was asked for.
        FormatError: What ``work`` holds is damaged, or cannot be written.
    """
    started = time.perf_counter()
    trials = TRIALS.get(strategy, 1) if trials is None else trials
    start = _check(model, strategy, metric, trials)
    asked = list(questions)
    skipped = missing_kinds(processor, asked)
    by_set = group_by_set(processor, [one for one in asked if one.kind not in skipped], seed)
    chosen = _choose(by_set, subsets, tuple(model.config.modalities), skipped)
    if strategy != "stability":
        check_labels(by_set, chosen)
    own = model.coefficients
    store = FeatureStore(work / FEATURES_FOLDER if work else None)
    log = AnswerLog(work / SEARCH_FILE if work else None)
    found: list[SubsetSearch] = []
    reused = 0
    try:
        model.coefficients = Coefficients(start.groups, (0.0,) * len(start.groups))
        identity = model_fingerprint(model, processor)
        learned: Row = ()
        learned_from = None
        if strategy == "gradient":
            by_set, taught = divide({present: by_set[present] for present in chosen})
            learned_from = _taught(taught, trials, store, model, processor)
            learned = learn_coefficients(
                model,
                processor,
                taught,
                start.row(chosen[-1]),
                steps=trials,
                store=store,
                identity=identity,
                work=work,
                progress=progress,
            )
        for present in chosen:
            ground = Ground(
                model=model,
                processor=processor,
                store=store,
                log=log,
                identity=identity,
                groups=start.groups,
                present=present,
                questions=by_set[present],
                metric=metric,
                start=start.row(present),
                progress=progress,
            )
            found.append(_search(ground, strategy, trials, seed, learned))
            reused += ground.reused
    finally:
        model.coefficients = own
        store.flush()
    return SearchResult(
        method=model.config.method,
        method_options=model.config.method_options,
        coefficients=_with_rows(start, found),
        strategy=strategy,
        metric=None if strategy == "stability" else metric,
        seed=seed,
        learned_from=learned_from,
        subsets=tuple(found),
        skipped=skipped,
        seconds=time.perf_counter() - started,
        reused=reused,
    )


def _taught(
    taught: Mapping[frozenset[str], Sequence[Question]],
    steps: int,
    store: FeatureStore,
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
) -> dict[str, Any]:
    """Return what a result says of the questions that coefficients were learned from."""
    questions = [question for some in taught.values() for question in some]
    digest = _digest(questions, store, model, processor)
    return {"steps": steps, "n": len(questions), "questions": digest}


def _with_rows(start: Coefficients, found: Iterable[SubsetSearch]) -> Coefficients:
    """Return a table with the rows that a search replaced."""
    rows = {
        frozenset(one.present): tuple(one.chosen[name] for name in start.groups)
        for one in found
        if one.replaced
    }
    return attrs.evolve(start, table={**start.table, **rows}, rule="custom") if rows else start


def _search(ground: Ground, strategy: str, trials: int, seed: int, learned: Row) -> SubsetSearch:
    if strategy == "grid":
        row: Row = search_grid(ground)
    elif strategy == "gradient":
        row = judge_gradient(ground, learned)
    elif strategy == "tpe":
        row = search_tpe(ground, trials, seed)
    else:
        row = search_stability(ground)
    return SubsetSearch(
        present=tuple(sorted(ground.present)),
        n=len(ground.questions),
        questions=_digest(ground.questions, ground.store, ground.model, ground.processor),
        default=ground.named(ground.start),
        chosen=ground.named(row),
        gain=ground.gain(row) if ground.labelled else None,
        trials=ground.trials(),
    )


def _digest(
    questions: Sequence[Question],
    store: FeatureStore,
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
) -> str | None:
    """Return the SHA-256 of questions in any order; ``None`` where an input has no identity."""
    digests = [question_digest(question, store, model, processor) for question in questions]
    known = sorted(digest for digest in digests if digest is not None)
    whole = hashlib.sha256("".join(known).encode()).hexdigest()
    return whole if len(known) == len(digests) else None


def _check(
    model: ModalloyForConditionalGeneration, strategy: str, metric: str, trials: int
) -> Coefficients:
    """Check the options, and return the coefficients that the search starts from."""
    for what, name, known in (("strategy", strategy, STRATEGIES), ("metric", metric, METRICS)):
        if name not in known:
            raise SpecError(
                f"search {what} must be {', '.join(known)}; got {name!r}.{nearest(name, known)}",
                subject=what,
            )
    if trials < 1:
        raise SpecError(f"search needs at least 1 trial; got {trials}", subject="trials")
    if strategy == "tpe":
        import_optuna()
    rules = model.encoders.registry.merge_method(model.config.method).rules
    check_searchable(model.config.method, rules)
    own = model.coefficients
    return own if own.by_presence else make_coefficients("presence", own.groups, rules)


def check_searchable(method: str, rules: Sequence[str]) -> None:
    """Check that a merge method has a row of coefficients for each set of modalities.

    Raises:
        SpecError: It has not.
    """
    if "presence" not in rules:
        raise SpecError(
            "coefficients are searched for each set of modalities in the prompt, and the method "
            f"{method!r} has one row for all prompts; compose with a method that knows the rule "
            "'presence', such as 'damc'",
            subject="coefficients",
        )


def group_by_set(
    processor: ModalloyProcessor, questions: Sequence[Question], seed: int
) -> dict[frozenset[str], list[Question]]:
    """Return the questions by set of modalities, each in an order that only the seed decides."""
    names = {entry["content_type"]: name for name, entry in processor.modalities.items()}
    found: dict[frozenset[str], list[Question]] = {}
    for question in questions:
        present = frozenset(names[one] for one in question.content_types)
        found.setdefault(present, []).append(question)

    def place(question: Question) -> str:
        return hashlib.sha256(f"{seed} {question.kind} {question.id}".encode()).hexdigest()

    return {present: sorted(some, key=place) for present, some in found.items()}


def divide(
    by_set: Mapping[frozenset[str], Sequence[Question]],
) -> tuple[dict[frozenset[str], list[Question]], dict[frozenset[str], list[Question]]]:
    """Return the questions of each set to judge by and those to learn from.

    Raises:
        InputError: A set has too few.
    """
    judged = {present: list(some[::JUDGED]) for present, some in by_set.items()}
    taught = {
        present: [q for place, q in enumerate(some) if place % JUDGED]
        for present, some in by_set.items()
    }
    for present, some in taught.items():
        if not some:
            raise InputError(
                f"search: {len(by_set[present])} questions about {_shown(present)} are too few to "
                "learn from some and judge by others; give two at least, and better fifty"
            )
    return judged, taught


def _choose(
    by_set: Mapping[frozenset[str], Sequence[Question]],
    subsets: Iterable[Iterable[str]] | None,
    modalities: Sequence[str],
    skipped: Mapping[str, str],
) -> list[frozenset[str]]:
    """Return the sets to search, smaller ones first."""
    known = ", ".join(_shown(one) for one in _ordered(by_set)) or "none"
    left_out = "".join(f"; left out: {kind}: {why}" for kind, why in list(skipped.items())[:1])
    if subsets is None:
        several = _ordered(one for one in by_set if len(one) > 1)
        if not several:
            raise InputError(
                "no question has inputs of several modalities, so there is nothing to search: "
                f"alone, a parent is whole with coefficient 1; the sets in the questions are "
                f"{known}{left_out}"
            )
        return several
    wanted = []
    for subset in subsets:
        names = frozenset((subset,) if isinstance(subset, str) else subset)
        unknown = sorted(names.difference(modalities))
        if unknown:
            raise SpecError(
                f"search: {_shown(names)!r} is no set of this composition's modalities "
                f"{', '.join(modalities)}.{nearest(unknown[0], modalities)}",
                subject="subsets",
            )
        if names not in by_set:
            raise InputError(
                f"search: no question has inputs of {_shown(names)}; the sets in the questions "
                f"are {known}{left_out}"
            )
        wanted.append(names)
    return _ordered(wanted)


def check_labels(
    by_set: Mapping[frozenset[str], Sequence[Question]], chosen: Iterable[frozenset[str]]
) -> None:
    """Check that every question of the chosen sets has options and the right one.

    Raises:
        InputError: One has not.
    """
    for present in chosen:
        for question in by_set[present]:
            if not question.options or question.answer is None:
                raise InputError(
                    f"question {question.id!r} of kind {question.kind!r} has no options with a "
                    "right one, which this strategy scores; leave its kind out, or search by "
                    "'stability', which looks at no label"
                )


def _ordered(sets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    return sorted(set(sets), key=lambda one: (len(one), sorted(one)))


def _shown(names: Iterable[str]) -> str:
    return "+".join(sorted(names)) or "text alone"
