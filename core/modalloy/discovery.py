"""Finding plugins, and what a set of them amounts to, as data.

Entry points of the group ``modalloy`` are loaded each on its own (:mod:`modalloy.quarantine`);
:func:`resolve` then tells, for plugins already loaded, which names are in use.
"""

import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

import attrs

from modalloy.errors import DuplicateNameError, UnknownNameError
from modalloy.hookspecs import GROUP
from modalloy.quarantine import BUILTIN, KINDS, Kind, Plugin, PluginReport, Spec, load

__all__ = ["ALLOW_VARIABLE", "DENY_VARIABLE", "PluginReport", "View", "discover", "resolve"]

ALLOW_VARIABLE = "MODALLOY_PLUGINS"
"""Environment variable with the only plugins to load, comma-separated; empty loads none."""

DENY_VARIABLE = "MODALLOY_DISABLE"
"""Environment variable with plugins not to load, comma-separated; it wins over the allow list."""


@attrs.frozen(eq=False)
class View:
    """Which plugins are in use, and what by name they supply.

    Attributes:
        plugins: All plugins, the core's own first, then by name and distribution.
        reports: One of each, in the same order.
        tables: By kind, the names in use with their values, sorted.
        owners: By kind and name in use, index of the plugin that supplies it.
        contested: By kind and name offered twice, the error for using it.
    """

    plugins: tuple[Plugin, ...]
    reports: tuple[PluginReport, ...]
    tables: Mapping[str, Mapping[str, Spec]]
    owners: Mapping[tuple[str, str], int]
    contested: Mapping[tuple[str, str], DuplicateNameError]


def discover(
    allow: Iterable[str] | None = None, deny: Iterable[str] | None = None
) -> tuple[Plugin, ...]:
    """Load every installed and allowed plugin, each on its own.

    Args:
        allow: Names of the only plugins to load; ``None`` reads ``MODALLOY_PLUGINS``, and loads
            all where that is not set.
        deny: Names of plugins not to load; ``None`` reads ``MODALLOY_DISABLE``.

    Returns:
        All installed plugins, loaded or not, sorted by name, then distribution.

    Raises:
        UnknownNameError: A name in either list is not installed.
    """
    plugins = sorted(_declared(), key=_order)
    known = {plugin.report.name for plugin in plugins}
    allowed, allowed_by = _selection(allow, ALLOW_VARIABLE, "allow", known)
    denied, denied_by = _selection(deny, DENY_VARIABLE, "deny", known)
    result: list[Plugin] = []
    for name, same in groupby(plugins, key=lambda plugin: plugin.report.name):
        group = list(same)
        if denied is not None and name in denied:
            result += [p.left_out("blocked", None, f"{denied_by} names it") for p in group]
        elif allowed is not None and name not in allowed:
            result += [p.left_out("blocked", None, f"{allowed_by} does not name it") for p in group]
        elif len(group) > 1 or name == BUILTIN:
            error = same_name(name, [plugin.report for plugin in group])
            result += [p.left_out("duplicate", "names", error) for p in group]
        else:
            result.append(load(group[0]))
    return tuple(result)


def requested(allow: Iterable[str] | None) -> frozenset[str]:
    """Return the plugins asked for by name: ``allow``, or else those of ``MODALLOY_PLUGINS``."""
    names = _names(os.environ.get(ALLOW_VARIABLE)) if allow is None else allow
    return frozenset(names or ())


