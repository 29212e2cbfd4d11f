"""Strategies of a coefficient search: which candidates are tried for one set of modalities.

Each takes a :class:`~modalloy.evaluation.candidates.Ground` and returns the row that it found; the
default row is returned unless another is better.
"""

import math
from collections.abc import Sequence
from typing import Any

from modalloy.composition.coefficients import Value
from modalloy.errors import MissingComponentError
from modalloy.evaluation.answers import Answer
from modalloy.evaluation.candidates import Ground, Row, log_shares
from modalloy.modality import MERGED

GRID = (0.25, 0.33, 0.5, 0.7, 1.0)
"""Equal coefficients that the grid tries."""

HIGHEST = 1.2
"""Largest coefficient that TPE tries."""

LINE = tuple(step / 10 for step in range(2, 13))
"""Scales that the label-free strategy compares; it chooses none of the two ends.

Towards 0 lies the base, which answers alike because it heeds no parent: no sign of a good place.
"""

_HALVED_FROM = 64
"""Questions from which on halving is worth its risk."""

_STARTUP = 8
"""Trials before TPE trusts its model, those of the grid among them."""


def grid_rows(groups: Sequence[str], present: frozenset[str]) -> list[Row]:
    """Return the rows of the grid.

    The parents of what is present get equal values, those of what is absent the same or 0; where
    there is a merged delta, it is tried at the same values, the parents at 0.

    Args:
        groups: Names of the groups, in the order of rows.
        present: Modalities in the prompt.
    """
    rows: list[Row] = []
    for value in GRID:
        rows += [
            tuple(_parent_value(one, present, value, absent) for one in groups)
            for absent in (value, 0.0)
        ]
        if MERGED in groups:
            rows.append(tuple(value if one == MERGED else 0.0 for one in groups))
    return list(dict.fromkeys(rows))


def _parent_value(name: str, present: frozenset[str], value: float, absent: float) -> float:
    if name == MERGED:
        return 0.0
    return value if name in present else absent


def search_grid(ground: Ground) -> Row:
    """Try the grid, as the paper does, by successive halving over the questions.

    All candidates are asked a quarter of the questions; the better half goes on to half of them,
    and of these the better half to all. The default row goes through.
    """
    rows = [row for row in grid_rows(ground.groups, ground.present) if row != ground.start]
    counts = _rounds(len(ground.questions))
    total = sum(1 + math.ceil(len(rows) / 2**number) for number in range(len(counts)))
    done = 0
    for number, count in enumerate(counts):
        if number:
            kept = math.ceil(len(rows) / 2)
            rows = sorted(rows, key=lambda row: -ground.score(row, counts[number - 1]))[:kept]
        for row in (ground.start, *rows):
            ground.score(row, count)
            done += 1
            ground.progress(f"{ground.name}: grid", min(done, total), total)
    return _best(ground, (ground.start, *rows))


