"""Coefficients: rules, tables, what is stored of them, and what is refused."""

import json
import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalloy.composition.coefficients import (
    SEVERAL,
    Coefficients,
    make_coefficients,
    named_honestly,
)
from modalloy.errors import SpecError

DAMC, NAIVE = ("presence", "uniform"), ("mean", "sum")
BOTH = frozenset({"a", "b"})


def test_presence_restores_each_parent_on_its_own_ground() -> None:
    made = make_coefficients(None, ["b", "a"], DAMC)
    assert (made.rule, made.groups, made.by_presence) == ("presence", ("a", "b"), True)
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


def test_the_merged_delta_serves_where_several_modalities_are_present() -> None:
    made = make_coefficients("presence", ["merged", "z", "a"], ("presence", "merged"))
    assert made.groups == ("a", "z", "merged"), "the widest group stands at the end"
    assert made.row(frozenset()) == (0.0, 0.0, 0.0)
    assert made.row(frozenset("a")) == (1.0, 0.0, 0.0)
    assert made.row(frozenset("z")) == (0.0, 1.0, 0.0)
    assert made.row(frozenset("az")) == (0.0, 0.0, 1.0)
    always = make_coefficients("merged", ["merged", "z", "a"], ("presence", "merged"))
    assert (always.by_presence, always.default) == (False, (0.0, 0.0, 1.0))
    both = {frozenset("az"): {"a": 0.25, "z": 0, "merged": 1.5}}
    assert make_coefficients(both, made.groups, DAMC).row(frozenset("az")) == (0.25, 0.0, 1.5)


def test_presence_lists_no_more_rows_than_modalities() -> None:
    names = [f"m{number:02}" for number in range(18)]
    made = make_coefficients("presence", names, DAMC)
    assert len(made.table) == 19
    assert made.row(frozenset(names)) == made.row(frozenset(names[:2])) == (SEVERAL,) * 18
    assert len(json.dumps(made.to_dict())) < 10_000


def test_coefficients_saved_with_every_set_listed_still_read() -> None:
    row = {"a": 0.5, "b": 0.5}
    old = {"rule": "presence", "default": row, "table": {"": {"a": 0, "b": 0}, "a+b": row}}
    assert Coefficients.from_dict(old).row(BOTH) == (0.5, 0.5)


def test_changed_coefficients_lose_the_name_of_their_rule() -> None:
    made = make_coefficients("presence", "ab", DAMC)
    assert named_honestly(made) == made
    changed = attrs.evolve(made, default=(0.7, 0.7))
    assert named_honestly(changed) == attrs.evolve(changed, rule="custom")
    assert named_honestly(attrs.evolve(made, rule="no-such")).rule == "custom"


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
    rows = {frozenset("abc"): dict.fromkeys("abc", 1), BOTH: dict.fromkeys("abc", 0.7)}
    stored = make_coefficients(rows, "cba", DAMC).to_dict()
    assert list(stored["table"]) == ["", "a", "b", "c", "a+b", "a+b+c"]
    stored = make_coefficients("presence", "ba", DAMC).to_dict()
    assert list(stored["table"]) == ["", "a", "b"]
    assert stored["default"] == {"a": SEVERAL, "b": SEVERAL}


@pytest.mark.parametrize(
    ("spec", "rules", "message"),
    [
        ("presense", DAMC, ("'presense' are not known to this merge method; expected 'presence', "
         "'uniform' or values by group. Did you mean 'presence'?")),
        ("presence", NAIVE, "expected 'mean', 'sum' or values by group"),
        ({"a": 1}, DAMC, "one value for each of a, b; missing or unknown: b"),
        ({"a": 1, "b": 1, "c": 1}, DAMC, "missing or unknown: c"),
        ({}, DAMC, "missing or unknown: a, b"),
        ({"a": math.nan, "b": 1}, DAMC, "the value of 'a' must be a finite number, found nan"),
        ({"a": True, "b": 1}, DAMC, "the value of 'a' must be a finite number, found True"),
        ({"a": "1", "b": 1}, DAMC, "the value of 'a' must be a finite number, found '1'"),
        ({BOTH: {"a": 1, "b": 1}}, NAIVE, "need a method that routes by presence"),
        ({frozenset({"z"}): {"a": 1, "b": 1}}, DAMC, "['z'] is not a set of the modalities a, b"),
        ({BOTH: {"a": 1, "b": 1}, "a": 1}, DAMC, "'a' is not a set of the modalities a, b"),
        ({frozenset({"merged"}): {"a": 1, "b": 1}}, DAMC, "['merged'] is not a set of the modal"),
        ("merged", DAMC, "'merged' are not known to this merge method"),
        ({BOTH: 0.5}, DAMC, "need a value for each of a, b; got 0.5"),
        (0.5, DAMC, "must be a rule's name, values by group, or values by frozenset"),
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
        ({}, "values by group under 'default'"),
        ({"default": [1]}, "values by group under 'default'"),
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
