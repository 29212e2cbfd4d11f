"""Strict reading of parsed data: each problem is named by its key."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from modalloy.errors import FormatError
from modalloy.structured import structure


@attrs.frozen(kw_only=True)
class Inner:
    rate: float
    names: list[str] = attrs.Factory(list)


@attrs.frozen(kw_only=True)
class Outer:
    title: str
    count: int = 0
    on: bool = False
    inner: Inner | None = None
    place: Path | None = None
    either: str | list[str] = ""
    table: dict[str, Inner] = attrs.Factory(dict)


def test_good_data() -> None:
    data = {
        "title": "t",
        "inner": {"rate": 1, "names": ["a"]},
        "place": "x/y",
        "either": ["p", "q"],
        "table": {"k": {"rate": 0.5}},
    }
    value = structure(data, Outer, "f.json")
    assert value == Outer(
        title="t",
        inner=Inner(rate=1.0, names=["a"]),
        place=Path("x/y"),
        either=["p", "q"],
        table={"k": Inner(rate=0.5)},
    )
    assert value.inner is not None
    assert type(value.inner.rate) is float


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "f.json: expected a mapping of keys, found list"),
        ({}, "title is missing"),
        ({"title": 3}, "title must be str, found 3"),
        ({"title": "t", "count": True}, "count must be int, found True"),
        ({"title": "t", "count": 1.0}, "count must be int, found 1.0"),
        ({"title": "t", "count": "1"}, "count must be int, found '1'"),
        ({"title": "t", "inner": {"rate": "2e-3"}}, ("rate must be float, found '2e-3' (YAML takes "
         "an exponent without a point before it for text: write 2.0e-3)")),
        ({"title": "t", "on": 1}, "on must be bool, found 1"),
        ({"title": "t", "coumt": 1}, ("coumt is not a known key (known: count, either, inner, on, "
         "place, table, title). Did you mean 'count'?")),
        ({"title": "t", "inner": {}}, "inner.rate is missing"),
        ({"title": "t", "inner": {"rate": "x"}}, "inner.rate must be float, found 'x'"),
        ({"title": "t", "inner": {"rate": 1, "rats": 1}}, "inner.rats is not a known key"),
        ({"title": "t", "inner": {"rate": 1, "names": ["a", 2]}}, "inner.names.1 must be str"),
        ({"title": "t", "inner": 3}, "inner"),
        ({"title": "t", "table": {"k": {}}}, "rate is missing"),
        ({"title": "t", "either": 3}, "either must be str or list, found 3"),
        ({"title": "t", "place": 3}, "place must be str, found 3"),
    ],
)  # fmt: skip
def test_each_problem_is_named(data: Any, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        structure(data, Outer, "f.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("f.json: ")
    assert caught.value.path == Path("f.json")


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(FormatError, match=r"title.*; .*count|count.*; .*title"):
        structure({"title": 1, "count": "x"}, Outer, "f.json")
