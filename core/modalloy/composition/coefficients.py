"""Coefficients: how much of each group of text-stream deltas a prompt gets.

A group is one parent's text delta, under its modality's name, or the delta that a merge method
made of all of them, under the name ``"merged"``. Its coefficient is one number, or one for each of
the base's decoder layers, as in AdaMerging (Yang et al., arXiv 2310.02575). A rule is either one
coefficient per group, or a table keyed by the set of modalities present in the prompt. The table is
what DAMC's adaptive adjustment (arXiv 2402.12750, section 3.3) becomes when it may look at the
prompt: with one modality present its parent's text delta gets 1 and the others 0, so that the
composition *is* that parent on its own ground.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from modalloy.errors import SpecError, nearest
from modalloy.modality import MERGED

Value = float | tuple[float, ...]
"""A coefficient: one number for all layers, or one for each, first layer first."""

Spec = (
    str | Mapping[str, float | Sequence[float]]
    | Mapping[frozenset[str], Mapping[str, float | Sequence[float]]]
)  # fmt: skip
"""What a caller may give: a rule's name, one value per group, or a table by set."""

SEVERAL = 0.5
"""Coefficient of each parent where several modalities are present, those absent included.

Of methods that make no merged delta; a merged delta gets 1 there, and the parents 0.

Measured on the household parents: better there than 1 / M and than leaving the absent ones out.
"""

_JOIN = "+"


@attrs.frozen
class Coefficients:
    """Coefficients of a composition.

    Attributes:
        groups: Names in the order of every row: modalities, sorted, then ``"merged"``.
        default: One value per group, for sets that ``table`` does not hold.
        table: Values by set of modalities present.
        rule: Name of the rule they were made by, or ``"custom"``.

    Raises:
        SpecError: Values by layer are for different numbers of layers.
    """

    groups: tuple[str, ...]
    default: tuple[Value, ...]
    table: Mapping[frozenset[str], tuple[Value, ...]] = attrs.Factory(dict)
    rule: str = "custom"

    @property
    def by_presence(self) -> bool:
        """Whether the coefficients of a prompt depend on what is in it."""
        return bool(self.table)

    def __attrs_post_init__(self) -> None:
        lengths = sorted({len(one) for one in self._by_layer()})
        if len(lengths) > 1:
            raise SpecError(
                f"coefficients by layer come as lists of {lengths[0]} and {lengths[-1]} numbers; "
                "give each one number for every layer of the base",
                subject="coefficients",
            )

    def _by_layer(self) -> list[tuple[float, ...]]:
        rows = (self.default, *self.table.values())
        return [value for row in rows for value in row if isinstance(value, tuple)]

    @property
    def layers(self) -> int:
        """How many layers have coefficients of their own; 0 where all layers share them."""
        return max(map(len, self._by_layer()), default=0)

    def row(self, present: frozenset[str]) -> tuple[Value, ...]:
        """Return the coefficients of a prompt that holds inputs of these modalities."""
        return self.table.get(present, self.default)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; sets become sorted names joined by ``+``."""

        def named(row: tuple[Value, ...]) -> dict[str, float | list[float]]:
            values = (list(value) if isinstance(value, tuple) else value for value in row)
            return dict(zip(self.groups, values, strict=True))

        table = {_JOIN.join(sorted(key)): named(row) for key, row in self.table.items()}
        return {
            "rule": self.rule,
            "default": named(self.default),
            "table": dict(sorted(table.items(), key=lambda item: (item[0].count(_JOIN), item[0]))),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Coefficients":
        """Read what :meth:`to_dict` returned.

        Raises:
            SpecError: A name or a value is wrong.
        """
        default, rows = data.get("default"), data.get("table", {})
        if not isinstance(default, Mapping) or not isinstance(rows, Mapping):
            raise SpecError(
                "coefficients need values by group under 'default' and rows by set under "
                f"'table'; found {dict(data)!r}",
                subject="coefficients",
            )
        names = order_groups(default)
        return cls(
            groups=names,
            default=_row(default, names),
            table={
                _check_set(frozenset(filter(None, key.split(_JOIN))), names): _row(row, names)
                for key, row in rows.items()
            },
            rule=data.get("rule", "custom"),
        )


def order_groups(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of groups in the order of rows and stacks: sorted, ``"merged"`` last.

    What stands at an end and is not used costs nothing, and the merged delta is the widest.
    """
    return tuple(sorted(names, key=lambda name: (name == MERGED, name)))


