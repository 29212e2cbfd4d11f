"""The documentation: what it says of the code is so, and its site builds strictly, by itself."""

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import typing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

import modalloy
from docs.fences import ROOT
from modalloy import hookspecs
from modalloy.cli.main import COMMANDS
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.merging.merged import Merged
from modalloy.merging.rules import Rule

CONTRACT = (ROOT / "docs/reference/contract.md").read_text(encoding="utf-8")
HOOKS = {n: f for n, f in vars(hookspecs).items() if hasattr(f, f"{hookspecs.GROUP}_spec")}


def registered(hook: Any) -> Any:
    """The class that a hook's callback takes, or ``None`` of the command line's."""
    ((_, parameter),) = inspect.signature(hook).parameters.items()
    arguments = typing.get_args(parameter.annotation)
    return arguments[0][0] if arguments else None


DECLARED = [kind for hook in HOOKS.values() if (kind := registered(hook)) is not None]
RETURNED = [LowRankDelta, LowRankPair, Merged, *typing.get_args(Rule), modalloy.Question]
KINDS = sorted({*DECLARED, *RETURNED, modalloy.Parameter}, key=lambda kind: kind.__name__)


def build(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs/_tools/build.py")]
    environment = {**os.environ, "NO_COLOR": "1"}
    # No proxy answers there: a build that fetches anything fails.
    environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return subprocess.run(  # noqa: S603 - our own tools
        command, capture_output=True, text=True, check=False, env=environment, cwd=root
    )


def test_pages_say_what_the_code_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/_tools"))
    reference = importlib.import_module("reference")
    assert reference.main(check=True) == 0, capsys.readouterr().out[-3000:]


def test_the_contract_has_all_hooks() -> None:
    source = Path(hookspecs.__file__).read_text(encoding="utf-8")
    written = [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("register_")
    ]
    assert sorted(HOOKS) == sorted(written)
    listed = re.findall(r"^\| `(register_\w+)\(", CONTRACT, re.MULTILINE)
    assert listed == written


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_the_contract_has_every_argument_of_a_hook(name: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    (row,) = [line for line in CONTRACT.splitlines() if line.startswith(f"| `{name}(")]
    assert row.startswith(f"| `{name}({arguments})` |")
    kind = registered(HOOKS[name])
    assert f"`{kind.__name__ if kind else 'typer.Typer'}`" in row
    assert kind is None or f"### {kind.__name__}\n" in CONTRACT


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_contract_has_every_attribute(kind: Any) -> None:
    section = re.split(r"^#+ ", CONTRACT.partition(f"### {kind.__name__}\n")[2], flags=re.MULTILINE)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section[0], re.MULTILINE))
    fields = {field.name: field for field in attrs.fields(kind) if not field.name.startswith("_")}
    assert rows.keys() == fields.keys()
    for name, default in rows.items():
        assert (default == "required") == (fields[name].default is attrs.NOTHING), name


def test_every_command_and_public_name_has_its_section() -> None:
    commands = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"## modalloy {name}\n" in commands
    names = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", names, re.MULTILINE) == modalloy.__all__


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def leaves(item: Any) -> list[str]:
        if isinstance(item, str):
            return [item]
        below = item.values() if isinstance(item, dict) else item
        return [leaf for one in below for leaf in leaves(one)]

    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert {*leaves(settings["nav"])} == {"index.md", *pages}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the site is made of."""
    root = tmp_path_factory.mktemp("site")
    for folder in ("docs", "core/modalloy", "plugins", "recipes", "examples"):
        shutil.copytree(
            ROOT / folder,
            root / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.onnx", "*.npz"),
        )
    for name in ("README.md", "mkdocs.yml", "LICENSE"):
        shutil.copyfile(ROOT / name, root / name)
    return root


class Resources(HTMLParser):
    """Collects what a page makes a browser fetch; links that a reader may follow are no part."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        names = ("src", "srcset", "data", "poster") + (("href",) if tag == "link" else ())
        self.found += [value for name in names if (value := given.get(name))]


def test_the_site_builds_strictly_and_fetches_nothing(copy: Path) -> None:
    done = build(copy)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    pages = sorted((copy / "site").rglob("*.html"))
    assert copy / "site/index.html" in pages
    assert copy / "site/reference/contract/index.html" in pages
    for page in pages:
        reader = Resources()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.found or page.name == "results.html", page
        foreign = [one for one in reader.found if re.match(r"(\w+:)?//", one)]
        assert not foreign, f"{page}: {foreign}"
    for sheet in (copy / "site").rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*['\"]?(\w+:)?//", text), sheet


@pytest.mark.parametrize(
    ("page", "link"),
    [
        ("README.md", "docs/nowhere.md"),
        ("README.md", "plugins/smell"),
        ("docs/bases.md", "nowhere.md"),
        ("docs/bases.md", "nowhere.svg"),
        ("docs/bases.md", "merging.md#no-such-part"),
        ("docs/bases.md", "../recipes/nowhere/README.md"),
        ("docs/tutorials/write-a-merge-method.md", "../reference/contract.md#nothing"),
    ],
)
def test_a_dead_link_fails_the_build(copy: Path, page: str, link: str) -> None:
    path = copy / page
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\n[there]({link})\n", encoding="utf-8")
    try:
        done = build(copy)
    finally:
        path.write_text(text, encoding="utf-8")
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert f"{page}: {link} leads to no file" in told or "anchor does not exist" in told, told


def test_the_docs_group_is_what_the_makefile_builds_with() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    assert [one.partition(">")[0] for one in groups["docs"]] == ["zensical"]
    assert {"include-group": "docs"} in groups["dev"]
