"""Checking a plugin's wheel: that it holds all that the plugin needs where it is installed."""

import configparser
import functools
import hashlib
import importlib.metadata
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import modalloy
from modalloy.hookspecs import GROUP
from modalloy.parent import MANIFEST, read_manifest, sha256
from modalloy.quarantine import PluginReport
from modalloy.registry import Registry
from modalloy.testing.report import Check, Checks, expect
from modalloy.testing.wheel_contents import Content, Installed, Package, WheelFile, package_of

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
    and weights among them), all files of its packaged parents as their manifests record them, the
    licence texts, a requirement of ``modalloy`` that this one meets and that ends before the next
    incompatible version, and that nothing else would be put beside the package.

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
    subject = f"wheel of plugin {name!r}"
    checks = Checks(subject)
    opened: list[tuple[importlib.metadata.EntryPoint, Content, Package]] = []
    if not checks.run(subject, "opened", lambda: _open(report, wheel, opened)):
        return checks.finish()
    ((point, content, package),) = opened
    checks.run(subject, "metadata", lambda: _metadata(content.metadata, str(report.distribution)))
    checks.run(subject, "entry point", lambda: _entry_point(content, name, point.value))
    checks.run(subject, "licence", lambda: _licence(content))
    checks.run(subject, "typed", lambda: _has(content, [f"{package.name}/py.typed"]))
    checks.run(subject, "package alone", lambda: _package_alone(content, package.name.parts[0]))
    checks.run(subject, "files", lambda: _has(content, package.files()))
    for parent in map(registry.parent, report.parents):
        if isinstance(parent.source, Path):
            whole = functools.partial(_whole_parent, content, package, parent.source)
            checks.run(subject, f"parent {parent.name!r}", whole)
    return checks.finish()


def _open(
    report: PluginReport,
    wheel: Path | None,
    opened: list[tuple[importlib.metadata.EntryPoint, "Content", Package]],
) -> str:
    points = importlib.metadata.entry_points(group=GROUP, name=report.name)
    expect(
        bool(points) and report.distribution is not None,
        f"plugin {report.name!r} is {report.origin}, so no distribution of it is installed",
    )
    (point,) = {one.value: one for one in points}.values()
    if wheel is None:
        content: Content = Installed(str(report.distribution))
    else:
        expect(zipfile.is_zipfile(wheel), f"{wheel} is not there, or is no wheel")
        content = WheelFile(wheel)
    opened.append((point, content, package_of(point.module)))
    return str(wheel or report.origin)


def _metadata(metadata: Message, distribution: str) -> str:
    name = str(metadata.get("Name"))
    expect(
        canonicalize_name(name) == canonicalize_name(distribution),
        f"it is of {name!r}, and the plugin that is installed of {distribution!r}",
    )
    required = [Requirement(one) for one in metadata.get_all("Requires-Dist") or []]
    ours = [
        one
        for one in required
        if canonicalize_name(one.name) == "modalloy"
        and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]
    told = ", ".join(map(str, ours)) or "no modalloy"
    expect(
        any(part.operator in _BOUNDING for one in ours for part in one.specifier),
        "it must require modalloy with an upper bound, such as 'modalloy>=0.1,<0.2': a later host "
        f"may speak another plugin API; it requires {told}",
    )
    expect(
        all(one.specifier.contains(modalloy.__version__, prereleases=True) for one in ours),
        f"it requires {told}, and cannot be installed beside modalloy {modalloy.__version__}",
    )
    return f"requires {told}"


_BOUNDING = ("<", "<=", "==", "===", "~=")


def _entry_point(content: Content, name: str, value: str) -> str:
    points = configparser.ConfigParser(delimiters="=", interpolation=None)
    points.optionxform = str  # type: ignore[assignment,method-assign] # names keep their case
    try:
        points.read_string(content.text("entry_points.txt"))
    except configparser.Error as error:
        raise AssertionError(f"entry_points.txt cannot be read: {error}") from error
    found = dict(points[GROUP]) if GROUP in points else {}
    told = ", ".join(f"{one} = {of}" for one, of in sorted(found.items())) or "nothing"
    expect(
        found.get(name, "").replace(" ", "") == value.replace(" ", ""),
        f"entry_points.txt must have '{name} = {value}' under [{GROUP}], found {told}",
    )
    return f"{name} = {value}"


def _licence(content: Content) -> str:
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


def _package_alone(content: Content, package: str) -> str:
    tops = {name.split("/")[0] for name in content.names if not name.startswith("..")}
    strange = sorted(t for t in tops if t != package and not t.endswith(".dist-info"))
    expect(not strange, f"it would put {', '.join(strange)} beside {package} into site-packages")
    return f"{package} and its .dist-info"


def _whole_parent(content: Content, package: Package, parent: Path) -> str:
    """Check the files of a packaged parent: there, and those that its manifest records."""
    goal = {parent / MANIFEST: sha256(parent / MANIFEST)}
    goal |= {parent / name: digest for name, digest in read_manifest(parent).files.items()}
    places = {package.place(file): digest for file, digest in goal.items()}
    found = _has(content, list(places))
    for place, digest in places.items():
        with content.open(place) as handle:
            right = hashlib.file_digest(handle, "sha256").hexdigest() == digest  # type: ignore[arg-type]
        expect(
            right,
            f"its {place} is not the one that {MANIFEST} records; was it built before the parent "
            "was written anew, or with a pointer in the file's place?",
        )
    return f"{found} as recorded"


def _has(content: Content, names: list[str]) -> str:
    lacking = sorted(set(names) - content.names)
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""  # noqa: PLR2004
    expect(
        not lacking,
        f"the wheel lacks {', '.join(lacking[:5])}{more}; is it ignored by git, or not among the "
        "files that the build takes?",
    )
    return f"{len(names)} files"
