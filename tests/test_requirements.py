"""What pip is told to install elsewhere, and what a saved composition says of other plugins."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForMultimodalLM

import modalloy
from composing import compose
from fakes import HEADER, Site, modality_source
from modalloy import Registry
from modalloy.composition.compatibility import check_plugins
from modalloy.composition.directory import read_provenance
from modalloy.errors import FormatError, ModalloyWarning, PluginError
from modalloy.requirements import installed_set
from tiny import tiny_base
from toy import toy_parent

HASH = "0123456789abcdef" * 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def origin(site: Site, distribution: str, direct: Any) -> str:
    """Install a plugin with a ``direct_url.json``, and return its line."""
    module = site.install(distribution, modality_source(distribution))
    info = site.path / f"{module}-1.0.dist-info" / "direct_url.json"
    if direct is not None:
        info.write_text(direct if isinstance(direct, str) else json.dumps(direct))
    reports = Registry.discover().reports
    return next(one.line for one in installed_set(reports) if one.name == distribution)


def vcs(url: str, **extra: Any) -> dict[str, Any]:
    return {"url": url, "vcs_info": {"vcs": "git", "commit_id": COMMIT}, **extra}


@pytest.mark.parametrize(
    ("direct", "line"),
    [
        (None, "nose==1.0"),
        (vcs("https://example.org/a/nose.git"), f"git+https://example.org/a/nose.git@{COMMIT}"),
        (
            vcs("https://me:hunter2@example.org:8443/nose.git", subdirectory="plugins/nose"),
            f"git+https://example.org:8443/nose.git@{COMMIT}#subdirectory=plugins/nose",
        ),
        (vcs("ssh://git@example.org/nose.git"), f"git+ssh://git@example.org/nose.git@{COMMIT}"),
        (
            {
                "url": "https://example.org/nose-1.0.whl",
                "archive_info": {"hashes": {"sha256": HASH}},
            },
            f"https://example.org/nose-1.0.whl#sha256={HASH}",
        ),
        (
            {"url": "https://example.org/nose-1.0.whl", "archive_info": {"hash": f"sha256={HASH}"}},
            f"https://example.org/nose-1.0.whl#sha256={HASH}",
        ),
        (
            {"url": "https://example.org/nose-1.0.whl", "archive_info": {}},
            "https://example.org/nose-1.0.whl",
        ),
    ],
)
def test_a_line_says_where_it_came_from(site: Site, direct: Any, line: str) -> None:
    found = origin(site, "nose", direct)
    assert found == (line if direct is None else f"nose @ {line}")


LOCAL = "# nose 1.0: installed"
COPY = "install it from a copy, or publish it"


@pytest.mark.parametrize(
    ("direct", "line"),
    [
        (
            {"url": "file:///home/me/nose", "dir_info": {"editable": True}},
            f"{LOCAL} editable, from a directory of this machine; {COPY}",
        ),
        (
            {"url": "file:///home/me/nose", "dir_info": {}},
            f"{LOCAL} from a directory of this machine; {COPY}",
        ),
        (
            {"url": "https://example.org/nose", "dir_info": {}},
            f"{LOCAL} from a directory of this machine; {COPY}",
        ),
        (
            {"url": "file:///home/me/nose-1.0.whl", "archive_info": {"hash": f"sha256={HASH}"}},
            f"{LOCAL} from a file of this machine; {COPY}",
        ),
        (
            vcs("file:///home/me/nose"),
            f"{LOCAL} from a repository of this machine (commit {COMMIT}); {COPY}",
        ),
        (
            {"url": "https://example.org/nose.whl?token=hunter2", "archive_info": {}},
            f"{LOCAL} from a file whose address may hold a secret; give it yourself",
        ),
        (
            {"url": "https://me@example.org/nose.git", "vcs_info": {"vcs": "git"}},
            f"{LOCAL} from https://example.org/nose.git, at a commit that is not recorded",
        ),
        ("{", "# nose 1.0: where it came from cannot be told (JSONDecodeError)"),
        (
            {"address": "x"},
            (
                "# nose 1.0: where it came from cannot be told (its direct_url.json names no "
                "address)"
            ),
        ),
        (
            {"url": "https://[::1", "archive_info": {}},
            "# nose 1.0: where it came from cannot be told (its address is malformed)",
        ),
        (
            {"url": "https://example.org/a b\nevil", "archive_info": {}},
            f"{LOCAL} from a file whose address may hold a secret; give it yourself",
        ),
    ],
)
def test_what_nobody_else_could_install_is_a_comment(site: Site, direct: Any, line: str) -> None:
    found = origin(site, "nose", direct)
    assert found == line
    assert "/home" not in found
    assert "hunter2" not in found
    assert "\n" not in found


def printed(site: Site, names: str, *more: str) -> str:
    script = "from modalloy.cli.main import run; run()"
    return subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", script, "plugins", "--requirements", *more],
        env=site.environment(MODALLOY_PLUGINS=names),
        capture_output=True,
        check=True,
        text=True,
    ).stdout


def test_damaged_metadata_writes_no_line_of_its_own(site: Site) -> None:
    site.install("nose", "", metadata="Name: nose\nVersion: 1.0\n --index-url https://evil\n")
    site.install("ears", "", metadata="Name: a; b\nVersion: 1.0\n")
    site.install("none", "", metadata="")
    lines = printed(site, "nose,ears,none").splitlines()
    assert all(line.startswith("# ") for line in lines)
    assert sum("its metadata is damaged, of plugin" in line for line in lines) == 3


def test_the_command_prints_lines_and_data(site: Site) -> None:
    origin(site, "nose", vcs("https://example.org/nose.git"))
    site.install("Ears", modality_source("ears"))
    site.install("broken", "1 / 0")
    names = "nose,Ears,broken"
    lines = printed(site, names).splitlines()
    data = json.loads(printed(site, names, "--json"))
    assert data[0]["name"] == "modalloy"
    assert len(lines) == len(data)
    shown = [line for line in lines if line.partition("=")[0].partition(" ")[0] in names]
    assert shown == [
        "broken==1.0",
        "Ears==1.0",
        f"nose @ git+https://example.org/nose.git@{COMMIT}",
    ]
    entry = next(entry for entry in data if entry["name"] == "nose")
    assert entry == {
        "name": "nose",
        "version": "1.0",
        "origin": "vcs",
        "requirement": f"nose @ git+https://example.org/nose.git@{COMMIT}",
        "note": None,
    }


PLUGIN = f"""{HEADER}
from modalloy import Registry
from modalloy.testing.toys import ToyPlugin