def make_coefficients(
    spec: Spec | None, groups: Iterable[str], rules: tuple[str, ...]
) -> Coefficients:
    """Turn what a caller gave into coefficients.

    Args:
        spec: A rule's name, values by group, or a table by set of modalities; ``None`` takes
            ``rules[0]``. In a table, sets that are left out get what ``"presence"`` gives them:
            nothing for a prompt of text alone, the parent whole for a single modality, and for
            several the merged delta, or :data:`SEVERAL` of each parent where there is none.
        groups: Names of the composition's text groups: its modalities, ``"merged"``, or both.
        rules: Names of the rules that the merge method knows, the default first.

    Raises:
        SpecError: An unknown rule or group, a missing or non-finite value, or a table for a
            method that does not know the rule ``"presence"``.
    """
    names = order_groups(groups)
    spec = rules[0] if spec is None else spec
    if isinstance(spec, str):
        if spec not in rules:
            raise SpecError(
                f"coefficients {spec!r} are not known to this merge method; expected "
                f"{', '.join(map(repr, rules))} or values by group.{nearest(spec, rules)}",
                subject="coefficients",
            )
        return _RULES[spec](names)
    if not isinstance(spec, Mapping):
        raise SpecError(
            f"coefficients must be a rule's name, values by group, or values by frozenset of "
            f"modalities; got {spec!r}",
            subject="coefficients",
        )
    if not any(isinstance(key, frozenset) for key in spec):
        return Coefficients(names, _row(spec, names))
    if "presence" not in rules:
        raise SpecError(
            "coefficients by set of modalities need a method that routes by presence, such as "
            "'damc'; give one value per group",
            subject="coefficients",
        )
    return _from_table(spec, names)


def named_honestly(coefficients: Coefficients) -> Coefficients:
    """Return coefficients under the name of their rule if they are its own, else ``"custom"``."""
    rule = _RULES.get(coefficients.rule)
    own = rule is not None and rule(coefficients.groups) == coefficients
    return coefficients if own else attrs.evolve(coefficients, rule="custom")


def _presence(names: tuple[str, ...]) -> Coefficients:
    """Text alone: the base. One modality: its parent whole. Several: the merged delta.

    Only the sets that differ from the rest are listed: all of them are 2^M.
    """
    table = {frozenset[str](): tuple(0.0 for _ in names)}
    for one in _modalities(names):
        table[frozenset({one})] = tuple(float(name == one) for name in names)
    several = _merged(names).default if MERGED in names else (SEVERAL,) * len(names)
    return Coefficients(names, several, table, rule="presence")


def _merged(names: tuple[str, ...]) -> Coefficients:
    """Make every prompt run on the merged delta."""
    return Coefficients(names, tuple(float(name == MERGED) for name in names), rule="merged")


_RULES: Mapping[str, Callable[[tuple[str, ...]], Coefficients]] = MappingProxyType(
    {
        "presence": _presence,
        "merged": _merged,
        "uniform": lambda names: Coefficients(
            names, (1 / len(names),) * len(names), rule="uniform"
        ),
        "mean": lambda names: Coefficients(names, (1 / len(names),) * len(names), rule="mean"),
        "sum": lambda names: Coefficients(names, (1.0,) * len(names), rule="sum"),
        "zero": lambda names: Coefficients(names, (0.0,) * len(names), rule="zero"),
    }
)


def _modalities(groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in groups if name != MERGED)


def _from_table(spec: Mapping[Any, Any], names: tuple[str, ...]) -> Coefficients:
    base = _presence(names)
    table = dict(base.table)
    for key, row in spec.items():
        present = _check_set(key, names)
        table[present] = _row(row, names)
    return Coefficients(names, base.default, table)


def _check_set(key: Any, groups: tuple[str, ...]) -> frozenset[str]:
    names = _modalities(groups)
    if not isinstance(key, frozenset) or not key <= set(names):
        shown = sorted(map(str, key)) if isinstance(key, frozenset) else key
        raise SpecError(
            f"coefficients: {shown!r} is not a set of the modalities {', '.join(names)}",
            subject="coefficients",
        )
    return key


def _row(values: Any, names: tuple[str, ...]) -> tuple[Value, ...]:
    if not isinstance(values, Mapping):
        raise SpecError(
            f"coefficients need a value for each of {', '.join(names)}; got {values!r}",
            subject="coefficients",
        )
    wrong = sorted({str(key) for key in values} ^ set(names))
    if wrong:
        raise SpecError(
            f"coefficients need one value for each of {', '.join(names)}; missing or unknown: "
            f"{', '.join(wrong)}",
            subject="coefficients",
        )
    return tuple(_value(name, values[name]) for name in names)


def _value(name: str, value: Any) -> Value:
    if isinstance(value, list | tuple):
        if not value:
            raise SpecError(
                f"coefficients: the list of {name!r} is empty; give one number for each layer",
                subject="coefficients",
            )
        return tuple(_number(f"an entry of the list of {name!r}", one) for one in value)
    return _number(f"the value of {name!r}", value)


def _number(what: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise SpecError(
            f"coefficients: {what} must be a finite number, found {value!r}",
            subject="coefficients",
        )
    return float(value)


def show_value(value: Value | Sequence[float]) -> str:
    """Return a coefficient for people: a number, or the mean and the range over layers."""
    if isinstance(value, int | float):
        return f"{value:g}"
    return f"{sum(value) / len(value):.3g} ({min(value):.3g} to {max(value):.3g} by layer)"
