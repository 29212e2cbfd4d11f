"""Coefficients: how much of each parent's text-stream delta a prompt gets.

A rule is either one coefficient per parent, or a table keyed by the set of modalities present in
the prompt. The table is what DAMC's adaptive adjustment (arXiv 2402.12750, section 3.3) becomes
when it may look at the prompt: with one modality present its parent's text delta gets 1 and the
others 0, so that the composition *is* that parent on its own ground.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from modalloy.errors import SpecError, nearest

Spec = str | Mapping[str, float] | Mapping[frozenset[str], Mapping[str, float]]
"""What a caller may give: a rule's name, one value per parent, or a table by set."""

SEVERAL = 0.5
"""Coefficient of each parent where several modalities are present, those absent included.

Measured on the household parents: better there than 1 / M and than leaving the absent ones out.
"""

_JOIN = "+"


@attrs.frozen
class Coefficients:
    """Coefficients of a composition.

    Attributes:
        modalities: Names, sorted; the order of every row.
        default: One value per modality, for sets that ``table`` does not hold.
        table: Values by set of modalities present.
        rule: Name of the rule they were made by, or ``"custom"``.
    """

    modalities: tuple[str, ...]
    default: tuple[float, ...]
    table: Mapping[frozenset[str], tuple[float, ...]] = attrs.Factory(dict)
    rule: str = "custom"

    @property
    def by_presence(self) -> bool:
        """Whether the coefficients of a prompt depend on what is in it."""
        return bool(self.table)

    def row(self, present: frozenset[str]) -> tuple[float, ...]:
        """Return the coefficients of a prompt that holds inputs of these modalities."""
        return self.table.get(present, self.default)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; sets become sorted names joined by ``+``."""

        def named(row: tuple[float, ...]) -> dict[str, float]:
            return dict(zip(self.modalities, row, strict=True))

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
                "coefficients need values by modality under 'default' and rows by set under "
                f"'table'; found {dict(data)!r}",
                subject="coefficients",
            )
        names = tuple(sorted(default))
        return cls(
            modalities=names,
            default=_row(default, names),
            table={
                _check_set(frozenset(filter(None, key.split(_JOIN))), names): _row(row, names)
                for key, row in rows.items()
            },
            rule=data.get("rule", "custom"),
        )


def make_coefficients(
    spec: Spec | None, modalities: Iterable[str], rules: tuple[str, ...]
) -> Coefficients:
    """Turn what a caller gave into coefficients.

    Args:
        spec: A rule's name, values by modality, or a table by set; ``None`` takes ``rules[0]``.
            In a table, the empty set (a prompt of text alone) gets 0 and sets that are left out
            get :data:`SEVERAL`, or 1 for a single modality, unless given.
        modalities: Names of the composition's modalities.
        rules: Names of the rules that the merge method knows, the default first.

    Raises:
        SpecError: An unknown rule or modality, a missing or non-finite value, or a table for a
            method that does not know the rule ``"presence"``.
    """
    names = tuple(sorted(modalities))
    spec = rules[0] if spec is None else spec
    if isinstance(spec, str):
        if spec not in rules:
            raise SpecError(
                f"coefficients {spec!r} are not known to this merge method; expected "
                f"{', '.join(map(repr, rules))} or values by modality.{nearest(spec, rules)}",
                subject="coefficients",
            )
        return _RULES[spec](names)
    if not isinstance(spec, Mapping):
        raise SpecError(
            f"coefficients must be a rule's name, values by modality, or values by frozenset of "
            f"modalities; got {spec!r}",
            subject="coefficients",
        )
    if not any(isinstance(key, frozenset) for key in spec):
        return Coefficients(names, _row(spec, names))
    if "presence" not in rules:
        raise SpecError(
            "coefficients by set of modalities need a method that routes by presence, such as "
            "'damc'; give one value per modality",
            subject="coefficients",
        )
    return _from_table(spec, names)


def _presence(names: tuple[str, ...]) -> Coefficients:
    """Text alone: the base. One modality: its parent whole. Several: :data:`SEVERAL` of each."""
    table = {frozenset[str](): tuple(0.0 for _ in names)}
    table |= {frozenset({one}): tuple(float(name == one) for name in names) for one in names}
    for count in range(2, len(names) + 1):
        for several in itertools.combinations(names, count):
            table[frozenset(several)] = tuple(SEVERAL for _ in names)
    return Coefficients(names, tuple(SEVERAL for _ in names), table, rule="presence")


_RULES = {
    "presence": _presence,
    "uniform": lambda names: Coefficients(names, (1 / len(names),) * len(names), rule="uniform"),
    "mean": lambda names: Coefficients(names, (1 / len(names),) * len(names), rule="mean"),
    "sum": lambda names: Coefficients(names, (1.0,) * len(names), rule="sum"),
}


def _from_table(spec: Mapping[Any, Any], names: tuple[str, ...]) -> Coefficients:
    base = _presence(names)
    table = dict(base.table)
    for key, row in spec.items():
        present = _check_set(key, names)
        table[present] = _row(row, names)
    return Coefficients(names, base.default, table)


def _check_set(key: Any, names: tuple[str, ...]) -> frozenset[str]:
    if not isinstance(key, frozenset) or not key <= set(names):
        shown = sorted(map(str, key)) if isinstance(key, frozenset) else key
        raise SpecError(
            f"coefficients: {shown!r} is not a set of the modalities {', '.join(names)}",
            subject="coefficients",
        )
    return key


def _row(values: Any, names: tuple[str, ...]) -> tuple[float, ...]:
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
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise SpecError(
                f"coefficients: the value of {name!r} must be a finite number, found {value!r}",
                subject="coefficients",
            )
    return tuple(float(values[name]) for name in names)