@hookimpl
def register_modalities(register):
    ToyPlugin("sight").register_modalities(register)

@hookimpl
def register_encoders(register):
    ToyPlugin("sight").register_encoders(register)
"""


class Saved:
    """A composition that was saved with version 1.2 of a plugin."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.path = site, folder / "model"
        self.base = tiny_base(folder / "base")
        self.parent = toy_parent(folder / "parent", self.base, "sight")

    def save(self, requires: str | None = None, version: str = "1.2") -> dict[str, Any]:
        """Save it, and return its modalities."""
        if requires is not None:
            manifest = json.loads((self.parent / "parent.json").read_text())
            (self.parent / "parent.json").write_text(json.dumps({**manifest, "requires": requires}))
        self.install(version)
        registry = Registry.discover()
        model, processor = compose(self.base, [self.parent], registry=registry)
        model.save_pretrained(self.path)
        processor.save_pretrained(self.path)
        self.modalities: dict[str, Any] = model.config.modalities
        return self.modalities

    def install(self, version: str | None, name: str = "modalloy-sight") -> None:
        """Have another version of the plugin installed, or none."""
        for info in self.site.path.glob("*.dist-info"):
            for file in info.iterdir():
                file.unlink()
            info.rmdir()
        if version is not None:
            self.site.install(name, PLUGIN, name="sight", version=version)

    def check(self, **record: Any) -> list[str]:
        """Check it against what is installed, and return the warnings."""
        registry = Registry.discover()
        # What the fixture shows of installed distributions is the site's alone.
        stored = {**read_provenance(self.path), "modalloy": modalloy.__version__, **record}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ModalloyWarning)
            check_plugins(Path("model"), stored, self.modalities, registry)
        return [str(one.message) for one in caught]


@pytest.fixture
def saved(site: Site, tmp_path: Path) -> Saved:
    return Saved(site, tmp_path)


@pytest.mark.parametrize("version", ["1.2", "1.2.1", "1.30"])
def test_the_same_plugin_or_a_later_compatible_one_goes_without_a_word(
    saved: Saved, version: str
) -> None:
    saved.save()
    saved.install(version)
    assert saved.check() == []


def test_a_missing_plugin_is_a_warning_that_says_what_to_install(saved: Saved) -> None:
    saved.save()
    saved.install(None)
    assert saved.check() == [
        (
            "model: modality 'sight' needs modalloy-sight 1.2, which is not installed; pip install "
            '"modalloy-sight>=1.2,<2". Without it the composition runs on text and on inputs_embeds'
        )
    ]


