"""The documentation: what it says of the code is so, and its site builds strictly, by itself."""

import ast
import importlib
import inspect
import json
import os
import re
import runpy
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
from modalloy import hookspecs, testing
from modalloy.cli.main import COMMANDS
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.merging.merged import Merged
from modalloy.merging.rules import Rule
from modalloy.training.config import LoraConfig, StageConfig, TrainConfig

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
    names = (ROOT / "docs/reference/authoring.md").read_text(encoding="utf-8")
    tested = names.partition("## Testing")[2]
    assert re.findall(r"^### (\w+)$", tested, re.MULTILINE) == testing.__all__


@pytest.mark.parametrize(
    ("opening", "kind"),
    [
        ("| `name` |", TrainConfig),
        ("`lora`:\n", LoraConfig),
        ("`connector_stage` and `tuning_stage`:\n", StageConfig),
    ],
)
def test_training_has_every_key_and_default(opening: str, kind: Any) -> None:
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    table = page[page.index(opening) :].split("\n\n")[opening.endswith("\n")]
    rows = dict(re.findall(r"^\| `(\w+)` \| ?(.*?) ?\|", table, re.MULTILINE))
    fields = {field.name: field.default for field in attrs.fields(kind)}
    assert list(rows) == list(fields)
    for name, told in rows.items():
        if told and told not in _TOLD_IN_WORDS:
            assert fields[name] == yaml.safe_load(told.strip("`")), name


_TOLD_IN_WORDS = ("none", "the base's own", "the seven of Llama", "`learning_rate`")


@pytest.mark.parametrize("modality", ["vision", "audio", "video", "pointcloud"])
def test_training_tells_what_the_shipped_parents_took(modality: str) -> None:
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    folder = ROOT / f"plugins/{modality}/src/modalloy_{modality}/parents"
    own, naive = (
        json.loads((folder / f"smollm2-{kind}/parent.json").read_text("utf-8"))["training"]
        for kind in ("decoupled", "naive")
    )
    stages = ("connector_stage", "tuning_stage")
    seconds = [own["results"][stage]["seconds"] for stage in stages]
    seconds += [own["seconds"], naive["results"]["tuning_stage"]["seconds"], naive["seconds"]]
    steps = " + ".join(str(own["config"][stage]["steps"]) for stage in stages)
    cells = " | ".join(f"{one:,.0f} s" for one in seconds)
    assert f"| `{modality}` | {steps} | {cells} |\n" in page


def test_the_readme_has_the_numbers_of_the_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = json.loads((ROOT / "docs/results.json").read_text(encoding="utf-8"))["cells"]

    def shown(model: str, kind: str, scoring: str = "options") -> str:
        return f"{100 * cells[model][kind][scoring]['right']['value']:.1f}"

    for words, name in _PARENTS.items():
        for strategy in ("decoupled", "naive"):
            parent = f"{name}-{strategy}"
            naming, exact = (shown(parent, f"{name}-mc", how) for how in ("options", "exact"))
            captions, attributes = (shown(parent, f"{name}-{k}") for k in ("caption", "attribute"))
            row = f"| {words}, {strategy} | {naming} ({exact}) | {captions} | {attributes} |\n"
            assert row in readme
    for words, name in _COMPOSITIONS.items():
        kinds = (f"mcub-{kind}-{_ALL}-noisy" for kind in ("object", "attribute"))
        assert f"| {words} | {' | '.join(shown(name, kind) for kind in kinds)} |\n" in readme


_ALL = "audio+pointcloud+video+vision"
_PARENTS = {"pictures": "vision", "words": "audio", "clips": "video", "point clouds": "pointcloud"}
_COMPOSITIONS = {
    "connectors alone, no delta": "connectors",
    "one delta trained on all modalities jointly": "joint",
    "the same, coefficients learned by layer": "joint-layers",
    "NaiveMC, mean": "naive-mean",
    "NaiveMC, sum": "naive-sum",
    "NaiveMC, factors averaged apart": "factor-mean",
    "NaiveMC, TIES": "ties",
    "MMER": "mmer",
    "naive parents, decoupled afterwards": "post-hoc",
    "DAMC, text by SWUDI": "swudi",
    "DAMC, text by TIES": "damc-ties",
    "DAMC, uniform": "damc-uniform",
    "DAMC, grid search": "damc-grid",
    "DAMC, presence (the default)": "damc-presence",
    "DAMC, coefficients learned by layer": "damc-layers",
}


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = runpy.run_path(str(ROOT / "docs/_tools/build.py"))["named"]
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    plugins = {str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/README.md")}
    assert {*named(settings["nav"])} == {"index.md", *pages, *plugins}


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
        ("plugins/vision/README.md", "../../docs/nowhere.md"),
        ("plugins/audio/README.md", "../vision/README.md#nothing"),
        ("examples/timeseries/README.md", "../nowhere.md"),
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


@pytest.mark.parametrize("name", ["recipes.md", "plugins/audio/README.md", "site.css"])
def test_what_the_settings_name_is_there(copy: Path, name: str) -> None:
    path = copy / "mkdocs.yml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(name, f"no-{name}"), encoding="utf-8")
    try:
        done = build(copy)
    finally:
        path.write_text(text, encoding="utf-8")
    assert done.returncode != 0
    assert f"mkdocs.yml: no-{name} leads to no file" in done.stderr


def test_the_docs_group_is_what_the_makefile_builds_with() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    assert [one.partition(">")[0] for one in groups["docs"]] == ["zensical"]
    assert {"include-group": "docs"} in groups["dev"]
