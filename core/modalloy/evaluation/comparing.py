"""Comparing what several models answered to the same questions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from modalloy.checkpoints.safe_files import read_object
from modalloy.errors import FormatError, InputError
from modalloy.evaluation.intervals import Interval
from modalloy.evaluation.results import AVERAGE, Record, Results, Row, paired_interval
from modalloy.structured import structure


@attrs.frozen(kw_only=True)
class Compared:
    """One model's line about one kind of question.

    Attributes:
        label: Name of the model's results.
        row: How often it is right.
        difference: By how much it is more often right than the first, over the questions that both
            answered, with its 95 % interval; ``None`` of the first, and of an average over kinds
            with different numbers of questions, which weigh otherwise.
    """

    label: str
    row: Row
    difference: Interval | None


def read_results(file: Path) -> Results:
    """Read what ``modalloy evaluate`` wrote.

    Raises:
        FormatError: It cannot be read, or is something else.
    """
    try:
        data = read_object(file)
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error}", path=file) from error
    answers = data.get("answers")
    if not isinstance(answers, list) or not answers:
        raise FormatError(
            f"{file} holds no answers; give files that `modalloy evaluate` wrote", path=file
        )
    return Results(records=tuple(_record(one, file, n) for n, one in enumerate(answers)))


def _record(answer: Any, file: Path, place: int) -> Record:
    stored = structure(answer, _Stored, Path(f"{file}, answer {place}"))
    fields = attrs.asdict(stored)
    return Record(**{**fields, "objects": tuple(stored.objects), "scores": tuple(stored.scores)})


@attrs.frozen(kw_only=True)
class _Stored:
    """A :class:`~modalloy.evaluation.results.Record` as JSON has it."""

    id: str
    kind: str
    scoring: str
    answer: str
    gold: str
    right: bool
    objects: list[str] = attrs.Factory(list)
    scores: list[float] = attrs.Factory(list)


def compare(results: Mapping[str, Results], scoring: str | None = None) -> list[Compared]:
    """Return a line for every kind and model, kinds in the order of the first results.

    Args:
        results: By label; the first are those that the others are compared with.
        scoring: Only answers scored so; the first results' first by default.

    Raises:
        InputError: There are none scored so, two have no question in common, or one question has
            different right answers.
    """
    first = next(iter(results.values()))
    scoring = scoring or first.records[0].scoring
    tables = {}
    for label, result in results.items():
        tables[label] = {row.kind: row for row in result.table() if row.scoring == scoring}
        if not tables[label]:
            known = ", ".join(dict.fromkeys(record.scoring for record in result.records))
            raise InputError(f"{label} has no answers scored by {scoring!r}; it has {known}")
    kinds = dict.fromkeys(kind for table in tables.values() for kind in table)
    ordered = [kind for kind in kinds if kind != AVERAGE] + [k for k in kinds if k == AVERAGE]
    start = next(iter(results))
    lines = []
    for kind in ordered:
        for label, table in tables.items():
            if kind in table:
                other = None if label == start or kind not in tables[start] else label
                pair = (results[other], first) if other else None
                difference = _difference(pair, tables[start], kind, scoring) if pair else None
                lines.append(Compared(label=label, row=table[kind], difference=difference))
    return lines


def _difference(
    pair: tuple[Results, Results], rows: Mapping[str, Row], kind: str, scoring: str
) -> Interval | None:
    if kind == AVERAGE and len({row.n for name, row in rows.items() if name != AVERAGE}) > 1:
        return None
    chosen = None if kind == AVERAGE else kind
    return paired_interval(*pair, kind=chosen, scoring=scoring)
