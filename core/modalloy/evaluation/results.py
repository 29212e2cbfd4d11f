"""Results: every answer, and what they come to."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from modalloy.errors import InputError
from modalloy.evaluation.intervals import Interval, difference_interval, share_interval

AVERAGE = "average"
"""Name of the row over all kinds, each of which weighs the same."""


@attrs.frozen(kw_only=True)
class Record:
    """One question, answered.

    Attributes:
        id: The question's.
        kind: The question's.
        scoring: How it was scored.
        answer: The chosen option, or the greedy answer (of ``"letter"``, its beginning).
        gold: The right answer, as the scoring sees it.
        right: Whether the answer is right.
        objects: The question's.
        scores: Log-likelihood of each option, where they were scored.
    """

    id: str
    kind: str
    scoring: str
    answer: str
    gold: str
    right: bool
    objects: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@attrs.frozen(kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        kind: Name of the kind, or :data:`AVERAGE`.
        scoring: How it was scored.
        n: Questions.
        right: Share of right answers, with its 95 % interval; 0 to 1.
    """

    kind: str
    scoring: str
    n: int
    right: Interval


@attrs.frozen(kw_only=True)
class Results:
    """What a model answered.

    Attributes:
        records: One per question and scoring, in the order of the questions.
        skipped: Why a kind was not asked, by ``"kind"``, or not scored so, by
            ``"kind (scoring)"``.
        reused: How many answers were taken from an earlier run.
    """

    records: tuple[Record, ...]
    skipped: Mapping[str, str] = attrs.Factory(dict)
    reused: int = 0

    def table(self) -> list[Row]:
        """Return a row per scoring and kind, and, where there are several kinds, their average."""
        rows = []
        for scoring in dict.fromkeys(record.scoring for record in self.records):
            own = [record for record in self.records if record.scoring == scoring]
            kinds = list(dict.fromkeys(record.kind for record in own))
            rows += [_row(kind, [r for r in own if r.kind == kind]) for kind in kinds]
            if len(kinds) > 1:
                rows.append(_row(AVERAGE, own))
        return rows

    def accuracy(self, kind: str = AVERAGE, scoring: str | None = None) -> float:
        """Return the share of right answers of a kind, or the mean over kinds.

        Args:
            kind: Name of a kind; the mean over all by default.
            scoring: The first by default.

        Raises:
            InputError: There are no such answers.
        """
        own = [r for r in self.records if scoring in (None, r.scoring)]
        own = [r for r in own if r.scoring == own[0].scoring and kind in (AVERAGE, r.kind)]
        if not own:
            raise InputError(f"there are no answers of kind {kind!r} scored by {scoring!r}")
        return _row(kind, own).right.value

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; docs/evaluation.md has its shape."""
        return {
            "table": [attrs.asdict(row) for row in self.table()],
            "skipped": dict(self.skipped),
            "reused": self.reused,
            "answers": [attrs.asdict(record) for record in self.records],
        }


def paired_interval(
    results_a: Results,
    results_b: Results,
    *,
    kind: str | None = None,
    scoring: str | None = None,
) -> Interval:
    """Return by how much ``results_a`` is more often right than ``results_b``, and its interval.

    Compared are the questions that both answered, pair by pair; questions that share an object
    are not taken for independent. Every question weighs the same.

    Args:
        results_a: Of one model.
        results_b: Of another.
        kind: Only questions of this kind.
        scoring: Only answers scored so; the first by default.

    Raises:
        InputError: They have no question in common, or its right answers differ.
    """
    tables: list[dict[tuple[str, str, str], Record]] = []
    scoring = scoring or next((r.scoring for r in results_a.records), None)
    for results in (results_a, results_b):
        chosen = [r for r in results.records if kind in (None, r.kind) and r.scoring == scoring]
        tables.append({(r.kind, r.id, r.scoring): r for r in chosen})
    common = [key for key in tables[0] if key in tables[1]]
    if not common:
        raise InputError("the two results have no question in common, so they cannot be compared")
    pairs = [(tables[0][key], tables[1][key]) for key in common]
    for a, b in pairs:
        if (a.gold, a.objects) != (b.gold, b.objects):
            raise InputError(
                f"question {a.id!r} of kind {a.kind!r} is not the same in both results: its right "
                f"answer is {a.gold!r} in one, {b.gold!r} in the other"
            )
    differences = [float(a.right) - float(b.right) for a, b in pairs]
    return difference_interval(differences, [a.objects for a, _ in pairs])


def _row(kind: str, records: Sequence[Record]) -> Row:
    counts: dict[str, int] = {}
    for record in records:
        counts[record.kind] = counts.get(record.kind, 0) + 1
    interval = share_interval(
        [r.right for r in records],
        [1 / (len(counts) * counts[r.kind]) for r in records],
        [r.objects for r in records],
        [r.kind for r in records],
    )
    return Row(kind=kind, scoring=records[0].scoring, n=len(records), right=interval)
