"""Runs the blocks of a page, one after another, in a directory of the page's own."""

import importlib
import inspect
import json
import os
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import modalloy
from docs import unrun
from docs.commands import (
    check_possible,
    check_project,
    check_requirement,
    outputs,
    parse_modalloy,
    run_modalloy,
    run_script,
)
from docs.fences import ROOT, Block, words
from docs.standins import EXAMPLE, STAND_INS, TRAINED, lay_out
from fakes import Site
from modalloy.evaluation.questions import Question
from modalloy.hookspecs import GROUP
from modalloy.merging.recipe import parse_recipe
from modalloy.modality import resolve
from modalloy.registry import Registry
from modalloy.structured import structure
from modalloy.training.config import read_config
from modalloy.training.data import ChatDataset

_ENCODER = "encoder "

TEXTS = ("text",)
"""Languages of blocks that are no code: formats, signatures, what a command prints."""


def check_quoted(block: Block) -> None:
    """Check that a block that names a file of the repository is a piece of it."""
    assert block.title is not None
    quoted, lines = (
        [line.strip().rstrip(",") for line in text.splitlines() if line.strip()]
        for text in (block.text, (ROOT / block.title).read_text(encoding="utf-8"))
    )
    starts = range(len(lines) - len(quoted) + 1)
    assert any(lines[start : start + len(quoted)] == quoted for start in starts), (
        f"{block.where}: {block.title} does not hold this"
    )


