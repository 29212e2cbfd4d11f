"""Fixtures that every test may use."""

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import Site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes minutes: begun last, it would keep one of several workers waiting."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Yield an empty place to install fake plugins; really installed ones are out of sight."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.delenv("MODALLOY_PLUGINS", raising=False)
    monkeypatch.delenv("MODALLOY_DISABLE", raising=False)
    find = importlib.metadata.MetadataPathFinder.find_distributions
    here = importlib.metadata.DistributionFinder.Context(path=[str(path)])
    monkeypatch.setattr(
        importlib.metadata.MetadataPathFinder, "find_distributions", lambda *_: find(here)
    )
    before = set(sys.modules)
    yield Site(path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(path)):
            del sys.modules[name]
    importlib.invalidate_caches()
