"""Good models that tests of hostile ones start from."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import modalloy
from safety.hostile import Box, Outside
from tiny import tiny_base
from toy import toy_parent, toy_registry


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a parent and a composition of them."""
    root = tmp_path_factory.mktemp("good")
    base = tiny_base(root / "base", seed=3)
    toy_parent(root / "parent", base, "sight", seed=1, prefix=1)
    model, processor = modalloy.compose(
        base, parents=[root / "parent"], registry=toy_registry("sight")
    )
    model.save_pretrained(root / "composition")
    processor.save_pretrained(root / "composition")
    return root


@pytest.fixture
def box(good: Path, tmp_path: Path) -> Callable[[str], Box]:
    """Makes a box around a copy of a good ``base``, ``parent`` or ``composition``."""

    def make(kind: str) -> Box:
        root = tmp_path / "box"
        root.mkdir()
        shutil.copytree(good / kind, root / "model")
        return Box(root, root / "model", Outside(root / "outside"))

    return make
