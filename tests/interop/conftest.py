"""What tests of conversions share: one tiny base, and the installed plugins."""

from pathlib import Path

import pytest

from modalloy import Registry
from tiny import tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("bases") / "base", seed=3)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()