class Page:
    """A page that is being run.

    Attributes:
        name: Its path in the repository.
        place: The directory that it runs in, also the current one.
        site: Where plugins that the page writes are installed.
        patch: Undoes what the page changes.
        model: The composition ``my-model`` of the page's world.
        installed: Whether the page has installed a plugin of its own.
        begun: A plugin that the page has made from the template, and not edited yet.
    """

    def __init__(
        self, name: str, place: Path, site: Site, patch: pytest.MonkeyPatch, model: Path
    ) -> None:
        self.name, self.place, self.site, self.patch, self.model = name, place, site, patch, model
        self.used: set[tuple[str, str]] = set()
        self.installed = False
        self.begun: Path | None = None

    def prepare(self, base: Path) -> None:
        """Lay out the composition and all stand-ins."""
        self.base = base
        shutil.copytree(self.model, self.place / "my-model", copy_function=os.link)
        for name, make in STAND_INS.get(self.name, {}).items():
            if not (self.place / name).exists():
                make(self.place / name, base)

    def run(self, block: Block) -> None:
        """Run one block; whatever is no code must say so, and what is unknown fails."""
        assert block.fenced, f"{block.where}: put code between fences"
        if block.language == "console":
            for command in block.commands():
                self.command(command)
        elif block.language in TEXTS:
            lines = block.text.splitlines()
            commands = [line for line in lines if line.startswith(("$ ", "modalloy "))]
            generated = self.name.startswith("docs/reference/")
            assert generated or not commands, f"{block.where}: commands belong into console blocks"
        else:
            runner = getattr(self, f"run_{block.language}", None)
            assert runner, (
                f"{block.where}: nothing runs blocks of {block.language or 'no language'}"
            )
            if block.title and (ROOT / block.title).is_file():
                check_quoted(block)
                self.finish(block.title)
                return
            if block.title and not block.title.startswith(_ENCODER):
                self.write(block.title, block.text)
            runner(block)

    def write(self, title: str, text: str) -> None:
        path = self.place / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def finish(self, quoted: str) -> None:
        """Make of the plugin that the page began from the template what the page quotes."""
        if self.begun is not None and Path(quoted).is_relative_to(EXAMPLE):
            shutil.rmtree(self.begun)
            lay_out(self.begun, trained=False)
            forget(self.begun)
            self.begun = None

    def command(self, line: str) -> None:
        given = words(line)
        key = (self.name, line.partition("  #")[0].strip())
        if key in unrun.COMMANDS:
            self.used.add(key)
            check_possible(given)
            self.stand_in(given)
        elif given[0] == "modalloy":
            self.modalloy(given[1:])
        elif given[:2] == ["pip", "install"]:
            self.pip(given[2:])
        elif given[0] == "cd":
            self.patch.chdir(given[1])
        elif given[0] == "python":
            run_script(given[1:], self.patch)
        else:
            pytest.fail(f"{self.name}: {line}: neither run nor listed in tests/docs/unrun.py")

    def modalloy(self, arguments: list[str]) -> None:
        """Run a command; what an earlier one of the page wrote there makes room."""
        _, parameters = parse_modalloy(arguments)
        for path in outputs(parameters):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if arguments[0] == "new-plugin":
            self.patch.setenv("HOME", str(self.place / "home"))  # where copier keeps settings
            self.begun = self.place / parameters["directory"] / parameters["name"]
        if arguments == ["compose", "my-model"] and not self.installed:  # how it was made
            shutil.copytree(self.model, "my-model", copy_function=os.link)
            return
        run_modalloy(arguments, self.patch)

    def stand_in(self, given: list[str]) -> None:
        """Make what a command that is not run would have written, if a later one needs it."""
        make = TRAINED.get((self.name, given[3])) if given[:2] == ["modalloy", "train"] else None
        if make is not None:
            make(Path(given[3]), self.base)

    def pip(self, arguments: list[str]) -> None:
        """Install what the page wrote; the environment has all else behind it, which is checked."""
        queue = list(arguments)
        while queue:
            word = queue.pop(0)
            if word == "-e":
                project = queue.pop(0)
                if (self.place / project / "pyproject.toml").is_file() and (
                    not (self.place / project).resolve().is_relative_to(ROOT)
                ):
                    self.install(self.place / project)
                else:
                    check_project(project)
            elif not word.startswith("-"):
                check_requirement(word)

    def install(self, project: Path) -> None:
        """Install a distribution that the page wrote as pip would leave it, editable."""
        self.installed = True
        data = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        ((name, module),) = data["entry-points"][GROUP].items()
        folder = data["name"].replace("-", "_")  # a hyphen would end the name
        info = self.site.path / f"{folder}-{data['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {data['name']}\nVersion: {data['version']}\n"
        )
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")
        self.patch.syspath_prepend(str(project / "src"))
        importlib.invalidate_caches()

    def run_python(self, block: Block) -> None:
        """Run code, the tests that it defines, and the hooks that it implements."""
        if block.title and "/src/" in block.title:
            compile(block.text, block.where, "exec")
            return  # it is run where its plugin is
        if block.title:
            self.patch.syspath_prepend(str(self.place / Path(block.title).parents[1] / "src"))
        names: dict[str, Any] = {"__name__": "snippet", "__file__": str(self.place / "snippet.py")}
        exec(compile(block.text, block.where, "exec"), names)  # noqa: S102 - our own pages
        hooks = {n: f for n, f in names.items() if hasattr(f, f"{GROUP}_impl")}
        if hooks:
            report = Registry().register(type("Snippet", (), _static(hooks)), name="snippet")
            assert report.status == "loaded", str(report)
        for name, function in names.items():
            if name.startswith("test_"):
                assert not inspect.signature(function).parameters, name
                function()

    def run_toml(self, block: Block) -> None:
        found = tomllib.loads(block.text)
        if "entry-points" in found.get("project", found):
            assert GROUP in found.get("project", found)["entry-points"], block.where

    def run_yaml(self, block: Block) -> None:
        """Read a recipe or a training configuration by its own reader."""
        data = yaml.safe_load(block.text)
        if "merge_method" in data:
            parse_recipe(data, block.where)
            self.write(block.title or "recipe.yml", block.text)
        elif "modality" in data:
            self.write(block.title or "config.yml", block.text)
            read_config(self.place / (block.title or "config.yml"))
        else:
            pytest.fail(f"{block.where}: neither a merge recipe nor a training configuration")

    def run_json(self, block: Block) -> None:
        """Read a question, a chat, published questions, or an encoder's configuration as such."""
        data = json.loads(block.text)
        if block.title and block.title.startswith(_ENCODER):
            encoder = Registry.discover().encoder(block.title.removeprefix(_ENCODER))
            shape = resolve(encoder.output_shape)(data)
            for name, value in zip(("tokens", "features"), shape, strict=True):
                assert data.get(name, value) == value, f"{block.where}: {name} is {value}"
        elif isinstance(data, list):
            assert {"id", "conversations", "modal_inputs"} <= data[0].keys(), block.where
        elif "options" in data:
            structure(data, Question, block.where)
        else:
            self.write("chats.jsonl", json.dumps(data) + "\n")
            _, processor = modalloy.load(self.model)
            assert len(ChatDataset([self.place / "chats.jsonl"], processor)) == 1


def _static(hooks: dict[str, Any]) -> dict[str, Any]:
    return {name: staticmethod(function) for name, function in hooks.items()}


def forget(folder: Path) -> None:
    """Forget modules that were imported from a folder."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    importlib.invalidate_caches()
