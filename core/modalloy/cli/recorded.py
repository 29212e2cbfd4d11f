"""What ``modalloy inspect`` shows of records, checked before any of it is printed."""

from pathlib import Path
from typing import Any

import attrs

from modalloy.composition.coefficients import Coefficients
from modalloy.errors import SpecError
from modalloy.structured import structure

_Row = dict[str, Any]
"""A coefficient, or one for each layer, by group."""


@attrs.frozen(kw_only=True)
class _Model:
    label: str
    model: str
    kind: str
    tensors: int
    bytes: int


@attrs.frozen(kw_only=True)
class _Fate:
    source: str
    fate: str
    tensors: int
    names: list[str]


@attrs.frozen(kw_only=True)
class _Merge:
    merge_method: str
    base_model: str
    models: list[_Model]
    accounting: list[_Fate]


def _check_row(_: object, __: object, value: _Row) -> None:
    default = {"default": value}
    try:
        Coefficients.from_dict(default)
    except SpecError as error:
        raise ValueError(str(error)) from error


@attrs.frozen(kw_only=True)
class _Interval:
    value: float
    low: float
    high: float


@attrs.frozen(kw_only=True)
class _Trial:
    values: _Row = attrs.field(validator=_check_row)
    n: int
    score: _Interval | None
    accuracy: _Interval | None
    gain: _Interval | None
    unstable: float | None


@attrs.frozen(kw_only=True)
class _Subset:
    n: int
    questions: str | None
    default: _Row = attrs.field(validator=_check_row)
    chosen: _Row = attrs.field(validator=_check_row)
    replaced: bool
    gain: _Interval | None
    trials: list[_Trial]

    def __attrs_post_init__(self) -> None:
        if not any(trial.values == self.chosen for trial in self.trials):
            raise ValueError("chose coefficients that are not among its trials")


@attrs.frozen(kw_only=True)
class _Search:
    method: str
    method_options: dict[str, float]
    strategy: str
    metric: str | None
    seed: int
    learned_from: dict[str, Any] | None = None
    coefficients: dict[str, Any]
    subsets: dict[str, _Subset]


def check_merge(data: dict[str, Any], path: Path) -> None:
    """Check the record of a merge.

    Raises:
        FormatError: It does not hold what is shown of it.
    """
    recipe = data["recipe"] if isinstance(data["recipe"], dict) else {}
    shown = {key: recipe.get(key) for key in ("merge_method", "base_model")}
    shown["base_model"] = shown["base_model"] or "no base"
    structure({**shown, **{key: data[key] for key in ("models", "accounting")}}, _Merge, path)


def check_search(search: dict[str, Any] | None, path: Path) -> None:
    """Check what a composition's record says about the search of its coefficients, if it does.

    Raises:
        FormatError: It does not hold what is shown of it.
    """
    if search is not None:
        structure(search, _Search, f"{path}, search")
