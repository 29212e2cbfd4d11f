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
from docs.commands import check_possible, outputs, parse_modalloy, run_modalloy
from docs.fences import Block, words
from docs.standins import STAND_INS
from fakes import Site
from modalloy.evaluation.questions import Question
from modalloy.hookspecs import GROUP
from modalloy.merging.recipe import parse_recipe
from modalloy.registry import Registry
from modalloy.structured import structure
from modalloy.training.config import read_config
from modalloy.training.data import ChatDataset

TEXTS = ("text",)
"""Languages of blocks that are no code: formats, signatures, what a command prints."""


ROOT = Path(__file__).parents[2]


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
    """

    def __init__(
        self, name: str, place: Path, site: Site, patch: pytest.MonkeyPatch, model: Path
    ) -> None:
        self.name, self.place, self.site, self.patch, self.model = name, place, site, patch, model
        self.used: set[tuple[str, str]] = set()

    def prepare(self, base: Path) -> None:
        """Lay out the composition and all stand-ins."""
        shutil.copytree(self.model, self.place / "my-model", copy_function=os.link)
        for name, make in STAND_INS.get(self.name, {}).items():
            if not (self.place / name).exists():
                make(self.place / name, base)

    def run(self, block: Block) -> None:
        """Run one block; whatever is no code must say so, and what is unknown fails."""
        if not block.fenced:
            key = (self.name, block.text.strip().splitlines()[0])
            assert key in unrun.INDENTED, f"{block.where}: put code between fences"
            self.used.add(key)
        elif block.language == "console":
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
                return
            if block.title:
                self.write(block.title, block.text)
            runner(block)

    def write(self, title: str, text: str) -> None:
        path = self.place / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def command(self, line: str) -> None:
        given = words(line)
        key = (self.name, line.partition("  #")[0].strip())
        if key in unrun.WALKED:
            self.used.add(key)
        elif key in unrun.COMMANDS:
            self.used.add(key)
            check_possible(given)
        elif given[0] == "modalloy":
            self.modalloy(given[1:])
        elif given[:3] == ["pip", "install", "-e"] and (self.place / given[3]).is_dir():
            self.install(self.place / given[3])
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
        if arguments == ["compose", "my-model"]:  # which is how the model at hand was made
            shutil.copytree(self.model, "my-model", copy_function=os.link)
            return
        run_modalloy(arguments, self.patch)

    def install(self, project: Path) -> None:
        """Install a distribution that the page wrote as pip would leave it, editable."""
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
        """Read a question, a chat, or a list of published questions as such."""
        data = json.loads(block.text)
        if isinstance(data, list):
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
