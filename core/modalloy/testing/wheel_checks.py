"""Checking a plugin's wheel: that it holds all that the plugin needs where it is installed."""

import email
import functools
import importlib.metadata
import json
import subprocess
import sys
import tomllib
import zipfile
from abc import ABC, abstractmethod
from email.message import Message
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from modalloy.hookspecs import GROUP
from modalloy.parent import MANIFEST, read_manifest
from modalloy.registry import Registry
from modalloy.testing.report import Check, Checks, expect

# Weights do not get smaller by deflating, which takes most of the time of a quick build.
_BUILD = """
import importlib, sys, zlib
if sys.argv[3] == "quick":
    zlib.Z_DEFAULT_COMPRESSION = zlib.Z_NO_COMPRESSION
module, _, name = sys.argv[1].partition(":")
backend = importlib.import_module(module)
for part in filter(None, name.split(".")):
    backend = getattr(backend, part)
print(backend.build_wheel(sys.argv[2]))
"""
_LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def source_of(distribution: str) -> Path | None:
    """Return the directory that a distribution was installed from, editable; ``None`` otherwise."""
    text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    origin = json.loads(text) if text else {}
    address = urlsplit(origin.get("url", ""))
    if address.scheme != "file" or not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(address.path))


def build_wheel(source: Path, folder: Path, *, quick: bool = False) -> Path:
    """Build a project's wheel with its own build backend, which has to be installed here.

    Args:
        source: The project, with its ``pyproject.toml``.
        folder: Where to put the wheel; an existing directory.
        quick: Whether to leave its files uncompressed, to be looked at and not to be published.

    Returns:
        The wheel.

    Raises:
        AssertionError: The backend is not installed, or refuses.
    """
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    backend = project.get("build-system", {}).get("build-backend", "setuptools.build_meta")
    done = subprocess.run(  # noqa: S603 - our own interpreter; the backend is the project's choice
        [sys.executable, "-c", _BUILD, backend, str(folder), "quick" if quick else ""],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    expect(
        done.returncode == 0,
        f"{source.name}: its build backend {backend!r} does not build a wheel: "
        f"{done.stderr.strip()[-500:]}",
    )
    return folder / done.stdout.splitlines()[-1]


def check_wheel(
    name: str, wheel: Path | None = None, *, registry: Registry | None = None
) -> tuple[Check, ...]:
    """Check that a plugin's wheel holds what the plugin needs.

    Looked for are the module of its entry point, every file beside it in the source (``py.typed``
    and weights among them), all files of its packaged parents, the licence texts, a requirement of
    ``modalloy`` that ends before the next incompatible version, and that nothing else would be put
    beside the package.

    Args:
        name: The plugin's name.
        wheel: Its wheel; if left out, what is installed is looked at, which must be no editable
            installation.
        registry: Knows the plugin and its parents; what is installed if left out.

    Returns:
        All that was looked at.

    Raises:
        CheckFailed: A check failed; the message lists all that did.
        UnknownNameError: No such plugin is known.
        PluginError: It is not in use.
    """
    registry = registry or Registry.discover()
    report = registry.require(name)
    (point,) = importlib.metadata.entry_points(group=GROUP, name=name)
    content = _Wheel(wheel) if wheel is not None else _Installed(str(report.distribution))
    package = PurePosixPath(point.module.split(".")[0])
    subject = f"wheel of plugin {name!r}"
    checks = Checks(subject)
    checks.run(subject, "metadata", lambda: _metadata(content.metadata))
    checks.run(subject, "entry point", lambda: _entry_point(content, name, point.value))
    checks.run(subject, "licence", lambda: _licence(content))
    checks.run(subject, "typed", lambda: _has(content, [f"{package}/py.typed"]))
    checks.run(subject, "package alone", lambda: _package_alone(content, package))
    here = Path(str(sys.modules[point.module.split(".")[0]].__file__)).parent
    checks.run(subject, "files", lambda: _has(content, _files(here)))
    for parent in map(registry.parent, report.parents):
        if isinstance(parent.source, Path):
            files = _parent_files(here, parent.source)
            found = functools.partial(_has, content, files)
            checks.run(subject, f"parent {parent.name!r}", found)
    return checks.finish()


class _Content(ABC):
    """Names of the files of a distribution, and some of their texts."""

    names: frozenset[str]

    @abstractmethod
    def text(self, suffix: str) -> str:
        """Return the text of a file of its ``.dist-info``, or an empty one."""

    @property
    def metadata(self) -> Message:
        return email.message_from_string(self.text("METADATA"))


class _Wheel(_Content):
    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self.names = frozenset(archive.namelist())

    def text(self, suffix: str) -> str:
        name = next((one for one in self.names if one.endswith(f".dist-info/{suffix}")), None)
        if name is None:
            return ""
        with zipfile.ZipFile(self._path) as archive:
            return archive.read(name).decode("utf-8")


class _Installed(_Content):
    def __init__(self, distribution: str) -> None:
        expect(
            source_of(distribution) is None,
            f"{distribution} is installed editable; build its wheel and give that",
        )
        self._distribution = importlib.metadata.distribution(distribution)
        files = self._distribution.files or []
        self.names = frozenset(file.as_posix() for file in files)

    def text(self, suffix: str) -> str:
        return self._distribution.read_text(suffix) or ""


def _metadata(metadata: Message) -> str:
    required = metadata.get_all("Requires-Dist") or []
    ours = [one for one in required if one.split(";")[0].replace(" ", "").startswith("modalloy")]
    ours = [one for one in ours if one[len("modalloy") :].lstrip()[:1] in ("<", ">", "=", "~")]
    expect(
        any("<" in one or "==" in one or "~=" in one for one in ours),
        "it must require modalloy with an upper bound, such as 'modalloy>=0.1,<0.2': a later host "
        f"may speak another plugin API; it requires {', '.join(ours) or 'no modalloy'}",
    )
    return f"requires {ours[0]}"


def _entry_point(content: _Content, name: str, value: str) -> str:
    lines = [line.replace(" ", "") for line in content.text("entry_points.txt").splitlines()]
    wanted = f"{name}={value}"
    start = lines.index(f"[{GROUP}]") if f"[{GROUP}]" in lines else len(lines)
    expect(wanted in lines[start:], f"entry_points.txt must have {wanted!r} under [{GROUP}]")
    return wanted


def _licence(content: _Content) -> str:
    metadata = content.metadata
    named = metadata.get_all("License-File") or []
    expect(
        bool(metadata.get("License-Expression") or metadata.get("License")),
        "METADATA names no licence; set project.license to an SPDX expression",
    )
    expect(bool(named), "METADATA has no License-File; list the texts in project.license-files")
    held = {PurePosixPath(one).name for one in content.names if ".dist-info/" in one}
    lacking = [one for one in named if PurePosixPath(one).name not in held]
    expect(not lacking, f"the wheel lacks {', '.join(lacking)}")
    return f"{metadata.get('License-Expression') or metadata.get('License')}: {', '.join(named)}"


def _package_alone(content: _Content, package: PurePosixPath) -> str:
    tops = {name.split("/")[0] for name in content.names if not name.startswith("..")}
    strange = sorted(t for t in tops if t != str(package) and not t.endswith(".dist-info"))
    expect(not strange, f"it would put {', '.join(strange)} beside {package} into site-packages")
    return f"{package} and its .dist-info"


def _files(package: Path) -> list[str]:
    """Return the files of a package as a wheel names them."""
    return [
        file.relative_to(package.parent).as_posix()
        for file in sorted(package.rglob("*"))
        if file.is_file() and not _LEFT_OUT.intersection(file.parts) and file.suffix != ".pyc"
    ]


def _parent_files(package: Path, parent: Path) -> list[str]:
    """Return the files of a packaged parent, those that its manifest records, as a wheel does."""
    place = parent.resolve().relative_to(package.parent.resolve())
    return [(place / name).as_posix() for name in (MANIFEST, *read_manifest(parent).files)]


def _has(content: _Content, names: list[str]) -> str:
    lacking = sorted(set(names) - content.names)
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""  # noqa: PLR2004
    expect(
        not lacking,
        f"the wheel lacks {', '.join(lacking[:5])}{more}; is it ignored by git, or not among the "
        "files that the build takes?",
    )
    return f"{len(names)} files"
