"""Whether the plugins that are installed are those that a saved composition was made with.

A composition holds the settings of its encoders, and a plugin of another version may understand
them otherwise: then it would answer, and wrongly. What is decided here:

- the plugin of a modality is not installed, or offers it no more: a warning, since the composition
  runs without it, on text and on ``inputs_embeds``;
- it is installed in an incompatible version, one outside what the parent requires, or of another
  major version (of another minor one before 1.0) where it requires nothing: an error;
- it is older than the recorded one, and compatible: a warning;
- its version cannot be told: a warning;
- it is newer, and compatible: nothing. What is built locally (``1.2+cu121``) counts as what it was
  built from (``1.2``).
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import modalloy
from modalloy.discovery import DENY_VARIABLE
from modalloy.errors import FormatError, ModalloyWarning, PluginError
from modalloy.quarantine import PluginReport
from modalloy.registry import Registry

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@attrs.frozen
class _Recorded:
    """The plugin that a modality of a composition came from.

    Attributes:
        modality: Name of the modality.
        distribution: Canonical name of the distribution.
        version: Its version then, without a local part, which nobody else could install.
        requires: What the parent requires of it, if that is told.
    """

    modality: str
    distribution: str
    version: Version
    requires: Requirement | None

    @property
    def origin(self) -> str:
        """The plugin, as messages name it."""
        return f"{self.distribution} {self.version}"

    @property
    def asked(self) -> SpecifierSet | None:
        """The versions that the parent requires, if it says any."""
        return (self.requires and self.requires.specifier) or None

    def fits(self, version: Version) -> bool:
        """Whether a version is compatible."""
        if self.asked is not None:
            return self.asked.contains(version, prereleases=True)
        return _series(version) == _series(self.version)

    def advice(self, *, least: bool = False) -> str:
        """Return what to install; with ``least``, nothing that is older than was recorded."""
        if self.asked is not None and not least:
            return f'pip install "{self.requires}"'
        if self.asked is not None:
            return f'pip install "{self.distribution}>={self.version},{self.asked}"'
        epoch, *series = _series(self.version)
        end = ".".join(map(str, (*series[:-1], series[-1] + 1)))
        end = f"{epoch}!{end}" if epoch else end
        return f'pip install "{self.distribution}>={self.version},<{end}"'


def check_plugins(
    path: Path,
    record: Mapping[str, Any],
    modalities: Mapping[str, Mapping[str, Any]],
    registry: Registry,
) -> None:
    """Check the plugins of a composition against those that it was made with.

    Args:
        path: The model directory, for messages.
        record: Content of its ``modalloy.json``.
        modalities: ``modalities`` of its configuration.
        registry: What is installed.

    Raises:
        PluginError: A plugin is installed in an incompatible version.
        FormatError: The record is malformed.

    Warns:
        ModalloyWarning: A plugin is missing, is another one, or is older.
    """
    _check_core(path, record.get("modalloy"))
    for one in _recorded(path, record, modalities):
        if one.modality in registry.modalities:
            _check_version(path, one, registry)
            continue
        installed = _distributions(registry).get(one.distribution)
        if installed is None or installed.status == "loaded":
            state = "is not installed" if installed is None else f"{installed.version} has no more"
            _warn(
                f"{path}: modality {one.modality!r} needs {one.origin}, which {state}; "
                f"{one.advice()}. Without it the composition runs on text and on inputs_embeds"
            )


def _check_version(path: Path, one: _Recorded, registry: Registry) -> None:
    owner = registry.owner("modality", one.modality)
    if owner.distribution is None:
        return  # registered in code, by someone who knows
    if canonicalize_name(owner.distribution) != one.distribution:
        _warn(
            f"{path}: modality {one.modality!r} was composed with {one.origin}, and is supplied by "
            f"{owner.origin} here, which may read it otherwise; if it should be the same, "
            f"{one.advice()}"
        )
        return
    try:
        installed = Version(owner.version or "")
    except InvalidVersion:
        _warn(
            f"{path}: modality {one.modality!r} was composed with {one.origin}, and a version that "
            f"cannot be told ({owner.version!r}) is installed; reinstall it: {one.advice()}"
        )
        return
    if not one.fits(installed):
        message = (
            f"{path}: modality {one.modality!r} was composed with {one.origin}, and {installed} is "
            "installed, an incompatible version, which may understand the composition's settings "
            f"otherwise; {one.advice()}, or open it without: {DENY_VARIABLE}={owner.name}"
        )
        raise PluginError(message, plugin=owner.name, stage="version")
    if installed < one.version:
        _warn(
            f"{path}: modality {one.modality!r} was composed with {one.origin}, and {installed} is "
            f"installed, which is older; {one.advice(least=True)}"
        )


def _check_core(path: Path, recorded: object) -> None:
    """Warn of a composition that was saved by a later modalloy than this."""
    try:
        version, here = Version(str(recorded)), Version(modalloy.__version__)
    except InvalidVersion:
        return  # "unknown", as compositions said that were made where modalloy was not installed
    if _series(version) > _series(here):
        _warn(
            f"{path} was saved by modalloy {version}, this is {here}, which may not know all that "
            f'is in it; pip install "modalloy>={version.public}"'
        )


def _recorded(
    path: Path, record: Mapping[str, Any], modalities: Mapping[str, Mapping[str, Any]]
) -> list[_Recorded]:
    """Return the plugins that are recorded with a distribution and a version."""
    found = []
    parents = record.get("parents")
    for parent in parents if isinstance(parents, list) else [parents]:
        plugin = parent.get("plugin") if isinstance(parent, dict) else None
        if not isinstance(parent, dict) or not isinstance(plugin, dict):
            raise _malformed(path, "parents must be a list of parents with their plugin")
        name, version = plugin.get("distribution"), plugin.get("version")
        if name is None or version is None or parent.get("modality") not in modalities:
            continue
        modality = parent["modality"]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _malformed(path, f"the plugin of {modality!r} has no name of a distribution")
        try:
            made_with = Version(Version(version).public)
        except (InvalidVersion, TypeError) as error:
            raise _malformed(path, f"the plugin of {modality!r} has no version") from error
        requires = _requirement(path, modalities[modality].get("requires"), name)
        found.append(_Recorded(modality, canonicalize_name(name), made_with, requires))
    return found


def _requirement(path: Path, text: str | None, distribution: str) -> Requirement | None:
    """Return what a parent requires of its plugin's distribution; ``None`` if of another."""
    if text is None:
        return None
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        message = f"{path}: config.json requires {text!r}, which pip does not understand ({error})"
        raise FormatError(message, path=path) from error
    same = canonicalize_name(found.name) == canonicalize_name(distribution)
    return found if same else None


def _series(version: Version) -> tuple[int, ...]:
    """Return epoch and what compatible versions have in common: 2 of 2.3.1, (0, 3) of 0.3.1."""
    release = version.release
    return (version.epoch, *(release[:1] if release[0] else (*release, 0)[:2]))


def _distributions(registry: Registry) -> dict[str, PluginReport]:
    """Return a report of each distribution, one of a plugin that is not in use if there is one."""
    reports = sorted(registry.reports, key=lambda report: report.status != "loaded")
    return {canonicalize_name(r.distribution): r for r in reports if r.distribution}


def _malformed(path: Path, problem: str) -> FormatError:
    file = path / "modalloy.json"
    return FormatError(f"{file}: {problem}; fetch the composition again or compose anew", path=file)


def _warn(message: str) -> None:
    warnings.warn(message, ModalloyWarning, stacklevel=4)