def resolve(plugins: Iterable[Plugin], disabled: frozenset[str]) -> View:
    """Tell which names a set of plugins supplies.

    A name that several offer is contested: it belongs to none of them, and all but the first are
    left out whole. The core's names cannot be contested; who offers one of them is left out.

    Args:
        plugins: The plugins, in any order.
        disabled: Names of those not to use.
    """
    ordered = tuple(sorted(plugins, key=_order))
    first: dict[tuple[str, str], int] = {}
    contested: dict[tuple[str, str], DuplicateNameError] = {}
    reports: list[PluginReport] = []
    for index, plugin in enumerate(ordered):
        report = plugin.report
        if report.name in disabled:
            reports.append(report.left_out("blocked", None, "it was disabled in code"))
            continue
        clash = None
        for kind, name in _offered(plugin):
            owner = ordered[first.setdefault((kind.name, name), index)].report
            if owner is not report:
                error = _clash(kind, name, owner, report)
                clash = clash or error
                if owner.name != BUILTIN:
                    contested.setdefault((kind.name, name), error)
        reports.append(report.left_out("duplicate", "names", clash) if clash else report)
    owners = {key: i for key, i in first.items() if reports[i].status == "loaded"}
    return _view(
        ordered, reports, {k: i for k, i in owners.items() if k not in contested}, contested
    )


def same_name(name: str, group: Sequence[PluginReport]) -> DuplicateNameError:
    """Return the error for a plugin name that is not one plugin's alone."""
    origins = [report.origin for report in group]
    owners = [report.distribution or report.origin for report in group]
    if name == BUILTIN:
        message = (
            f"plugin {name!r} is the core's own, and {origins[-1]} has the same name; rename it"
        )
        return DuplicateNameError(message, name=name, owners=("modalloy", owners[-1]))
    advice = "uninstall one of them"
    if owners[0] == owners[1]:
        advice = f"an installation that was interrupted leaves this, reinstall {owners[0]}"
    message = (
        f"plugin {name!r} is declared by {' and by '.join(origins)}, and neither is preferred; "
        f"{advice}"
    )
    return DuplicateNameError(message, name=name, owners=(owners[0], owners[1]))


def _order(plugin: Plugin) -> tuple[bool, str, str]:
    report = plugin.report
    core = report.name == BUILTIN and report.distribution == "modalloy"
    return not core, report.name, report.origin


def _offered(plugin: Plugin) -> list[tuple[Kind, str]]:
    if plugin.report.status != "loaded":
        return []
    return [(kind, name) for kind in KINDS for name in plugin.offers[kind.name]]


def _clash(kind: Kind, name: str, one: PluginReport, other: PluginReport) -> DuplicateNameError:
    if one.name == BUILTIN:
        message = (
            f"{kind.words} {name!r} belongs to the core, and {other.subject} offers it too; rename "
            "it there"
        )
    else:
        message = (
            f"{kind.words} {name!r} is offered by {one.subject} and by {other.subject}, and "
            f"neither is preferred; uninstall one of them, or disable it with {DENY_VARIABLE}"
        )
    owners = (one.distribution or one.origin, other.distribution or other.origin)
    return DuplicateNameError(message, name=name, owners=owners)


def _view(
    plugins: tuple[Plugin, ...],
    reports: Sequence[PluginReport],
    owners: Mapping[tuple[str, str], int],
    contested: Mapping[tuple[str, str], DuplicateNameError],
) -> View:
    """Build the tables from who owns what; reports name what is in use and nothing else."""
    tables = {
        kind.name: MappingProxyType(
            {
                name: plugins[index].offers[kind.name][name]
                for (of, name), index in sorted(owners.items())
                if of == kind.name
            }
        )
        for kind in KINDS
    }

    def in_use(kind: str, index: int) -> tuple[str, ...]:
        return tuple(name for name in tables[kind] if owners[kind, name] == index)

    named = tuple(
        attrs.evolve(
            report,
            modalities=in_use("modality", index),
            encoders=in_use("encoder", index),
            connectors=in_use("connector", index),
            parents=in_use("parent", index),
            merge_methods=in_use("merge_method", index),
            tensor_methods=in_use("tensor_method", index),
            benchmarks=in_use("benchmark", index),
        )
        for index, report in enumerate(reports)
    )
    return View(plugins, named, tables, owners, contested)


