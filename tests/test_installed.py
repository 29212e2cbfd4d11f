"""The digest of what is installed, from what pip recorded of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import modalloy
from fakes import Site, modality_source
from modalloy.cli.plugins import describe
from modalloy.composition.recorded import read_provenance
from modalloy.installed import installed_digest
from modalloy.quarantine import PluginReport
from modalloy.registry import Registry
from tiny import tiny_base
from toy import ToyPlugin, toy_parent

WHEEL = (
    "nose.py,sha256=abc,9",
    "nose/weights.bin,sha256=def,9",
    "nose-1.0.dist-info/METADATA,sha256=ghi,9",
    "nose-1.0.dist-info/entry_points.txt,sha256=jkl,9",
)
PIP = (
    "__pycache__/nose.cpython-311.pyc,,",
    "nose-1.0.dist-info/INSTALLER,sha256=mno,4",
    "nose-1.0.dist-info/RECORD,,",
    "nose-1.0.dist-info/REQUESTED,sha256=pqr,0",
    "nose-1.0.dist-info/direct_url.json,sha256=stu,9",
    "../../../bin/nose,sha256=vwx,9",
)


def record(site: Site, lines: Sequence[str], origin: str | None = None) -> Path:
    info = site.path / "nose-1.0.dist-info"
    if not info.is_dir():
        site.install("nose", modality_source("smell"))
    (info / "RECORD").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if origin is not None:
        (info / "direct_url.json").write_text(origin, encoding="utf-8")
    return info / "RECORD"


def test_a_wheel_has_one_digest_whoever_installed_it(site: Site) -> None:
    record(site, WHEEL)
    digest = installed_digest("nose")
    assert digest is not None
    assert len(digest) == 64
    record(site, [*PIP, *reversed(WHEEL)], '{"url": "https://x", "archive_info": {}}')
    assert installed_digest("nose") == digest
    assert installed_digest("Nose") == digest


@pytest.mark.parametrize("index", range(len(WHEEL)))
def test_another_wheel_has_another(site: Site, index: int) -> None:
    record(site, WHEEL)
    digest = installed_digest("nose")
    changed = list(WHEEL)
    changed[index] = changed[index].replace("sha256=", "sha256=Z")
    record(site, changed)
    assert installed_digest("nose") not in (None, digest)
    record(site, [*WHEEL[:index], *WHEEL[index + 1 :]])
    assert installed_digest("nose") not in (None, digest)


@pytest.mark.parametrize(
    ("lines", "origin"),
    [
        (["_nose.pth,sha256=abc,9"], '{"url": "file:///x", "dir_info": {"editable": true}}'),
        ([], None),
        (PIP, None),
        (WHEEL, "{"),
        (["nose.py"], None),
    ],
)
def test_there_is_none_where_nothing_says(
    site: Site, lines: Sequence[str], origin: str | None
) -> None:
    record(site, lines, origin)
    assert installed_digest("nose") is None


def test_damage_is_no_digest(site: Site) -> None:
    record(site, WHEEL).write_bytes(b"\xff\xfe,sha256=abc,9")
    assert installed_digest("nose") is None
    record(site, WHEEL).unlink()
    assert installed_digest("nose") is None
    assert installed_digest("no-such-distribution") is None
    assert installed_digest("") is None
    assert installed_digest(None) is None


def test_the_listing_has_it_as_data(site: Site) -> None:
    record(site, WHEEL)
    registry = Registry.discover(strict=False)
    (report,) = [one for one in registry.reports if one.name == "nose"]
    assert describe(registry, report)["sha256"] == installed_digest("nose")
    in_code = PluginReport(name="x", status="failed")
    assert describe(registry, in_code)["sha256"] is None


def test_a_composition_remembers_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(site, WHEEL)
    base = tiny_base(tmp_path / "base")
    parent = toy_parent(tmp_path / "p", base, "sight")
    registry = Registry()
    registry.register(ToyPlugin("sight"), name="toy-sight")
    plain, _ = modalloy.compose(base, parents=[parent], registry=registry)
    assert plain.provenance["parents"][0]["plugin"] == {
        "distribution": None, "version": None, "sha256": None,
    }  # fmt: skip
    owner = PluginReport(name="nose", distribution="nose", version="1.0", status="loaded")
    monkeypatch.setattr(Registry, "owner", lambda *_: owner)
    model, _ = modalloy.compose(base, parents=[parent], registry=registry)
    model.save_pretrained(tmp_path / "it")
    plugin = read_provenance(tmp_path / "it")["parents"][0]["plugin"]
    assert plugin == {
        "distribution": "nose", "version": "1.0", "sha256": installed_digest("nose"),
    }  # fmt: skip
    # What was composed before there were digests opens as ever.
    path = tmp_path / "it" / "modalloy.json"
    data = json.loads(path.read_text())
    del data["parents"][0]["plugin"]["sha256"]
    path.write_text(json.dumps(data))
    assert read_provenance(tmp_path / "it") == data
