"""Directories and files that are written whole or not at all."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalloy.checkpoints.new_directory import check_free, new_directory, new_file, write_whole
from modalloy.errors import FormatError


def fill(out: Path, error: BaseException | None = None) -> None:
    with new_directory(out) as place:
        (place / "a.safetensors").write_bytes(b"x")
        (place / "a.safetensors").chmod(0o600)
        if error is not None:
            raise error


@pytest.mark.parametrize("empty", [False, True])
def test_a_directory_takes_its_place_when_it_is_whole(tmp_path: Path, empty: bool) -> None:  # noqa: FBT001
    out = tmp_path / "deep" / "out"
    if empty:
        out.mkdir(parents=True)
    with new_directory(out) as place:
        assert (place.parent, out.exists()) == (out.parent, empty)
        (place / "a").write_text("x")
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text() == "x"
    assert out.stat().st_mode == out.parent.stat().st_mode, "as the umask has it"


def test_weights_can_be_read_by_others(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    assert (tmp_path / "out" / "a.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [OSError(28, "disk full"), KeyboardInterrupt(), MemoryError()])
def test_a_directory_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    kind = FormatError if isinstance(error, OSError) else type(error)
    with pytest.raises(kind) as caught:
        fill(tmp_path / "deep" / "out", error)
    assert not list(tmp_path.iterdir())
    if kind is FormatError:
        assert re.search("out cannot be written: .*disk full; make room", str(caught.value))
    (tmp_path / "out").mkdir()
    with pytest.raises(kind):
        fill(tmp_path / "out", error)
    assert [p.name for p in tmp_path.rglob("*")] == ["out"]


def test_a_stranger_beside_it_is_left_alone(tmp_path: Path) -> None:
    pid = os.getpid()
    strangers = [tmp_path / name for name in ("out.partial", f".out.{pid}.partial", ".out.partial")]
    for one in strangers:
        one.mkdir()
        (one / "mine").write_text("mine")
    fill(tmp_path / "out")
    assert all((one / "mine").read_text() == "mine" for one in strangers)
    assert len(list(tmp_path.iterdir())) == 4


def test_two_at_once_in_one_process(tmp_path: Path) -> None:
    first = new_directory(tmp_path / "out")
    first.__enter__()
    with new_directory(tmp_path / "out") as second:
        (second / "a").write_text("second")
    with pytest.raises(FormatError, match=r"out cannot be written: .*not empty"):
        first.__exit__(None, None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "second"


def make_file(out: Path) -> None:
    out.write_text("mine")


def make_full(out: Path) -> None:
    out.mkdir()
    (out / "mine").write_text("mine")


def make_link(out: Path) -> None:
    out.symlink_to(out.parent / "nowhere")


@pytest.mark.parametrize("make", [make_file, make_full, make_link])
def test_what_is_in_the_way_stays(tmp_path: Path, make: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    make(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FormatError, match="out exists and is no empty directory; choose another"):
        fill(out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_none_can_take_the_place_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path(), tmp_path):
        with pytest.raises(FormatError, match=r"is the working directory .* name a directory insi"):
            check_free(out)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(FormatError, match="disk is the working directory or a mounted one"):
        check_free(Path("disk"))


def test_a_place_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()

    def refuse(_: Path) -> None:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(FormatError, match=r"out cannot be written: .*not yours; make room there"):
        check_free(tmp_path / "out")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in ("old", "né"):
        write_whole(file, text)
        assert file.read_bytes() == text.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "plain").write_text("x")
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode, "as the umask has it"


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_a_file_that_fails_is_as_it_was(tmp_path: Path, step: str, monkeypatch: Any) -> None:
    file, stranger = tmp_path / "a.json", tmp_path / "a.json.partial"
    file.write_text("old")
    stranger.write_text("mine")
    whole = Path.write_text

    def fail(path: Path, *rest: Any, **more: Any) -> None:
        whole(path, "half", **more)
        raise OSError(28, "disk full")

    monkeypatch.setattr(Path, step, fail)
    with pytest.raises(FormatError, match=r"a\.json cannot be written: .*disk full; make room"):
        write_whole(file, "new")
    assert (file.read_text(), stranger.read_text()) == ("old", "mine")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_is_interrupted(tmp_path: Path) -> None:
    def write() -> None:
        with new_file(tmp_path / "a") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


def test_text_that_has_no_bytes(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"a\.json cannot be written: .*surrogates not allowed"):
        write_whole(tmp_path / "a.json", "\ud800")
    assert not list(tmp_path.iterdir())
