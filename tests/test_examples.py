"""The worked example of a plugin: made from the template, tested, and unknown to all else."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from modalloy.authoring import ANSWERS, questions, read_answers, write_plugin

HOUSE = Path(__file__).parents[1]
EXAMPLE = HOUSE / "examples/timeseries"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place where the example is installed, apart from the environment."""
    place = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(place)]
    run(place, "-m", "pip", "install", *options, str(EXAMPLE))
    return place


def run(site: Path, *command: str, cwd: Path = HOUSE) -> str:
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=420,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_modalloy_lists_it_and_all_that_it_names_loads(site: Path) -> None:
    reports = json.loads(run(site, "-m", "modalloy", "plugins", "--json"))
    report = next(one for one in reports if one["name"] == "timeseries")
    assert (report["status"], report["distribution"]) == ("loaded", "modalloy-timeseries")
    checked = run(site, "-m", "modalloy", "plugins", "check", "timeseries")
    assert checked.splitlines()[-1].endswith(" 0 failed")


def test_its_own_tests_pass(site: Path) -> None:
    tested = run(site, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", cwd=EXAMPLE)
    assert re.search(r"\d\d passed", tested)
    assert "skipped" not in tested  # pyarrow is there


def test_nothing_else_knows_its_name() -> None:
    # Its content type and the names of its distribution and package hold this.
    name = re.compile("time[-_ ]?series", re.IGNORECASE)
    folders = ("core", "plugins", "recipes", "benchmarks")
    files = [f for folder in folders for f in (HOUSE / folder).rglob("*") if f.is_file()]
    kinds = {".py", ".yml", ".jinja", ".toml", ".md", ".json", ".jsonl", ".txt"}
    looked_at = [file for file in files if file.suffix in kinds]
    assert len(looked_at) > 200
    assert [str(f) for f in looked_at if name.search(f.read_text(encoding="utf-8"))] == []


def test_it_was_made_by_new_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    answers = {k: str(v) for k, v in read_answers(EXAMPLE).items() if k in questions()}
    write_plugin(tmp_path / "fresh", answers, defaults=True)
    fresh = [f.relative_to(tmp_path / "fresh") for f in (tmp_path / "fresh").rglob("*")]
    assert [str(name) for name in fresh if not (EXAMPLE / name).exists()] == []
    as_written = (
        "LICENSE",
        "src/modalloy_timeseries/connector.py",
        "src/modalloy_timeseries/__init__.py",
    )
    for name in as_written:
        assert (EXAMPLE / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    assert (EXAMPLE / ANSWERS).is_file()


def test_the_tutorial_quotes_the_example() -> None:
    page = (HOUSE / "docs/tutorials/write-a-modality.md").read_text(encoding="utf-8")
    quoted = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    assert len(quoted) > 5
    for title, block in quoted:
        text = (HOUSE / title).read_text(encoding="utf-8")
        assert any(textwrap.indent(block, " " * depth) in text for depth in (0, 4)), title


@pytest.mark.household
def test_its_parent_answers_beside_the_others(site: Path, tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "data"
    run(site, str(EXAMPLE / "recipe/make_data.py"), str(data))
    run(site, "-m", "modalloy", "compose", str(model))
    config = json.loads((model / "config.json").read_text("utf-8"))
    composed = {"audio", "pointcloud", "timeseries", "video", "vision"}
    assert set(config["modalities"]) == composed
    options = ("--data", str(data), "--count", "60")
    measured = run(site, str(EXAMPLE / "recipe/measure.py"), str(model), *options)
    low = dict(re.findall(r"^(\w+): .* interval ([\d.]+)% to", measured, re.MULTILINE))
    assert float(low["state"]) > 70, measured  # chance is 20
    assert float(low["alarm"]) > 60, measured  # and 60