def search_tpe(ground: Ground, trials: int, seed: int) -> Row:
    """Try the grid, then what optuna's TPE proposes, one free coefficient per group.

    Args:
        ground: The questions.
        trials: Proposals after the grid.
        seed: Of the sampler.

    Raises:
        MissingComponentError: Optuna is not installed.
    """
    optuna = import_optuna()
    search_grid(ground)
    whole = len(ground.questions)
    rows = [tuple(trial.values.values()) for trial in ground.trials() if trial.n == whole]
    # A row found by hand may lie outside what is searched; it is still compared in the end.
    inside = [row for row in rows if all(isinstance(v, float) and 0 <= v <= HIGHEST for v in row)]
    space = {name: optuna.distributions.FloatDistribution(0.0, HIGHEST) for name in ground.groups}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for row in inside:
            study.add_trial(
                optuna.trial.create_trial(
                    params=ground.named(row), distributions=space, value=ground.score(row)
                )
            )
        for done in range(1, trials + 1):
            trial = study.ask(space)
            row = tuple(round(trial.params[name], 3) for name in ground.groups)
            study.tell(trial, ground.score(row))
            rows.append(row)
            ground.progress(f"{ground.name}: tpe", done, trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return _best(ground, (ground.start, *rows))


def import_optuna() -> Any:
    """Import optuna.

    Raises:
        MissingComponentError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingComponentError(
            "the search strategy 'tpe' needs optuna, which is not installed; "
            "pip install \"modalloy[search]\", or search by 'grid' or 'stability'",
            component="optuna",
        ) from error
    return optuna


def judge_gradient(ground: Ground, learned: Row) -> Row:
    """Compare the default row with one that was learned, on questions that it was not learned from.

    Args:
        ground: Those questions.
        learned: What :func:`~modalloy.evaluation.learning.learn_coefficients` returned.
    """
    row = _best(ground, (ground.start, learned))
    ground.progress(f"{ground.name}: judging what was learned", 1, 1)
    return row


def search_stability(ground: Ground) -> Row:
    """Choose the scale at which answers change least; no label is looked at.

    An adaptation of AdaMMS (arXiv 2503.23733), which moves between two models on a line of mixing
    weights and takes the one whose answers differ least from those of its two neighbours. Here
    the line runs from the base through the default row of the set.
    """
    line = scaled(ground.start, LINE)
    whole = len(ground.questions)
    answers = []
    ground.answers(ground.start, whole)
    for done, row in enumerate(line, start=1):
        answers.append(ground.answers(row, whole))
        ground.progress(f"{ground.name}: stability", done, len(line))
    ranks = []
    for place in range(1, len(line) - 1):
        changed, shift = change(answers[place - 1 : place + 2])
        ground.unstable[line[place]] = changed / (2 * whole)
        ranks.append((changed, shift, _distance(line[place], ground.start), place))
    return line[min(ranks)[-1]]


def scaled(row: Row, scales: Sequence[float]) -> list[Row]:
    """Return a row's direction, its largest value 1, at each scale; equal values for one of 0."""
    most = max(map(abs, _numbers(row)))

    def times(value: Value, scale: float) -> Value:
        if isinstance(value, tuple):
            return tuple(round(scale * (one / most if most else 1.0), 6) for one in value)
        return round(scale * (value / most if most else 1.0), 6)

    return [tuple(times(value, scale) for value in row) for scale in scales]


def _numbers(row: Row) -> list[float]:
    """Return the coefficients of a row, of all layers, one after the other."""
    return [one for value in row for one in (value if isinstance(value, tuple) else (value,))]


def change(three: Sequence[Sequence[Answer]]) -> tuple[int, float]:
    """Return how much a candidate's answers differ from those of its neighbours.

    Args:
        three: Answers of the candidate before, of the candidate, and of the one after.

    Returns:
        How many answers differ, both neighbours counted; and how far the probabilities of the
        options move (total variation, summed over questions), which tells ties apart.
    """
    changed, shift = 0, 0.0
    for beside in (three[0], three[2]):
        for here, there in zip(three[1], beside, strict=True):
            changed += here.text != there.text
            shift += _moved(here.scores, there.scores)
    # Rounded, so that the order of batches cannot decide.
    return changed, round(shift, 6)


def _moved(here: Sequence[float], there: Sequence[float]) -> float:
    if not here:
        return 0.0
    pairs = zip(log_shares(here), log_shares(there), strict=True)
    return sum(abs(math.exp(a) - math.exp(b)) for a, b in pairs) / 2


def _distance(row: Row, other: Row) -> float:
    pairs = zip(_numbers(row), _numbers(other), strict=True)
    return round(sum(abs(a - b) for a, b in pairs), 6)


def _rounds(count: int) -> list[int]:
    return [count] if count < _HALVED_FROM else [count // 4, count // 2, count]


def _best(ground: Ground, rows: Sequence[Row]) -> Row:
    """Return the row of the highest score; the first of equals, so the default before others."""
    return max(rows, key=ground.score)
