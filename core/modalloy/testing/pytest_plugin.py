"""Fixtures for the tests of plugins; pytest finds this module by its entry point.

Importing it imports neither torch nor transformers nor any plugin: what a fixture needs is imported
when a test asks for it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from modalloy.registry import Registry


@pytest.fixture
def modalloy_registry(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Registry]":
    """Yield a registry that knows the core alone, to register what a test is about.

    While it is in use, discovery finds no installed plugin either, in this process or in one that
    it starts: what else is installed where the test runs changes nothing.
    """
    from modalloy.discovery import ALLOW_VARIABLE, DENY_VARIABLE
    from modalloy.registry import Registry

    monkeypatch.setenv(ALLOW_VARIABLE, "")
    monkeypatch.delenv(DENY_VARIABLE, raising=False)
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny Llama with random weights, made once a session."""
    from modalloy.testing.bases import tiny_base as make

    return make(tmp_path_factory.mktemp("modalloy") / "tiny-llama", family="llama")
