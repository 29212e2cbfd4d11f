"""Coefficients: rules, tables, what is stored of them, and what is refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalloy.composition.coefficients import SEVERAL, Coefficients, make_coefficients
from modalloy.errors import SpecError

DAMC, NAIVE = ("presence", "uniform"), ("mean", "sum")
BOTH = frozenset({"a", "b"})


def test_presence_restores_each_parent_on_its_own_ground() -> None:
    made = make_coefficients(None, ["b", "a"], DAMC)
    assert (made.rule, made.modalities, made.by_presence) == ("presence", ("a", "b"), True)
    assert made.row(frozenset()) == (0.0, 0.0)
    assert made.row(frozenset({"a"})) == (1.0, 0.0)
    assert made.row(frozenset({"b"})) == (0.0, 1.0)
    assert made.row(BOTH) == (SEVERAL, SEVERAL)


@pytest.mark.parametrize(
    ("rule", "rules", "row"),
    [("uniform", DAMC, (0.5, 0.5)), ("mean", NAIVE, (0.5, 0.5)), ("sum", NAIVE, (1.0, 1.0))],
)
def test_rules_without_a_table_hold_for_every_prompt(
    rule: str, rules: tuple[str, ...], row: tuple[float, ...]
) -> None:
    made = make_coefficients(rule, "ab", rules)
    assert not made.by_presence
    assert {made.row(frozenset(key)) for key in ("", "a", "b", "ab")} == {row}


def test_a_table_overrides_only_the_sets_it_names() -> None:
    made = make_coefficients({BOTH: {"b": 0.75, "a": 0.25}}, "ab", DAMC)
    assert made.rule == "custom"
    assert made.row(BOTH) == (0.25, 0.75)
    assert made.row(frozenset({"b"})) == (0.0, 1.0)
    assert made.row(frozenset()) == (0.0, 0.0)


values = st.floats(-4, 4, allow_nan=False)


@given(
    rows=st.dictionaries(
        st.frozensets(st.sampled_from("abc")), st.tuples(values, values, values), max_size=8
    )
)
def test_what_is_stored_reads_back_the_same(rows: Any) -> None:
    spec = {key: dict(zip("abc", row, strict=True)) for key, row in rows.items()}
    made = make_coefficients(spec or "presence", "abc", DAMC)
    assert Coefficients.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_stored_sets_are_sorted_by_size_and_name() -> None:
    stored = make_coefficients("presence", "ba", DAMC).to_dict()
    assert list(stored["table"]) == ["", "a", "b", "a+b"]
    assert stored["default"] == {"a": SEVERAL, "b": SEVERAL}


@pytest.mark.parametrize(
    ("spec", "rules", "message"),
    [
        ("presense", DAMC, ("'presense' are not known to this merge method; expected 'presence', "
         "'uniform' or values by modality. Did you mean 'presence'?")),
        ("presence", NAIVE, "expected 'mean', 'sum' or values by modality"),
        ({"a": 1}, DAMC, "one value for each of a, b; missing or unknown: b"),
        ({"a": 1, "b": 1, "c": 1}, DAMC, "missing or unknown: c"),
        ({}, DAMC, "missing or unknown: a, b"),
        ({"a": math.nan, "b": 1}, DAMC, "the value of 'a' must be a finite number, found nan"),
        ({"a": True, "b": 1}, DAMC, "the value of 'a' must be a finite number, found True"),
        ({"a": "1", "b": 1}, DAMC, "the value of 'a' must be a finite number, found '1'"),
        ({BOTH: {"a": 1, "b": 1}}, NAIVE, "need a method that routes by presence"),
        ({frozenset({"z"}): {"a": 1, "b": 1}}, DAMC, "['z'] is not a set of the modalities a, b"),
        ({BOTH: {"a": 1, "b": 1}, "a": 1}, DAMC, "'a' is not a set of the modalities a, b"),
        ({BOTH: 0.5}, DAMC, "need a value for each of a, b; got 0.5"),
        (0.5, DAMC, "must be a rule's name, values by modality, or values by frozenset"),
    ],
)  # fmt: skip
def test_what_is_refused(spec: Any, rules: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_coefficients(spec, "ab", rules)
    assert message in str(caught.value)
    assert caught.value.subject == "coefficients"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "values by modality under 'default'"),
        ({"default": [1]}, "values by modality under 'default'"),
        ({"default": {"a": 1}, "table": []}, "rows by set under 'table'"),
        ({"default": {"a": 1}, "table": {"q": {"a": 1}}}, "['q'] is not a set of the modalities a"),
        ({"default": {"a": 1}, "table": {"a": {"b": 1}}}, "missing or unknown: a, b"),
        ({"default": {"a": None}}, "must be a finite number, found None"),
    ],
)
def test_damaged_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Coefficients.from_dict(data)
    assert message in str(caught.value)
