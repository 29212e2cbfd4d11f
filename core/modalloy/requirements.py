"""What to tell pip for the same plugins to be installed elsewhere.

Where a distribution came from is read in its ``direct_url.json`` (PEP 610), which pip writes for
everything that it did not take from an index. A path of this machine, a password or a token in an
address is never repeated: such a line is a comment, since nobody else could install from there.
"""

import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import attrs

from modalloy.quarantine import PluginReport

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_COMMIT = re.compile(r"[0-9A-Za-z]+")
_VCS = ("git", "hg", "svn", "bzr")


@attrs.frozen
class InstalledDistribution:
    """A distribution with plugins, and how to install it elsewhere.

    Attributes:
        name: Its name.
        version: Its version.
        origin: ``"index"``, ``"vcs"``, ``"archive"``, ``"local"`` or ``"unknown"``.
        requirement: What pip takes; ``None`` where nobody else could install it from there.
        note: Why there is none.
    """

    name: str
    version: str | None
    origin: str
    requirement: str | None
    note: str | None = None

    @property
    def line(self) -> str:
        """A line of a requirements file."""
        if self.requirement is not None:
            return self.requirement
        return f"# {self.name} {self.version or '(unknown version)'}: {self.note}"


def installed_set(reports: Iterable[PluginReport]) -> tuple[InstalledDistribution, ...]:
    """Return the distributions of plugins, in use or not: the core's own first, then by name."""
    found: dict[object, InstalledDistribution] = {}
    for report in reports:
        if report.distribution is not None:
            one = _describe(report)
            # Several may be damaged so much that their names are not known.
            key = report.distribution if one.version is not None else (one.name, report.name)
            found.setdefault(key, one)
    described = list(found.values())
    others = sorted(described[1:], key=lambda one: (one.name.lower(), one.name))
    return (*described[:1], *others)


def _describe(report: PluginReport) -> InstalledDistribution:
    name, version = str(report.distribution), report.version
    if not _NAME.fullmatch(name) or version is None or not _VERSION.fullmatch(version):
        note = f"its metadata is damaged, of plugin {report.name!r}; reinstall it"
        return InstalledDistribution(ascii(name)[1:-1], None, "unknown", None, note)
    try:
        text = importlib.metadata.distribution(name).read_text("direct_url.json")
        origin = json.loads(text) if text else None
    except (importlib.metadata.PackageNotFoundError, ValueError, RecursionError, OSError) as error:
        note = f"where it came from cannot be told ({type(error).__name__})"
        return InstalledDistribution(name, version, "unknown", None, note)
    if origin is None:
        return InstalledDistribution(name, version, "index", f"{name}=={version}")
    if not isinstance(origin, dict) or not isinstance(origin.get("url"), str):
        note = "where it came from cannot be told (its direct_url.json names no address)"
        return InstalledDistribution(name, version, "unknown", None, note)
    return _from_address(name, version, origin)


def _from_address(name: str, version: str, origin: Mapping[str, Any]) -> InstalledDistribution:
    try:
        address = urlsplit(origin["url"])
        bare = _without_secrets(address)
    except ValueError:  # an address that is none
        note = "where it came from cannot be told (its address is malformed)"
        return InstalledDistribution(name, version, "unknown", None, note)
    vcs, archive = _mapping(origin, "vcs_info"), _mapping(origin, "archive_info")
    kind = "vcs" if vcs else "archive" if "archive_info" in origin else "local"
    commit = str(vcs.get("commit_id", ""))
    if kind == "local" or address.scheme not in ("http", "https", "ssh", "git"):
        what = "editable, from a directory" if _is_editable(origin) else f"from a {_THING[kind]}"
        at = f" (commit {commit})" if _COMMIT.fullmatch(commit) else ""
        note = f"installed {what} of this machine{at}; install it from a copy, or publish it"
        return InstalledDistribution(name, version, "local", None, note)
    if bare is None or re.search(r"\s", bare):
        note = f"installed from a {_THING[kind]} whose address may hold a secret; give it yourself"
        return InstalledDistribution(name, version, kind, None, note)
    fragments = []
    if kind == "vcs":
        if vcs.get("vcs") not in _VCS or not _COMMIT.fullmatch(commit):
            note = f"installed from {bare}, at a commit that is not recorded"
            return InstalledDistribution(name, version, kind, None, note)
        bare = f"{vcs['vcs']}+{bare}@{commit}"
    elif digest := _sha256(archive):
        fragments.append(f"sha256={digest}")
    folder = origin.get("subdirectory")
    if isinstance(folder, str) and re.fullmatch(r"[\w./-]+", folder):
        fragments.append(f"subdirectory={folder}")
    end = f"#{'&'.join(fragments)}" if fragments else ""
    return InstalledDistribution(name, version, kind, f"{name} @ {bare}{end}")


_THING = {"vcs": "repository", "archive": "file", "local": "directory"}


def _mapping(origin: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = origin.get(key)
    return value if isinstance(value, dict) else {}


def _is_editable(origin: Mapping[str, Any]) -> bool:
    return _mapping(origin, "dir_info").get("editable") is True


def _without_secrets(address: SplitResult) -> str | None:
    """Return an address without a password; ``None`` where a query may hold a token."""
    if address.query:
        return None
    host = address.hostname or ""
    port = f":{address.port}" if address.port else ""
    # Of an ssh address the user is part of where it leads, and everybody's: git@github.com.
    user = "git@" if address.username == "git" else ""
    return urlunsplit((address.scheme, f"{user}{host}{port}", address.path, "", ""))


def _sha256(archive: Mapping[str, Any]) -> str | None:
    """Return the recorded hash of an archive, in either form of PEP 610."""
    hashes = archive.get("hashes")
    found = hashes.get("sha256") if isinstance(hashes, dict) else None
    found = found or str(archive.get("hash", "")).removeprefix("sha256=")
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f]{64}", found) else None
