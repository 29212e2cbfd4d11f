"""What became of every tensor of a source: each is named once, or the conversion fails.

Nothing is lost in silence: an adapter of which no tensor found a place once made a "complete"
merge in which nothing had changed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from modalloy.errors import DeltaError

TEXT_DELTA, MODALITY_DELTA = "text delta", "modality delta"
CONNECTOR, ENCODER, SKIPPED = "connector", "encoder", "skipped"
FATES = (TEXT_DELTA, MODALITY_DELTA, CONNECTOR, ENCODER, SKIPPED)
"""What a tensor may become, in the order of listings."""

_SHOWN = 4


@attrs.frozen
class Row:
    """What became of one tensor of a source, or of all whose names differ in numbers alone.

    Attributes:
        tensor: Its name, or a pattern with ``*`` in place of numbers.
        fate: One of :data:`FATES`.
        reason: Why, or into what.
        tensors: How many the row stands for.
    """

    tensor: str
    fate: str = attrs.field(validator=attrs.validators.in_(FATES))
    reason: str = ""
    tensors: int = 1


class Accounting:
    """Takes down what becomes of the tensors of one source.

    Args:
        source: What they are of, for messages.
        names: Names of all of them.
    """

    def __init__(self, source: str, names: Iterable[str]) -> None:
        self.source = source
        self._rows: dict[str, Row | None] = dict.fromkeys(sorted(names))

    def place(self, name: str, fate: str, reason: str = "") -> None:
        """Say what became of a tensor.

        Raises:
            DeltaError: The source has no such tensor, or it was placed before.
        """
        if name not in self._rows:
            raise DeltaError(f"{self.source} has no tensor {name!r} to account for", tensor=name)
        earlier = self._rows[name]
        if earlier is not None:
            raise DeltaError(
                f"{self.source}: tensor {name!r} would become a part of two things: "
                f"{earlier.fate} ({earlier.reason}) and {fate} ({reason})",
                tensor=name,
            )
        self._rows[name] = Row(name, fate, reason)

    def skip(self, name: str, reason: str) -> None:
        """Say that a tensor is left out, and why; errors as :meth:`place`."""
        self.place(name, SKIPPED, reason)

    def finish(self, *, expected: str, needs_delta: bool = True) -> tuple[Row, ...]:
        """Check that nothing is left over and return a row for each tensor, sorted by name.

        Args:
            expected: What names of deltas look like, for the message.
            needs_delta: Whether a source of which nothing became a delta is an error.

        Raises:
            DeltaError: A tensor is not accounted for, or none became a delta.
        """
        lost = [name for name, row in self._rows.items() if row is None]
        if lost:
            raise DeltaError(
                f"{self.source}: {len(lost)} of {len(self._rows)} tensors have no place and would "
                f"be lost: {some_patterns(lost)}; expected names such as {expected}",
                tensor=lost[0],
            )
        rows = tuple(row for row in self._rows.values() if row is not None)
        if needs_delta and not any(row.fate in (TEXT_DELTA, MODALITY_DELTA) for row in rows):
            raise DeltaError(
                f"{self.source}: nothing placed. None of its {len(rows)} tensors changes the base; "
                f"their names look like {some_patterns(self._rows)}, expected names such as "
                f"{expected}"
            )
        return rows


def group_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return rows by pattern, fate and reason, with the number of tensors each stands for.

    They are in the order of :data:`FATES`, then sorted.
    """
    counts: dict[tuple[int, str, str], int] = {}
    for row in rows:
        key = (FATES.index(row.fate), pattern(row.tensor), row.reason)
        counts[key] = counts.get(key, 0) + row.tensors
    return tuple(
        Row(name, FATES[fate], reason, count)
        for (fate, name, reason), count in sorted(counts.items())
    )


def to_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return grouped rows as plain data."""
    return [attrs.asdict(row) for row in group_rows(rows)]


def totals(rows: Iterable[Row]) -> Mapping[str, int]:
    """Return how many tensors had each fate, in the order of :data:`FATES`; zeros left out."""
    counts = dict.fromkeys(FATES, 0)
    for row in rows:
        counts[row.fate] += row.tensors
    return {fate: count for fate, count in counts.items() if count}


def pattern(name: str) -> str:
    """Return a tensor's name with ``*`` in place of each part that is a number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def some_patterns(names: Iterable[str]) -> str:
    """Return the first few patterns that names follow, and how many more there are."""
    found = list(dict.fromkeys(map(pattern, names)))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(map(repr, found[:_SHOWN])) + more
