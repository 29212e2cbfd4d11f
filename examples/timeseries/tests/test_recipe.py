"""The recipe: its data are the same every time and its configuration fits the plugin."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from modalloy import Registry
from modalloy.training.config import read_config

from modalloy_timeseries.reading import read

RECIPE = Path(__file__).parents[1] / "recipe"


@pytest.fixture(scope="module")
def make() -> dict[str, Any]:
    return runpy.run_path(str(RECIPE / "make_data.py"))


@pytest.fixture(scope="module")
def data(make: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    make["main"](directory)
    return directory


def test_every_log_can_be_read_and_every_state_comes_as_often(
    make: dict[str, Any], data: Path
) -> None:
    limits = Registry.discover(strict=False).modality("timeseries").limits
    for split, count in make["SPLITS"].items():
        lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        answers = []
        for line in lines:
            question, answer = json.loads(line)["messages"]
            series = read(data / question["content"][0]["path"], limits)
            assert series.names == tuple(make["PLACES"])
            assert series.times is not None
            answers.append(answer["content"])
        states = [answers.count(answer) for answer in make["STATES"].values()]
        assert set(states) == {count // 4 * 3 // 5}
        assert sum(states) + answers.count("Yes.") + answers.count("No.") == count
        assert answers.count("Yes.") * 3 == answers.count("No.") * 2


def test_the_data_are_the_same_every_time(make: dict[str, Any], data: Path, tmp_path: Path) -> None:
    make["main"](tmp_path)
    files = sorted(file.relative_to(data) for file in data.rglob("*") if file.is_file())
    assert files == sorted(f.relative_to(tmp_path) for f in tmp_path.rglob("*") if f.is_file())
    assert all((data / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_the_configuration_fits_plugin_and_data(data: Path) -> None:
    config = read_config(RECIPE / "train.yml")
    registry = Registry.discover(strict=False)
    assert registry.encoder(config.encoder.type).modality == config.modality == "timeseries"
    assert registry.connector(config.connector.type)
    named = {*config.connector_stage.data, *config.tuning_stage.data, *config.validation}
    assert all((data / name).is_file() for name in named)
    assert "test.jsonl" not in named


def test_a_linear_classifier_does_well_on_the_features(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(RECIPE / "probe.py"))["main"](data)
    told = capsys.readouterr().out.splitlines()
    kinds = [line.split(":")[0] for line in told]
    shares = [[float(one) for one in re.findall(r"([\d.]+)%", line)] for line in told]
    assert kinds == ["alarm", "state"]
    assert all(right > chance + 20 for right, chance in shares), told


def test_the_interval_of_a_share() -> None:
    low, high = runpy.run_path(str(RECIPE / "measure.py"))["interval"](50, 100)
    assert low == pytest.approx(0.4038, abs=1e-4)
    assert high == pytest.approx(0.5962, abs=1e-4)
