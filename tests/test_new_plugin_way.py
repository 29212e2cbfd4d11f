"""The whole way of a new plugin, as its author goes it: from the template to answers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modalloy.authoring import write_plugin

NAME = "tilt-sensor"
ASKED = 32
"""Held-out signals; all 100 that measure.py takes by default would take half a minute more."""


def run(cwd: Path, site: Path, *command: str) -> str:
    """Run a command where the plugin is installed beside what the environment has."""
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


def write_and_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a plugin fresh from the template, and the place that it is installed to."""
    plugin, site = tmp_path / NAME, tmp_path / "site"
    with monkeypatch.context() as patched:
        patched.setenv("HOME", str(tmp_path / "home"))
        write_plugin(plugin, {"name": NAME}, defaults=True)
    install(plugin, site)
    return plugin, site


def install(plugin: Path, site: Path) -> None:
    shutil.rmtree(site, ignore_errors=True)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site))
    run(plugin, site, "-m", "pip", "install", *options, ".")


@pytest.mark.slow
@pytest.mark.household
def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, site = write_and_install(tmp_path, monkeypatch)
    reports = json.loads(run(tmp_path, site, "-m", "modalloy", "plugins", "--json"))
    report = next(one for one in reports if one["name"] == NAME)
    assert (report["status"], report["modalities"]) == ("loaded", [NAME])
    assert report["parents"] == []

    tested = run(plugin, site, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert re.search(r"\d\d passed", tested)

    run(plugin, site, "recipe/make_data.py")
    parent = plugin / "src/modalloy_tilt_sensor/parents/smollm2-decoupled"
    places = ("--data", "recipe/data", "--work", "recipe/work")
    train = ("train", "recipe/train.yml", str(parent), *places, "--json")
    trained = json.loads(run(plugin, site, "-m", "modalloy", *train))
    assert trained["seconds"] < 300

    install(plugin, site)  # now with the parent in its wheel
    checked = run(tmp_path, site, "-m", "modalloy", "plugins", "check", NAME)
    assert f"parent '{NAME}-smollm2-decoupled'" in checked
    assert checked.splitlines()[-1].endswith(" 0 failed")
    run(plugin, site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py")

    model = tmp_path / "model"
    run(tmp_path, site, "-m", "modalloy", "compose", str(model))
    config = json.loads((model / "config.json").read_text("utf-8"))
    composed = {"audio", "pointcloud", NAME, "video", "vision"}
    assert set(config["modalities"]) == composed

    measured = run(plugin, site, "recipe/measure.py", str(model), "--count", str(ASKED))
    low = re.search(r"interval ([\d.]+)% to", measured)
    assert low, measured
    assert float(low[1]) > 50, measured  # chance is 25

    signal = plugin / "recipe/data/signals/test-000.txt"
    question = "What does the signal do?"
    ask = ("ask", str(model), question, "--tilt-sensor", str(signal))
    assert run(tmp_path, site, "-m", "modalloy", *ask).strip() == "It rises."