def test_a_disabled_plugin_is_nobodys_news(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.save()
    saved.install("2.0")
    monkeypatch.setenv("MODALLOY_DISABLE", "sight")
    assert saved.check() == []


def test_another_major_version_is_an_error_that_says_what_to_install(saved: Saved) -> None:
    saved.save()
    saved.install("2.0")
    with pytest.raises(PluginError) as caught:
        saved.check()
    assert str(caught.value) == (
        "model: modality 'sight' was composed with modalloy-sight 1.2, and 2.0 is installed, an "
        "incompatible version, which may understand the composition's settings otherwise; pip "
        'install "modalloy-sight>=1.2,<2", or open it without: MODALLOY_DISABLE=sight'
    )
    assert (caught.value.plugin, caught.value.stage) == ("sight", "version")


@pytest.mark.parametrize(
    ("made", "now", "ok"),
    [
        ("0.1.4", "0.1.9", True),
        ("0.1.4", "0.2.0", False),
        ("0.9", "1.0", False),
        ("0", "0.1", False),
    ],
)
def test_before_1_a_minor_version_may_change_all(
    saved: Saved, made: str, now: str, *, ok: bool
) -> None:
    saved.save(version=made)
    saved.install(now)
    if ok:
        assert saved.check() == []
        return
    with pytest.raises(PluginError, match=f"composed with modalloy-sight {made}, and {now} is"):
        saved.check()


@pytest.mark.parametrize(("version", "ok"), [("2.5", True), ("3.0", False)])
def test_what_the_parent_requires_decides(saved: Saved, version: str, *, ok: bool) -> None:
    saved.save("modalloy_sight>=1.1,<3")
    saved.install(version)
    if ok:
        assert saved.check() == []
        return
    with pytest.raises(PluginError, match=re.escape('pip install "modalloy_sight<3,>=1.1"')):
        saved.check()


def test_an_older_compatible_version_is_a_warning(saved: Saved) -> None:
    saved.save("modalloy-sight>=1.1,<3")
    saved.install("1.1.7")
    assert saved.check() == [
        (
            "model: modality 'sight' was composed with modalloy-sight 1.2, and 1.1.7 is installed, "
            'which is older; pip install "modalloy-sight>=1.2,<3,>=1.1"'
        )
    ]


def test_another_distribution_of_the_same_modality_is_a_warning(saved: Saved) -> None:
    saved.save()
    saved.install("9.0", name="other-sight")
    (warning,) = saved.check()
    assert "composed with modalloy-sight 1.2, and is supplied by other-sight 9.0 here" in warning
    assert warning.endswith('pip install "modalloy-sight>=1.2,<2"')


def test_a_later_modalloy_is_a_warning(saved: Saved) -> None:
    saved.save()
    assert saved.check(modalloy="0.1.99") == []
    assert saved.check(modalloy="unknown") == []
    (warning,) = saved.check(modalloy="7.1")
    assert warning.startswith("model was saved by modalloy 7.1, this is 0.1.0, which may not")
    assert warning.endswith('pip install "modalloy>=7.1"')


@pytest.mark.parametrize(
    ("parents", "text"),
    [
        (None, "parents must be a list of parents with their plugin"),
        ([3], "parents must be a list of parents with their plugin"),
        ([{"modality": "sight"}], "parents must be a list of parents with their plugin"),
        (
            [{"modality": "sight", "plugin": {"distribution": "x --index-url e", "version": "1"}}],
            "the plugin of 'sight' has no name of a distribution",
        ),
        (
            [{"modality": "sight", "plugin": {"distribution": "x", "version": "one"}}],
            "the plugin of 'sight' has no version",
        ),
        (
            [{"modality": "sight", "plugin": {"distribution": "x", "version": [1]}}],
            "the plugin of 'sight' has no version",
        ),
    ],
)
def test_a_malformed_record_is_told(saved: Saved, parents: Any, text: str) -> None:
    saved.save()
    with pytest.raises(FormatError, match=f"model.modalloy.json: {text}; fetch the composition"):
        saved.check(parents=parents)


def test_plugins_registered_in_code_are_not_compared(saved: Saved) -> None:
    saved.save()
    nobody = [{"modality": "sight", "plugin": {"distribution": None, "version": None}}]
    saved.install(None)
    assert saved.check(parents=nobody) == []


@pytest.mark.filterwarnings("ignore::modalloy.errors.ModalloyWarning")
def test_opening_a_composition_asks(saved: Saved) -> None:
    saved.save()
    saved.install("2.0")
    opened = "composed with modalloy-sight 1.2, and 2.0 is installed, an incompatible version"
    with pytest.raises(PluginError, match=opened):
        modalloy.load(saved.path)
    with pytest.raises(PluginError, match=opened):
        AutoModelForMultimodalLM.from_pretrained(saved.path)
    saved.install(None)
    with pytest.warns(
        ModalloyWarning, match=r"which is not installed; pip install .modalloy-sight"
    ):
        model = modalloy.load(saved.path).model
    assert "sight" in model.config.modalities
