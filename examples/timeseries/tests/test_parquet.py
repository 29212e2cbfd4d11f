"""Parquet files, and what is said where pyarrow is missing."""

import datetime
import io
import sys
from typing import Any

import numpy as np
import pytest
from modalloy.errors import InputError, LimitError

from modalloy_timeseries.reading import read

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

LIMITS = {"bytes": 1 << 20, "values": 1000}


def packed(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def test_numbers_gaps_and_times() -> None:
    noon = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
    columns = {
        "timestamp": [noon, noon + datetime.timedelta(seconds=1.5)],
        "a": pa.array([1, None], pa.int16()),
        "b": [0.5, 1.5],
    }
    series = read(packed(columns), LIMITS)
    np.testing.assert_array_equal(series.values, [[1, 0.5], [np.nan, 1.5]])
    np.testing.assert_allclose(series.times, [0, 1.5])
    assert series.names == ("a", "b")


def test_times_as_numbers_and_dates() -> None:
    assert read(packed({"t": [3.0, 5.0], "a": [1, 2]}), LIMITS).times == pytest.approx([0, 2])
    days = [datetime.date(2026, 3, 1), datetime.date(2026, 3, 3)]
    assert read(packed({"date": days, "a": [1, 2]}), LIMITS).times == pytest.approx([0, 172800])


def test_several_row_groups() -> None:
    values = np.arange(500.0)
    series = read(packed({"a": values}, row_group_size=70), LIMITS)
    np.testing.assert_array_equal(series.values[:, 0], values)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1, 2], "id": ["x", "y"]}, "column 'id' is of type string, expected numbers"),
        ({"a": [[1], [2]]}, "expected numbers"),
        ({"a": [datetime.date(2026, 3, 1)] * 2}, "or times in a column named date"),
        ({"time": [datetime.date(2026, 3, 1), None], "a": [1, 2]}, "the time of row 2 is missing"),
        ({"a": pa.array([], pa.float64())}, "empty"),
        ({"a": pa.array([None, None], pa.float64())}, "holds no reading at all"),
        ({}, "empty"),
    ],
)
def test_what_is_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(packed(columns), LIMITS)


@pytest.mark.parametrize("keep", [4, 12, 100, -1])
def test_a_file_that_is_cut_off(keep: int) -> None:
    with pytest.raises(InputError, match="damaged or cut off"):
        read(packed({"a": np.arange(100.0)})[:keep], LIMITS)


def test_a_small_file_of_many_values_is_not_unpacked() -> None:
    data = packed({"a": np.zeros(10_000_000, dtype=np.int64)})
    assert len(data) < 1 << 20
    with pytest.raises(LimitError, match="1,000 values are allowed, it has 10,000,000"):
        read(data, LIMITS)


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed({"a": [1.0, 2.0]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'modalloy-timeseries\[parquet\]'"):
        read(data, LIMITS)
