"""What is installed, chosen and allowed: the one place where names become declared values."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self, TypeVar, cast

import modalloy
from modalloy import builtin
from modalloy.benchmark import Benchmark
from modalloy.discovery import (
    DENY_VARIABLE,
    PluginReport,
    View,
    discover,
    requested,
    resolve,
    same_name,
)
from modalloy.errors import (
    DuplicateNameError,
    ModalloyWarning,
    PluginError,
    UnknownNameError,
)
from modalloy.modality import Connector, Encoder, MergeMethod, Modality
from modalloy.parent import Parent
from modalloy.quarantine import BUILTIN, KINDS, Plugin, Spec, load
from modalloy.tensor_method import TensorMethod

_S = TypeVar("_S", bound=Spec)


class Registry:
    """The plugins in use and what they supply, by name.

    ``Registry()`` knows what the core ships and no entry points; :meth:`discover` adds what is
    installed. A name that two plugins offer belongs to neither: the later plugin, by name, is
    left out whole, and using the name raises until one of the two is disabled. The names of the
    core are its own, and cannot be contested.

    As a context manager it restores, on exit, what was registered and enabled on entry.
    """

    def __init__(self) -> None:
        self._disabled: frozenset[str] = frozenset()
        self._view = resolve([_core()], self._disabled)
        self._saved: list[tuple[View, frozenset[str]]] = []

    @classmethod
    def discover(
        cls,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        *,
        strict: bool = True,
    ) -> Self:
        """Return a registry of the core and of all plugins that are installed and allowed.

        Args:
            allow: Names of the only plugins to load; ``None`` reads ``MODALLOY_PLUGINS``, and
                loads all where that is not set.
            deny: Names of plugins not to load; ``None`` reads ``MODALLOY_DISABLE``. It wins.
            strict: Whether a broken plugin named in the allow list raises. If not, it warns and
                is listed like any other.

        Raises:
            UnknownNameError: A name in either list is not installed.
            PluginError: A plugin named in the allow list is broken.

        Warns:
            ModalloyWarning: A plugin that nobody asked for is broken, and left out.
        """
        allow = None if allow is None else frozenset(allow)
        asked = requested(allow)
        registry = cls()
        found = discover(allow, deny)
        registry._view = resolve([*registry._view.plugins, *found], registry._disabled)
        for report in registry.reports:
            if report.status in ("loaded", "blocked"):
                continue
            if strict and report.name in asked:
                raise _refused(report) from report.exception
            warnings.warn(str(report), ModalloyWarning, stacklevel=2)
        return registry

    def __enter__(self) -> Self:
        self._saved.append((self._view, self._disabled))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._view, self._disabled = self._saved.pop()

    @property
    def reports(self) -> tuple[PluginReport, ...]:
        """How every plugin fared: the core's own first, then by name."""
        return self._view.reports

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """The modalities in use, by name, sorted."""
        return self._table(Modality)

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        """The kinds of encoder in use, by name, sorted."""
        return self._table(Encoder)

    @property
    def connectors(self) -> Mapping[str, Connector]:
        """The kinds of connector in use, by name, sorted."""
        return self._table(Connector)

    @property
    def merge_methods(self) -> Mapping[str, MergeMethod]:
        """The merge methods in use, by name, sorted."""
        return self._table(MergeMethod)

    @property
    def tensor_methods(self) -> Mapping[str, TensorMethod]:
        """The methods in use that merge whole weights, by name, sorted."""
        return self._table(TensorMethod)

    @property
    def benchmarks(self) -> Mapping[str, Benchmark]:
        """The benchmarks in use, by name, sorted."""
        return self._table(Benchmark)

    def parents(self, base: str | None = None, modality: str | None = None) -> tuple[Parent, ...]:
        """Return the parents in use, sorted by name.

        Args:
            base: Only those declared for the base of this name or Hub id.
            modality: Only those of this modality.
        """
        return tuple(
            parent
            for parent in self._table(Parent).values()
            if base in (None, parent.base) and modality in (None, parent.modality)
        )

    def modality(self, name: str, *, requires: str | None = None) -> Modality:
        """Return a modality by name.

        Args:
            name: Its name.
            requires: Requirement that would supply it, such as ``"modalloy-vision>=0.1"``.

        Raises:
            UnknownNameError: Nothing in use supplies it; the message says what to install.
            PluginError: A plugin that is installed would, but is broken or disabled.
            DuplicateNameError: Two plugins offer it.
        """
        return self._lookup(Modality, name, requires)

    def encoder(self, name: str, *, requires: str | None = None) -> Encoder:
        """Return a kind of encoder by name; arguments and errors as :meth:`modality`."""
        return self._lookup(Encoder, name, requires)

    def connector(self, name: str, *, requires: str | None = None) -> Connector:
        """Return a kind of connector by name; arguments and errors as :meth:`modality`."""
        return self._lookup(Connector, name, requires)

    def parent(self, name: str) -> Parent:
        """Return a parent by name; errors as :meth:`modality`."""
        return self._lookup(Parent, name)

    def merge_method(self, name: str) -> MergeMethod:
        """Return a merge method by name; errors as :meth:`modality`."""
        return self._lookup(MergeMethod, name)

    def tensor_method(self, name: str) -> TensorMethod:
        """Return a method that merges whole weights by name; errors as :meth:`modality`."""
        return self._lookup(TensorMethod, name)

    def benchmark(self, name: str) -> Benchmark:
        """Return a benchmark by name; errors as :meth:`modality`."""
        return self._lookup(Benchmark, name)

    def owner(self, kind: str, name: str) -> PluginReport:
        """Return the report of the plugin that supplies a name.

        Args:
            kind: ``"modality"``, ``"encoder"``, ``"connector"``, ``"parent"``,
                ``"merge_method"``, ``"tensor_method"`` or ``"benchmark"``.
            name: The name; errors as :meth:`modality`.
        """
        kinds = {known.name: known.type for known in KINDS}
        if kind not in kinds:
            raise UnknownNameError("kind", kind, kinds)
        self._lookup(kinds[kind], name)
        return self.reports[self._view.owners[kind, name]]

    def require(self, name: str) -> PluginReport:
        """Return the report of a plugin that must be in use.

        Raises:
            UnknownNameError: No such plugin is installed.
            PluginError: It is broken, left out or disabled; the message says where and why.
        """
        report = self._named(name)[0]
        if report.status != "loaded":
            raise _refused(report) from report.exception
        return report

    def implementations(self, hook: str) -> tuple[tuple[PluginReport, Callable[..., object]], ...]:
        """Return, for every plugin in use that implements a hook, its report and the hook."""
        return tuple(
            (report, getattr(plugin.manager.hook, hook))
            for report, plugin in zip(self.reports, self._view.plugins, strict=True)
            if plugin.manager is not None and hook in report.hooks
        )

    def register(self, plugin: object, *, name: str) -> PluginReport:
        """Add a plugin object (a module or an instance with hooks), whole or not at all.

        Raises:
            PluginError: It has no hooks, or one of them fails.
            DuplicateNameError: Its name, or a name that it offers, is taken.
        """
        added = load(Plugin(PluginReport(name=name), lambda: plugin))
        taken = [report for report in self.reports if report.name == name]
        if taken:
            raise same_name(name, [*taken, added.report])
        self._change([*self._view.plugins, added], self._disabled)
        return self.require(name)

    def disable(self, name: str) -> None:
        """Take a plugin, and all that it supplies, out of use.

        Raises:
            UnknownNameError: No such plugin is known.
            PluginError: It is the core's own.
        """
        if name == BUILTIN:
            raise PluginError(
                f"plugin {BUILTIN!r} is the core itself and cannot be disabled", plugin=name
            )
        self._named(name)
        self._change(self._view.plugins, self._disabled | {name})

    def enable(self, name: str) -> PluginReport:
        """Put a plugin to use that was disabled, in code or by the environment.

        Raises:
            UnknownNameError: No such plugin is known.
            PluginError: It is broken.
            DuplicateNameError: It offers a name that another plugin in use offers, too.
        """
        self._named(name)
        same = [p.report for p in self._view.plugins if p.report.name == name]
        if len(same) > 1:
            raise same_name(name, same)
        asleep = same[0].status == "blocked"
        plugins = [
            load(plugin) if asleep and plugin.report.name == name else plugin
            for plugin in self._view.plugins
        ]
        self._change(plugins, self._disabled - {name})
        return self.require(name)

    def _change(self, plugins: Iterable[Plugin], disabled: frozenset[str]) -> None:
        """Adopt a new state, unless that would break or contest what is in use or asked for."""
        view = resolve(plugins, disabled)
        before = {
            (report.name, report.distribution)
            for report in self.reports
            if report.status in ("failed", "duplicate")
        }
        for report in view.reports:
            if (report.name, report.distribution) in before:
                continue
            if report.status == "duplicate" and isinstance(report.exception, DuplicateNameError):
                raise report.exception
            if report.status == "failed":
                raise _refused(report) from report.exception
        self._view, self._disabled = view, disabled

    def _named(self, name: str) -> list[PluginReport]:
        found = [report for report in self.reports if report.name == name]
        if not found:
            raise UnknownNameError("plugin", name, {report.name for report in self.reports})
        return found

    def _table(self, kind: type[_S]) -> Mapping[str, _S]:
        return cast("Mapping[str, _S]", self._view.tables[_KIND_NAMES[kind]])

    def _lookup(self, kind: type[_S], name: str, requires: str | None = None) -> _S:
        table = self._table(kind)
        if name in table:
            return table[name]
        key = (_KIND_NAMES[kind], name)
        if key in self._view.contested:
            raise self._view.contested[key].with_traceback(None)
        wanted = _distribution(requires) if requires else None
        for report, plugin in zip(self.reports, self._view.plugins, strict=True):
            would = name in plugin.offers.get(key[0], {}) or (
                wanted is not None and _canonical(report.distribution or "") == wanted
            )
            if report.status != "loaded" and would:
                raise _refused(report, f"{key[0].replace('_', ' ')} {name!r} needs it: ") from (
                    report.exception
                )
        raise UnknownNameError(key[0].replace("_", " "), name, table, hint=self._hint(requires))

    def _hint(self, requires: str | None) -> str:
        parts = []
        named = _distribution(requires) if requires else None
        has = {_canonical(r.distribution or ""): r.version for r in self.reports}
        if named in has:
            parts.append(f"{requires} is to supply it; installed is {has[named]}.")
        elif requires:
            parts.append(f'Install what supplies it: pip install "{requires}".')
        broken = [r.name for r in self.reports if r.status in ("failed", "duplicate")]
        if broken:
            parts.append(
                f"Not in use for being broken: {', '.join(broken)} (see `modalloy plugins`)."
            )
        return " ".join(parts)


_KIND_NAMES: dict[type[object], str] = {kind.type: kind.name for kind in KINDS}


def _core() -> Plugin:
    """Return what the core ships, loaded like any plugin."""
    report = PluginReport(name=BUILTIN, distribution="modalloy", version=modalloy.__version__)
    core = load(Plugin(report, lambda: builtin))
    if core.report.exception is not None:
        raise core.report.exception
    return core


def _refused(report: PluginReport, why: str = "") -> PluginError:
    """Return the error for asking for a plugin that is not in use."""
    advice = {
        "failed": f"mend, upgrade or uninstall it, or disable it with {DENY_VARIABLE}",
        "duplicate": "a plugin is used whole or not at all",
        "blocked": "enable it to use it",
    }
    message = f"{why}{report}; {advice[report.status]}"
    return PluginError(message, plugin=report.name, stage=report.stage)


def _distribution(requirement: str) -> str:
    """Return the canonical name in a requirement such as ``"modalloy-vision[x]>=0.1"``."""
    return _canonical(re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0])


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
