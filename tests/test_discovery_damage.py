"""Damaged metadata, and errors that are themselves errors: each is told, and the rest works."""

from pathlib import Path

import pytest

from fakes import Site, modality_source
from modalloy import Registry
from modalloy.errors import ModalloyWarning
from modalloy.quarantine import PluginReport
from modalloy.requirements import installed_set

pytestmark = pytest.mark.filterwarnings("ignore::modalloy.errors.ModalloyWarning")


def points(site: Site, content: bytes | str) -> PluginReport:
    """Install a good plugin and one with these entry points, and return the latter's report."""
    site.install("good", modality_source("good", "goodness"))
    site.install("bad", modality_source("bad", "badness"))
    file = site.path / "bad-1.0.dist-info" / "entry_points.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    registry = Registry.discover()
    assert registry.require("good").modalities == ("good",)
    (report,) = [one for one in registry.reports if one.distribution == "bad"]
    return report


@pytest.mark.parametrize(
    ("content", "name", "error"),
    [
        ("[modalloy]\nbad\n", "bad", "its entry_points.txt cannot be read (TypeError: "),
        (b"[modalloy]\nx = bad\n\xff = y\n", "bad", "cannot be read (UnicodeDecodeError: "),
        ("[modalloy]\nx =\n", "x", "must name 'package.module'; it names ''"),
        ("[modalloy]\nx = no module\n", "x", "must name 'package.module'; it names 'no module'"),
        ("[modalloy]\nx = ../bad\n", "x", "must name 'package.module'; it names '../bad'"),
        ("[modalloy]\nx = .bad\n", "x", "must name 'package.module'; it names '.bad'"),
        ("[modalloy]\na,b = bad\n", "a,b", "name must be of letters, digits, '-', '_' and '.'"),
        ("[modalloy]\n = bad\n", "", "name must be of letters, digits, '-', '_' and '.'"),
    ],
)
def test_entry_points_that_are_damaged(
    site: Site, content: bytes | str, name: str, error: str
) -> None:
    report = points(site, content)
    assert (report.name, report.status, report.stage) == (name, "failed", "metadata")
    assert error in str(report.error)


@pytest.mark.parametrize(
    "content", ["[modalloy]\nbad = bad [extra]\n", "[modalloy]\r\nbad=bad\r\n"]
)
def test_entry_points_that_are_not(site: Site, content: str) -> None:
    assert points(site, content).modalities == ("bad",)


def test_what_is_damaged_of_others_is_nobodys_news(
    site: Site, recwarn: pytest.WarningsRecorder
) -> None:
    site.install("good", modality_source("good"))
    for name, text in (("a", b"[console_scripts]\nno value\n"), ("b", b"\xff\xfe")):
        (site.path / f"{name}-1.0.dist-info").mkdir()
        (site.path / f"{name}-1.0.dist-info" / "entry_points.txt").write_bytes(text)
    (site.path / ".dist-info").mkdir()
    (site.path / "stray.dist-info").write_text("no directory")
    registry = Registry.discover()
    assert [one.name for one in registry.reports] == ["builtin", "good"]
    assert not [one for one in recwarn if issubclass(one.category, ModalloyWarning)]


def test_of_two_of_one_name_the_first_counts_among_the_damaged_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    points(site, "[modalloy]\nbad\n")
    copy = site.path / "good-2.0.dist-info"
    copy.mkdir()
    for file in (site.path / "good-1.0.dist-info").iterdir():
        (copy / file.name).write_text(file.read_text())
    (copy / "METADATA").write_text("Name: good\nVersion: 2.0\n")
    assert [one.status for one in Registry.discover().reports if one.name == "good"] == ["loaded"]


def leftover(site: Site, version: str) -> None:
    """Leave what an interrupted pip leaves: a renamed .dist-info beside the good one."""
    site.install("good", modality_source("good"))
    left = site.path / "~ood-1.0.dist-info"
    left.mkdir()
    for file in (site.path / "good-1.0.dist-info").iterdir():
        (left / file.name).write_text(
            file.read_text().replace("Version: 1.0", f"Version: {version}")
        )


def test_what_an_interrupted_installation_left_is_no_second_plugin(site: Site) -> None:
    leftover(site, "1.0")
    assert Registry.discover().require("good").version == "1.0"


def test_what_is_left_of_another_version_is_told_with_what_to_do(site: Site) -> None:
    leftover(site, "0.9")
    report = Registry.discover().reports[1]
    assert report.status == "duplicate"
    assert str(report.error).endswith(
        "good 0.9 and by good 1.0, and neither is preferred; an installation that was interrupted "
        "leaves this, reinstall good"
    )


ERROR = """
class Odd(Exception):
    def __str__(self):
        {body}
raise Odd
"""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise RuntimeError('no words')", "Odd: (its message cannot be had: RuntimeError)"),
        ("return 3", "Odd: (its message cannot be had: TypeError)"),
        ("return ''", "Odd"),
    ],
)
def test_an_error_that_cannot_be_told_does_not_end_discovery(
    site: Site, body: str, error: str
) -> None:
    site.install("bad", ERROR.format(body=body))
    site.install("good", modality_source("good"))
    registry = Registry.discover()
    assert [(one.status, one.error) for one in registry.reports[1:]] == [
        ("failed", error),
        ("loaded", None),
    ]


def test_what_a_plugin_prints_is_not_taken_for_data(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "print('in a hook')"
    hook = modality_source("loud").replace("    register(M", f"    {said}\n    register(M")
    site.install("loud", f"print('in its import')\n{hook}")
    assert Registry.discover().require("loud").status == "loaded"
    assert capsys.readouterr() == ("", "in its import\nin a hook\n")


def test_an_endless_error_is_cut(site: Site) -> None:
    site.install("bad", "raise ValueError('x' * 10**6)")
    error = str(Registry.discover().reports[1].error)
    assert len(error) < 5000
    assert error.endswith("x ... (1000000 characters)")


def test_every_damaged_distribution_has_a_line(site: Site, tmp_path: Path) -> None:
    for name in ("a", "b"):
        site.install(name, modality_source(name, name), metadata="Summary: no name\n")
    site.install("c", modality_source("c", "c"), metadata="Name: c\nVersion: one two\n")
    lines = [one.line for one in installed_set(Registry.discover().reports)]
    told = "(unknown version): its metadata is damaged, of plugin"
    assert [line for line in lines if "damaged" in line] == [
        f"# c {told} 'c'; reinstall it",
        f"# unknown distribution {told} 'a'; reinstall it",
        f"# unknown distribution {told} 'b'; reinstall it",
    ]
