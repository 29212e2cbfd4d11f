"""What a plugin declares about a benchmark: where its questions come from, how it is scored."""

from collections.abc import Iterable
from typing import Any

import attrs

from modalloy.errors import SpecError, nearest
from modalloy.modality import Target, check_api_version, check_name, check_target

SCORINGS = {
    "options": "the likeliest of the given options is the right one",
    "letter": "the first character of the greedy answer is the right option's letter",
    "exact": "the greedy answer is the reference, character for character",
    "evalai": "the greedy answer is the reference, both normalised as EvalAI does for VQA",
}
"""The ways to score an answer."""


def check_scoring(names: str | Iterable[str], subject: str) -> tuple[str, ...]:
    """Return the names of scorings as a tuple.

    Args:
        names: Names among :data:`SCORINGS`; a single one may stand alone.
        subject: Who asks for them, for messages.

    Raises:
        SpecError: There is none, or one is unknown.
    """
    found = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in found if name not in SCORINGS]
    if unknown or not found:
        got = repr(unknown[0]) if unknown else "none"
        hint = nearest(str(unknown[0]), SCORINGS) if unknown else ""
        raise SpecError(
            f"{subject}: scoring must be one or more of {', '.join(SCORINGS)}; got {got}.{hint}",
            subject=subject,
        )
    return tuple(dict.fromkeys(found))


def _names(value: str | Iterable[str]) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(value)


@attrs.frozen(kw_only=True)
class Benchmark:
    """A set of questions and how answers to them are scored.

    Attributes:
        name: Unique name, such as ``"household-mcub"``.
        api_version: :data:`~modalloy.modality.API_VERSION` that the plugin was written for.
        summary: One line for listings.
        questions: Target ``(data: Path | None, limit: int | None) -> list[Question]``. ``data``
            is the directory that the user named; ``limit`` is the most questions of each kind.
            All media must be there: a missing one is a
            :class:`~modalloy.errors.FormatError` before any model is opened.
        scoring: Names among :data:`SCORINGS`, all of which are applied.
        against_parents: Whether the same questions are also asked of every parent alone.
    """

    name: str = attrs.field(validator=check_name)
    api_version: int = attrs.field(validator=check_api_version)
    summary: str
    questions: Target = attrs.field(validator=check_target)
    scoring: tuple[str, ...] | str = attrs.field(converter=_names)
    against_parents: bool = False

    @scoring.validator
    def _check_scoring(self, _: "attrs.Attribute[Any]", value: tuple[str, ...] | str) -> None:
        if isinstance(value, str):
            raise SpecError(
                f"Benchmark {self.name!r}: scoring must be a tuple of names; got {value!r}, write "
                f"({value!r},)",
                subject=f"Benchmark {self.name!r}",
            )
        check_scoring(value, f"Benchmark {self.name!r}")
