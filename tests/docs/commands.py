"""Command lines of the documentation: parsing all, and running those of modalloy itself."""

import contextlib
import importlib.metadata
import io
import runpy
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.main import get_command

from docs.fences import ROOT
from modalloy.cli.main import app, run

INSTALLED = {canonicalize_name(one.name): one for one in importlib.metadata.distributions()}
"""What the environment that runs this has; the worlds of the pages hide it later."""


def parse_modalloy(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command and its parameters, as typer reads them; wrong use raises SystemExit."""
    command: Any = get_command(app)
    context = command.context_class(command, info_name="modalloy")
    name, rest = "modalloy", arguments
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name, *rest = rest
        command = command.get_command(context, name)
        if command is None:
            pytest.fail(f"modalloy has no command {name!r}")
        if not hasattr(command, "commands"):
            break
        context = command.context_class(command, info_name=name, parent=context)
    if hasattr(command, "commands") and not rest:
        return name, {}
    try:
        return name, command.make_context(name, list(rest), parent=context).params
    except Exception as error:  # noqa: BLE001 - typer's errors of use have no public base
        pytest.fail(f"modalloy {' '.join(arguments)}: {getattr(error, 'message', error)}")


def run_modalloy(arguments: list[str], patch: pytest.MonkeyPatch) -> str:
    """Run a command line to its end and return what it printed; an error fails the test."""
    patch.setattr(sys, "argv", ["modalloy", *arguments])
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run()
        except SystemExit as end:
            code = end.code or 0
    assert code == 0, f"modalloy {' '.join(arguments)} left with {code}:\n{err.getvalue()}"
    return out.getvalue()


def run_script(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run ``python SCRIPT ARGUMENTS``; an error fails the test."""
    patch.setattr(sys, "argv", words)
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert not code, f"python {' '.join(words)} left with {code}"


def check_possible(words: list[str]) -> None:
    """Check that a command line that is not run could be."""
    program, *rest = words
    if program == "modalloy":
        parse_modalloy(rest)
    elif program == "make":
        command = ["make", "--dry-run", "--directory", str(ROOT), *rest]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - prints, runs nothing
    elif program == "python" and rest[0] == "-m":
        assert find_spec(rest[1]) is not None, rest[1]
    elif program == "python":
        assert Path(rest[0]).is_file(), rest[0]
    elif program == "accelerate":
        assert rest[0] == "launch"
        place = rest.index("-m")
        assert rest[place + 1] == "modalloy"
        parse_modalloy(rest[place + 2 :])
    else:
        pytest.fail(f"{program}: nothing is known of this program; see tests/docs/commands.py")


def check_project(path: str) -> None:
    """Check that the environment has what a distribution of the repository and its extras need."""
    path, _, extras = path.partition("[")
    project = _project(ROOT / path / "pyproject.toml")
    offered = project.get("optional-dependencies", {})
    asked = [extra for extra in extras.rstrip("]").split(",") if extra]
    assert {*asked} <= {*offered}, f"{path}[{extras}: it has the extras {', '.join(offered)}"
    for line in (*project["dependencies"], *(one for extra in asked for one in offered[extra])):
        check_requirement(line)


def check_requirement(text: str) -> None:
    """Check that the environment has what a requirement asks for."""
    wanted = Requirement(text)
    found = INSTALLED.get(canonicalize_name(wanted.name))
    assert found is not None, f"{text}: not in this environment"
    assert wanted.specifier.contains(found.version, prereleases=True), f"{text}: {found.version}"
    if wanted.extras:
        # Installed as they are, editable: what stands here may be newer than what pip noted.
        assert wanted.name == _project(ROOT / "pyproject.toml")["name"], text
        check_project(f".[{','.join(wanted.extras)}]")


def _project(file: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(file.read_text("utf-8"))["project"]
    return project


def outputs(parameters: dict[str, Any]) -> list[Path]:
    """Return what a command is to write and must not exist."""
    found = [parameters[name] for name in ("out", "output") if name in parameters]
    return [path for path in found if isinstance(path, Path)]
