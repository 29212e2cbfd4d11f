"""Versions of plugins that are no plain numbers, and plugins that changed what they offer."""

import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from fakes import HEADER, Site
from modalloy.errors import PluginError
from test_requirements import Saved

__all__ = ["saved"]


@pytest.fixture
def saved(site: Site, tmp_path: Path) -> Saved:
    return Saved(site, tmp_path)


def advised(message: str) -> Requirement:
    """Return what a message says to install, as pip understands it."""
    return Requirement(message.split('pip install "')[1].split('"', maxsplit=1)[0])


@pytest.mark.parametrize(
    ("made", "now", "outcome"),
    [
        ("1.2+cu121", "1.2", "same"),
        ("1.2", "1.2+cu121", "same"),
        ("1.2+cu121", "1.1", "older"),
        ("1.2+cu121", "2.0", "refused"),
        ("1.2", "1.2rc1", "older"),
        ("1.2", "2.0rc1", "refused"),
        ("1.2.dev3", "1.2", "same"),
        ("1.2", "1.2.post1", "same"),
        ("1!1.2", "1.2", "refused"),
        ("1!1.2", "1!1.3", "same"),
    ],
)
def test_what_other_kinds_of_versions_go_with(
    saved: Saved, made: str, now: str, outcome: str
) -> None:
    saved.save(version=made)
    saved.install(now)
    if outcome == "refused":
        with pytest.raises(PluginError) as caught:
            saved.check()
        told = [str(caught.value)]
    else:
        told = saved.check()
        assert len(told) == (outcome == "older"), told
    for message in told:
        asked = advised(message).specifier
        assert asked.contains(made.partition("+")[0], prereleases=True)
        assert not asked.contains(now, prereleases=True)


def test_advice_for_an_older_one_keeps_to_what_the_parent_requires(saved: Saved) -> None:
    saved.save("modalloy-sight>=1.1,<1.5")
    saved.install("1.1.7")
    (message,) = saved.check()
    asked = advised(message).specifier
    assert [asked.contains(one) for one in ("1.1.7", "1.2", "1.5", "1.9")] == [
        False,
        True,
        False,
        False,
    ]


def replace(saved: Saved, source: str) -> None:
    """Have version 3.0 of the plugin installed, of another source."""
    saved.install(None)
    saved.site.install("modalloy-sight", source, name="sight", version="3.0")
    sys.modules.pop("modalloy_sight", None)


OTHER = f"""{HEADER}
@hookimpl
def register_modalities(register):
    register(Modality(
        name="seeing", api_version=API_VERSION, content_type="image",
        placeholder="<|image|>", read="json:loads", limits={{"bytes": 1000}},
    ))
"""


def test_a_plugin_that_offers_the_modality_no_more_is_told(saved: Saved) -> None:
    saved.save()
    replace(saved, OTHER)
    (message,) = saved.check()
    assert message.startswith(
        "model: modality 'sight' needs modalloy-sight 1.2, which 3.0 has no more; pip install"
    )


@pytest.mark.filterwarnings("ignore::modalloy.errors.ModalloyWarning")
def test_a_plugin_that_is_broken_was_told_already(saved: Saved) -> None:
    saved.save()
    replace(saved, "raise OSError")
    assert saved.check() == []


@pytest.mark.parametrize(
    "metadata", ["Name: modalloy-sight\n", "Name: modalloy-sight\nVersion: new\n"]
)
def test_a_version_that_cannot_be_told_is_told(saved: Saved, metadata: str) -> None:
    saved.save()
    saved.install("1.2")
    (info,) = saved.site.path.glob("*.dist-info")
    (info / "METADATA").write_text(metadata)
    (message,) = saved.check()
    assert "and a version that cannot be told (" in message
    assert message.endswith('is installed; reinstall it: pip install "modalloy-sight>=1.2,<2"')


def test_a_later_modalloy_that_was_built_locally_is_advised_without_its_local_part(
    saved: Saved,
) -> None:
    saved.save()
    changed: dict[str, Any] = {"modalloy": "7.1+mine"}
    (message,) = saved.check(**changed)
    assert str(advised(message)) == "modalloy>=7.1"
