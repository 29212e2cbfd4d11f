"""What a merge function makes, and running one with checked options."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from modalloy.deltas.lowrank import LowRankDelta
from modalloy.errors import SpecError, nearest
from modalloy.modality import MergeMethod, resolve


@attrs.frozen(eq=False)
class Merged:
    """What a merge function returns.

    Attributes:
        text: The merged delta of the text stream; ``None`` where the method leaves text to the
            parents' own deltas.
        own: Modality-stream delta by modality, in place of the parents'; ``None`` keeps theirs.
        record: Plain data about what was done, kept in ``modalloy.json``.
    """

    text: LowRankDelta | None
    own: Mapping[str, LowRankDelta] | None = None
    record: Mapping[str, Any] = attrs.Factory(dict)


def run_merge(
    method: MergeMethod,
    text: Mapping[str, LowRankDelta],
    own: Mapping[str, LowRankDelta],
    options: Mapping[str, float],
    progress: Callable[[str], None] | None = None,
) -> Merged:
    """Run a method's merge function, if it has one.

    Args:
        method: The method.
        text: Text-stream delta by modality.
        own: Modality-stream delta by modality; empty unless decoupled.
        options: From :func:`complete_options`.
        progress: Called with a line of text before the work.

    Raises:
        SpecError: The function does not return what its method is to have.
    """
    if method.merge is None:
        return Merged(None)
    if progress is not None:
        progress(f"merging the text deltas of {', '.join(sorted(text))} by {method.name!r}")
    merged = resolve(method.merge)(dict(sorted(text.items())), dict(sorted(own.items())), **options)
    problem = None
    if not isinstance(merged, Merged):
        problem = f"returned {type(merged).__name__}, expected Merged"
    elif merged.text is None and not method.decoupled:
        problem = "returned no text delta, which is all that a method that is not decoupled has"
    elif merged.own is not None and merged.own.keys() != own.keys():
        problem = (
            f"returned modality deltas for {', '.join(sorted(merged.own)) or 'nothing'}, expected "
            f"{', '.join(sorted(own)) or 'none'}"
        )
    if problem:
        raise SpecError(
            f"merge method {method.name!r}: its merge function {problem}; this is an error of the "
            "plugin that offers it",
            subject=method.name,
        )
    return merged


def complete_options(method: MergeMethod, given: Mapping[str, float]) -> dict[str, float]:
    """Return a method's options, defaults where none is given.

    Raises:
        SpecError: An option is unknown to the method, or is no number of its kind.
    """
    known = sorted(method.options)
    for name, value in given.items():
        if name not in method.options:
            raise SpecError(
                f"merge method {method.name!r} has no option {name!r}; it takes "
                f"{', '.join(known) or 'none'}.{nearest(str(name), known)}",
                subject=method.name,
            )
        whole = type(method.options[name]) is int
        number = type(value) is int or (type(value) is float and not whole)
        if not number or not math.isfinite(value):
            raise SpecError(
                f"merge method {method.name!r}: option {name!r} must be "
                f"{'an integer' if whole else 'a finite number'}, found {value!r}",
                subject=method.name,
            )
    return {name: given.get(name, default) for name, default in sorted(method.options.items())}


def check_share(name: str, value: float) -> None:
    """Check an option that is a share: above 0, at most 1.

    Raises:
        SpecError: It is not.
    """
    if not 0 < value <= 1:
        raise SpecError(f"option {name!r} must be above 0 and at most 1, found {value!r}")
