"""The package for authors as it is imported, its pytest plugin, and its checks of wheels."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import modalloy.testing
from fakes import Site, modality_source
from modalloy.testing import CheckFailed, check_wheel
from wheels import FULL, METADATA, POINTS, installed, wheel

__all__ = ["installed"]  # the fixture


def test_a_whole_wheel_passes(installed: Site, tmp_path: Path) -> None:
    checks = check_wheel("smell", wheel(tmp_path, *FULL, metadata=METADATA, points=POINTS))
    assert all(check.ok for check in checks)


@pytest.mark.parametrize(
    ("content", "check", "text"),
    [
        (
            {"names": FULL[:1] + FULL[2:]},
            "files",
            "the wheel lacks nose/weights.bin; is it ignored",
        ),
        ({"names": FULL[:2] + FULL[3:]}, "typed", "the wheel lacks nose/py.typed"),
        ({"names": FULL[:3]}, "licence", "the wheel lacks LICENSE"),
        ({"names": (*FULL, "tests/x.py")}, "package alone", "it would put tests beside nose"),
        (
            {"points": "[other]\nsmell = nose\n"},
            "entry point",
            "must have 'smell = nose' under [mod",
        ),
        (
            {"metadata": METADATA.replace("<0.2,", "")},
            "metadata",
            "it requires modalloy>=0.1",
        ),
        (
            {"metadata": METADATA.replace("License-Expression: MIT\n", "")},
            "licence",
            "METADATA names no licence",
        ),
        (
            {"metadata": METADATA.replace("License-File: LICENSE\n", "")},
            "licence",
            "METADATA has no License-File",
        ),
    ],
)
def test_what_a_wheel_lacks_is_told(
    installed: Site, tmp_path: Path, content: dict[str, Any], check: str, text: str
) -> None:
    names = content.pop("names", FULL)
    file = wheel(tmp_path, *names, **{"metadata": METADATA, "points": POINTS, **content})
    with pytest.raises(CheckFailed) as caught:
        check_wheel("smell", file)
    failed = {one.check: one.detail for one in caught.value.checks if one.ok is False}
    assert text in failed[check]


def test_every_name_is_there() -> None:
    assert sorted(modalloy.testing._LAZY) == modalloy.testing.__all__
    for name in modalloy.testing.__all__:
        assert getattr(modalloy.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = modalloy.testing.nothing


def python(
    *arguments: str, site: Site, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, *arguments],
        env=site.environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        cwd=cwd,
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.mark.parametrize("module", ["modalloy.testing", "modalloy.testing.pytest_plugin"])
def test_importing_costs_nothing(site: Site, module: str) -> None:
    code = f"""
import pytest, sys, time
start = time.process_time()
import {module}
heavy = {{"torch", "transformers", "numpy", "huggingface_hub"}} & set(sys.modules)
print(sorted(heavy), time.process_time() - start)
"""
    runs = [python("-c", code, site=site).stdout.split() for _ in range(3)]
    assert {run[0] for run in runs} == {"[]"}
    # Measured 0.03 s, of which attrs and pluggy are most.
    assert min(float(run[1]) for run in runs) < 0.15


AUTHORS = """
import os
import sys
import modalloy

def test_nothing_heavy():
    assert "torch" not in sys.modules

def test_registry(modalloy_registry):
    assert [r.name for r in modalloy_registry.reports] == ["builtin"]
    found = modalloy.Registry.discover()
    assert not found.modalities and os.environ["MODALLOY_PLUGINS"] == ""

def test_registry_after(modalloy_registry):
    assert not modalloy_registry.modalities
    from modalloy.testing import ToyPlugin
    modalloy_registry.register(ToyPlugin("sight"), name="sight")

def test_registry_is_new_each_time(modalloy_registry):
    assert not modalloy_registry.modalities

def test_base(tiny_base):
    assert (tiny_base / "config.json").is_file()
    global first
    first = tiny_base

def test_base_is_made_once(tiny_base):
    assert tiny_base == first
    assert "MODALLOY_PLUGINS" not in os.environ
"""


def test_the_fixtures_of_the_pytest_plugin(site: Site, tmp_path: Path) -> None:
    site.install("other", modality_source("other"))
    (tmp_path / "test_authors.py").write_text(AUTHORS)
    command = ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = python(*command, "-p", "modalloy.testing.pytest_plugin", site=site, cwd=tmp_path)
    assert "6 passed" in done.stdout, done.stdout


def test_pytest_finds_it_by_its_entry_point(site: Site, tmp_path: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (point,) = project["project"]["entry-points"]["pytest11"].items()
    info = site.path / "modalloy-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: modalloy\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[pytest11]\n{point[0]} = {point[1]}\n")
    (tmp_path / "test_none.py").write_text("def test(): pass\n")
    environment = site.environment()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    assert "modalloy_registry" in done.stdout
    assert "tiny_base [session scope]" in done.stdout
