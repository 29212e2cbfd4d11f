"""Command lines of the documentation: parsing all, and running those of modalloy itself."""

import contextlib
import io
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from docs.fences import ROOT
from modalloy.cli.main import app, run


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


def check_possible(words: list[str]) -> None:
    """Check that a command line that is not run could be."""
    program, *rest = words
    if program == "modalloy":
        parse_modalloy(rest)
    elif program == "make":
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in rest:
            assert re.search(rf"^{target}:", text, re.MULTILINE), f"the Makefile has no {target}"
    elif program == "accelerate":
        assert rest[0] == "launch"
        place = rest.index("-m")
        assert rest[place + 1] == "modalloy"
        parse_modalloy(rest[place + 2 :])
    elif program == "pip":
        _check_pip(rest)
    else:
        pytest.fail(f"{program}: nothing is known of this program; see tests/docs/commands.py")


def _check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    queue = words[1:]
    while queue:
        word = queue.pop(0)
        if word == "-e":
            path, _, extras = queue.pop(0).partition("[")
            project = tomllib.loads((ROOT / path / "pyproject.toml").read_text("utf-8"))["project"]
            asked = {extra for extra in extras.rstrip("]").split(",") if extra}
            assert asked <= project.get("optional-dependencies", {}).keys(), word
        elif not word.startswith("-"):
            # What the Makefile installs, to the letter.
            assert word in (ROOT / "Makefile").read_text(encoding="utf-8"), word


def outputs(parameters: dict[str, Any]) -> list[Path]:
    """Return what a command is to write and must not exist."""
    found = [parameters[name] for name in ("out", "output") if name in parameters]
    return [path for path in found if isinstance(path, Path)]
