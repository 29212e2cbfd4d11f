"""What is in a wheel, or in an installed distribution, and what should be: a plugin's package."""

import email
import importlib
import importlib.metadata
import json
import zipfile
from abc import ABC, abstractmethod
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

import attrs

from modalloy.testing.report import expect

_LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def source_of(distribution: str) -> Path | None:
    """Return the directory that a distribution was installed from, editable; ``None`` otherwise."""
    text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    origin = json.loads(text) if text else {}
    address = urlsplit(origin.get("url", ""))
    if address.scheme != "file" or not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(address.path))


@attrs.frozen
class Package:
    """The package of a plugin.

    Attributes:
        name: Its place in a wheel, such as ``nose``, or ``many/nose`` in a namespace.
        directory: Where it is here.
    """

    name: PurePosixPath
    directory: Path

    def place(self, file: Path) -> str:
        """Return the name of a file in a wheel.

        Raises:
            AssertionError: It is outside the package, so that no wheel of it can hold the file.
        """
        for one, base in ((file, self.directory), (file.resolve(), self.directory.resolve())):
            if one.is_relative_to(base):
                return (self.name / one.relative_to(base)).as_posix()
        raise AssertionError(f"{file} is outside the package {self.directory}; put it inside")

    def files(self) -> list[str]:
        """Return all its files as a wheel names them."""
        return [
            self.place(file)
            for file in sorted(self.directory.rglob("*"))
            if file.is_file() and not _LEFT_OUT.intersection(file.parts) and file.suffix != ".pyc"
        ]


def package_of(module: str) -> Package:
    """Return the package of a module, the outermost that is no namespace."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        file = getattr(importlib.import_module(".".join(parts[:count])), "__file__", None)
        if file is not None and Path(file).name == "__init__.py":
            return Package(PurePosixPath(*parts[:count]), Path(file).parent)
    raise AssertionError(
        f"{module} is a single file; make it a package, which can hold py.typed and weights"
    )


class Content(ABC):
    """Names of the files of a distribution, and some of their texts."""

    names: frozenset[str]

    @abstractmethod
    def text(self, suffix: str) -> str:
        """Return the text of a file of its ``.dist-info``, or an empty one."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file by its name."""

    @property
    def metadata(self) -> Message:
        """Its METADATA."""
        return email.message_from_string(self.text("METADATA"))


class WheelFile(Content):
    """A wheel."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self.names = frozenset(archive.namelist())

    def text(self, suffix: str) -> str:  # noqa: D102 - see Content
        name = next((one for one in self.names if one.endswith(f".dist-info/{suffix}")), None)
        if name is None:
            return ""
        with zipfile.ZipFile(self._path) as archive:
            return archive.read(name).decode("utf-8")

    def open(self, name: str) -> IO[bytes]:  # noqa: D102
        with zipfile.ZipFile(self._path) as archive:
            return archive.open(name)


class Installed(Content):
    """A distribution that is installed, not editable."""

    def __init__(self, distribution: str) -> None:
        expect(
            source_of(distribution) is None,
            f"{distribution} is installed editable; build its wheel and give that",
        )
        self._distribution = importlib.metadata.distribution(distribution)
        files = self._distribution.files or []
        self.names = frozenset(file.as_posix() for file in files)

    def text(self, suffix: str) -> str:  # noqa: D102 - see Content
        return self._distribution.read_text(suffix) or ""

    def open(self, name: str) -> IO[bytes]:  # noqa: D102
        return Path(str(self._distribution.locate_file(name))).open("rb")