def _declared() -> list[Plugin]:
    """Return every declared plugin, yet to load; what is declared twice to the letter, once."""
    plugins: list[Plugin] = []
    try:
        points = list(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # noqa: BLE001 - the parser of a damaged file raises anything
        points, plugins = _one_by_one()
    found: dict[tuple[str, str, str], Plugin] = {}
    for point in points:
        plugin = _identify(point)
        found.setdefault((point.name, plugin.report.origin, point.value), plugin)
    return [*plugins, *found.values()]


def _one_by_one() -> tuple[list[importlib.metadata.EntryPoint], list[Plugin]]:
    """Return entry points, and distributions with plugins whose entry points cannot be read.

    Where the files of a single distribution are damaged, a plugin's or not, importlib.metadata
    reads nobody's. Of those of one name the first on the path counts, as there.
    """
    points: list[importlib.metadata.EntryPoint] = []
    damaged: list[Plugin] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        text: object = None
        try:
            name = re.sub(r"[-_.]+", "-", distribution.name or "").lower()
            if name in seen:
                continue
            text = distribution.read_text("entry_points.txt") or ""
            points += distribution.entry_points.select(group=GROUP)
            seen |= {name} - {""}
        except Exception as error:  # noqa: BLE001 - as above
            text = error.object.decode("latin-1") if isinstance(error, UnicodeDecodeError) else text
            if f"[{GROUP}]" in str(text):
                damaged.append(_unread(distribution, error))
    return points, damaged


def _unread(distribution: importlib.metadata.Distribution, error: Exception) -> Plugin:
    try:
        name = distribution.name or _UNKNOWN
    except Exception:  # noqa: BLE001 - as above
        name = _UNKNOWN
    plugin = Plugin(PluginReport(name=name, distribution=name), lambda: None)
    reason = f"its entry_points.txt cannot be read ({type(error).__name__}: {error}); reinstall it"
    return plugin.left_out("failed", "metadata", reason)


def _identify(point: importlib.metadata.EntryPoint) -> Plugin:
    """Return an entry point as a plugin yet to load, or failed where its metadata is damaged."""
    report = PluginReport(name=point.name, distribution=_UNKNOWN)
    plugin = Plugin(report, point.load)
    if point.dist is None:
        return plugin.left_out("failed", "metadata", "it belongs to no distribution")
    try:
        name, version = point.dist.name, point.dist.version
    except Exception as error:  # noqa: BLE001 - the parser of a damaged METADATA raises anything
        return plugin.left_out("failed", "metadata", error)
    if not name:
        problem = f"the METADATA of the distribution with {point.value!r} has no Name; reinstall it"
        return plugin.left_out("failed", "metadata", problem)
    plugin = Plugin(attrs.evolve(report, distribution=name, version=version), point.load)
    if not _NAME.fullmatch(point.name):
        problem = "its entry point's name must be of letters, digits, '-', '_' and '.'"
        return plugin.left_out("failed", "metadata", problem)
    if not _VALUE.fullmatch(point.value):
        problem = f"its entry point must name 'package.module'; it names {point.value!r:.80}"
        return plugin.left_out("failed", "metadata", problem)
    return plugin


_UNKNOWN = "unknown distribution"
_NAME = re.compile(r"[\w.-]+", re.ASCII)  # of what can stand in a list with commas
_VALUE = re.compile(r"\w+(\.\w+)*(\s*:\s*\w+(\.\w+)*)?\s*(\[.*\])?")


def _selection(
    names: Iterable[str] | None, variable: str, argument: str, known: Iterable[str]
) -> tuple[frozenset[str] | None, str]:
    """Return the names chosen, ``None`` for no choice, and who chose, for messages."""
    source = argument
    if names is None:
        names, source = _names(os.environ.get(variable)), variable
    if names is None:
        return None, source
    chosen = frozenset(names)
    for name in sorted(chosen.difference(known)):
        raise UnknownNameError("plugin", name, known, hint=f"It was given in {source}.")
    return chosen, source


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [part.strip() for part in text.split(",") if part.strip()]
