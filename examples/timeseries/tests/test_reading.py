"""What is read, and what is refused in which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modalloy.errors import InputError, LimitError

from modalloy_timeseries.reading import Series, read

LIMITS = {"bytes": 400, "values": 40}
NAN = float("nan")


def same(series: Series, values: Any, times: Any = None, names: Any = None) -> None:
    np.testing.assert_array_equal(series.values, np.array(values, dtype=float))
    if times is None:
        assert series.times is None
    else:
        np.testing.assert_allclose(series.times, times)
    if names is not None:
        assert series.names == names


@pytest.mark.parametrize(
    ("text", "values", "times", "names"),
    [
        ("a,b\n1,2\n3,4\n", [[1, 2], [3, 4]], None, ("a", "b")),
        ("1,2\n3,4", [[1, 2], [3, 4]], None, ("column 1", "column 2")),
        ("a;b\r\n1.5;\r\n;-4e1\r\n", [[1.5, NAN], [NAN, -40]], None, ("a", "b")),
        ("a\tb\nNA\tnull\n1\t2\n\n3\t-\n", [[NAN, NAN], [1, 2], [3, NAN]], None, ("a", "b")),
        ("1\n2\n3", [[1], [2], [3]], None, ("column 1",)),
        ("1 2\n3 4", [[1, 2], [3, 4]], None, ("column 1", "column 2")),
        ("Time,a\n10,1\n12.5,2", [[1], [2]], [0, 2.5], ("a",)),
        ("a,t\n1,10\n2,11", [[1], [2]], [0, 1], ("a",)),
        ("\ufeffdate,a\n2026-03-01,1\n2026-03-02,2", [[1], [2]], [0, 86400], ("a",)),
        ("2026-03-01T12:00:00Z,1\n2026-03-01T14:00:01+01:00,2", [[1], [2]], [0, 3601], None),
        ('"x, y",z\n1,2\n3,4\n', [[1, 2], [3, 4]], None, ("x, y", "z")),
    ],
)
def test_csv(text: str, values: Any, times: Any, names: Any, tmp_path: Path) -> None:
    same(read(text.encode(), LIMITS), values, times, names)
    file = tmp_path / "series.txt"
    file.write_bytes(text.encode())
    same(read(file, LIMITS), values, times, names)


@pytest.mark.parametrize(
    ("source", "values", "times"),
    [
        ([1, 2, 3], [[1], [2], [3]], None),
        (np.array([[1, NAN], [3, 4]]), [[1, NAN], [3, 4]], None),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]], None),
        ({"a": [1, 2], "time": [5, 6.5], "b": (3, 4)}, [[1, 3], [2, 4]], [0, 1.5]),
        (Series(np.array([[1.0], [2.0]]), ("a",), np.array([3.0, 4.0])), [[1], [2]], [0, 1]),
    ],
)
def test_objects(source: Any, values: Any, times: Any) -> None:
    same(read(source, LIMITS), values, times)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"\xff\xfe\x00", "neither CSV as UTF-8 text nor a parquet file"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 cells, expected 2"),
        (b"a,b\n1,2\n3,off\n", "line 3 holds 'off' in column 'b', expected a number"),
        (b"a\n1\n", "1 rows of readings are no series"),
        (b"a\n", "0 rows"),
        (b"time\n1\n2\n", "there is no column of readings"),
        (b"a,b\n1,\n2,\n", "column 'b' holds no reading at all"),
        (b"a\n1\ninf\n", "row 2 of column 'a' is infinite"),
        (b"time,a\n1,1\n1,2\n", "the time of row 2 is missing, infinite, or not after"),
        (b"time,a\n,1\n1,2\n", "line 2 has the time ''"),
        (b"time,a\nsoon,1\n1,2\n", "line 2 has the time 'soon'"),
        ("1,2", "give a path as a pathlib.Path"),
        (np.zeros((2, 2, 2)), r"found \(2, 2, 2\)"),
        (np.zeros(()), r"found \(\)"),
        ([], "there is no column of readings"),
        ({}, "expected columns of one length"),
        ({"a": [1, 2], "b": [1]}, "expected columns of one length"),
        ({"a": ["x", "y"]}, "column 'a' cannot be read"),
        ({"a": [1, 2], "time": [1, NAN]}, "the time of row 2 is missing"),
        (object(), "cannot be read from object"),
        (Path("nowhere.csv"), r"nowhere\.csv: it cannot be read"),
    ],
)
def test_what_is_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(source, LIMITS)


@pytest.mark.parametrize(
    ("source", "limit", "found"),
    [
        (b"1\n" * 201, "bytes", 402),
        (b"1\n" * 41, "values", 41),
        (np.zeros((21, 2)), "values", 42),
        ({"a": np.zeros(41)}, "values", 41),
        (Series(np.zeros((41, 1)), ("a",)), "values", 41),
    ],
)
def test_limits(source: Any, limit: str, found: int) -> None:
    with pytest.raises(LimitError, match=f"{LIMITS[limit]} {limit} are allowed") as caught:
        read(source, LIMITS)
    assert (caught.value.limit, caught.value.found) == (limit, found)
