"""The encoder and the connector: shapes, determinism, and what they tell apart."""

from typing import Any

import numpy as np
import pytest
import torch
from modalloy.errors import InputError, SpecError

from modalloy_timeseries.configuration import output_shape
from modalloy_timeseries.connector import build as build_connector
from modalloy_timeseries.encoder import build, preprocess
from modalloy_timeseries.reading import read

LIMITS = {"bytes": 1 << 20, "values": 100_000}
RAMP, WAVE = np.arange(50.0), np.sin(np.arange(100.0))
SERIES = (
    RAMP,
    -np.arange(80.0),
    WAVE,
    np.stack([WAVE, WAVE[::-1], WAVE**2], axis=1),
    np.ones(3),
    [0.0, 1e-300],
    {"time": [0, 1, 100], "a": [1, np.nan, 3], "b": [0, 0, 1]},
)


def features(config: dict[str, Any], *sources: Any) -> torch.Tensor:
    items = [preprocess(read(source, LIMITS), config) for source in sources]
    stacked = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    with torch.no_grad():
        encoded: torch.Tensor = build(config)(**stacked)
    return encoded


@pytest.mark.parametrize(
    "config",
    [{}, {"tokens": 3, "samples": 8, "columns": 5}, {"tokens": 1, "samples": 1, "columns": 3}],
)
def test_shapes_are_as_declared(config: dict[str, Any]) -> None:
    found = features(config, *SERIES)
    assert found.dtype == torch.float32
    assert found.shape == (len(SERIES), *output_shape(config))
    assert found.isfinite().all()


def test_two_encoders_are_alike_and_a_batch_is_its_inputs_one_by_one() -> None:
    together = features({}, *SERIES)
    assert torch.equal(together, features({}, *SERIES))
    alone = torch.cat([features({}, source) for source in SERIES])
    torch.testing.assert_close(together, alone)


def test_the_course_and_the_scale_are_told_apart() -> None:
    first = preprocess(read(WAVE, LIMITS), {})
    moved = preprocess(read(1000 + 30 * WAVE, LIMITS), {})
    torch.testing.assert_close(first["level"], moved["level"], rtol=1e-3, atol=1e-3)
    assert moved["scale"][0, 0].item() == pytest.approx(np.log1p(1000), abs=0.01)
    assert (first["scale"] - moved["scale"]).abs().max() > 1


def test_times_place_the_readings() -> None:
    even = preprocess(read({"time": np.arange(100), "a": WAVE}, LIMITS), {})
    assert torch.equal(even["level"], preprocess(read(WAVE, LIMITS), {})["level"])
    late = {"time": np.arange(100.0) ** 2, "a": WAVE}
    assert (preprocess(read(late, LIMITS), {})["level"] - even["level"]).abs().max() > 0.1


def test_a_gap_is_bridged_and_its_share_told() -> None:
    ramp = np.arange(200.0)
    gap = ramp.copy()
    gap[50:100] = np.nan
    whole, bridged = (preprocess(read(one, LIMITS), {}) for one in (ramp, gap))
    torch.testing.assert_close(bridged["level"], whole["level"], rtol=0, atol=0.05)
    assert (whole["scale"][0, 2], bridged["scale"][0, 2]) == (0, 0.25)


def test_vibration_faster_than_the_intervals_is_not_lost() -> None:
    steady = 5 + 0.001 * np.arange(6400.0)
    shaking = steady + np.where(np.arange(6400) % 2, 1.0, -1.0)
    smooth, rough = (
        preprocess(read(one, LIMITS), {})["rough"][0].mean() for one in (steady, shaking)
    )
    assert smooth < 0.05 < 0.3 < rough


def test_a_column_that_is_not_there_is_zero() -> None:
    item = preprocess(read(RAMP, LIMITS), {})
    assert not item["level"][1:].any()
    assert not item["scale"][1:].any()


def test_too_many_columns_are_told() -> None:
    with pytest.raises(InputError, match=r"has 4 columns \(column 1, .*\), the encoder takes 3"):
        preprocess(read(np.eye(4), LIMITS), {})


def test_numbers_at_the_ends_of_their_range_are_finite() -> None:
    ends = ([1.7e308, -1.7e308], [5e-324, 0.0], [1e308, 1e308, -1e-308])
    assert features({}, *ends).isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patches": 3}, "patches is not a known key"),
        ({"tokens": "4"}, "must be int"),
        ({"tokens": 0}, "tokens must be from 1 to 1024, found 0"),
        ({"columns": 10**9}, "columns must be from 1 to 1024"),
        ({"tokens": 64, "samples": 64}, "tokens times samples must be at most 1024, found 4096"),
    ],
)
def test_a_wrong_configuration_is_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        output_shape(config)


def test_the_connector() -> None:
    module = build_connector({"width": 5}, 108, 48)
    assert module(torch.zeros(2, 4, 108)).shape == (2, 4, 48)
    with pytest.raises(SpecError, match="width must be from 1 to 65536, found 0"):
        build_connector({"width": 0}, 108, 48)
