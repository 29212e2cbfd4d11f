"""Writing directories and files whole or not at all.

What is written stands beside its place, under a hidden name of its own, and is renamed when it is
whole: an interrupted run leaves nothing that looks finished, and touches nothing of anybody else.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from modalloy.errors import FormatError


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a directory beside ``out`` that takes its place when the block ends well.

    Args:
        out: Must not exist, or be an empty directory. Directories above it are made where missing.

    Raises:
        FormatError: ``out`` is there, or cannot be written; nothing is left behind.
    """
    check_free(out)
    partial = _beside(out)
    made: list[Path] = []
    try:
        made = [folder for folder in out.parents if not folder.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*.safetensors"):
                file.chmod(0o644)  # safetensors writes for its owner alone
            if out.is_dir():
                out.rmdir()
            partial.rename(out)
            made = []
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _unwritable(out, error) from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()


def check_free(out: Path) -> None:
    """Check that a directory can be written at ``out``: that nothing is there, or an empty one.

    Raises:
        FormatError: Something else is there, or it is a directory that cannot be put in another's
            place.
    """
    try:
        if not os.path.lexists(out):
            return
        taken = out.is_symlink() or not out.is_dir() or any(out.iterdir())
        fixed = not taken and (out.samefile(Path.cwd()) or os.path.ismount(out))
    except OSError as error:
        raise _unwritable(out, error) from error
    if taken:
        raise FormatError(
            f"{out} exists and is no empty directory; choose another place or remove it", path=out
        )
    if fixed:
        raise FormatError(
            f"{out} is the working directory or a mounted one, which no other can take the place "
            "of; name a directory inside it",
            path=out,
        )


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Yield a path beside ``file`` that takes its place when the block ends well.

    Args:
        file: In a directory that is there; replaced where it is there itself.

    Raises:
        FormatError: It cannot be written; it is as it was, and nothing is left behind.
    """
    partial = _beside(file)
    try:
        try:
            yield partial
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError, UnicodeError) as error:
        raise _unwritable(file, error) from error


def write_whole(file: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Args:
        file: In a directory that is there; replaced where it is there itself.
        text: Stored as UTF-8.

    Raises:
        FormatError: It cannot be written; it is as it was, and nothing is left behind.
    """
    with new_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def _beside(place: Path) -> Path:
    """Return a hidden path in the same directory that nobody else uses."""
    return place.parent / f".{place.name}.{secrets.token_hex(4)}.partial"


def _unwritable(place: Path, error: Exception) -> FormatError:
    return FormatError(
        f"{place} cannot be written: {error}; make room there or choose another place", path=place
    )
