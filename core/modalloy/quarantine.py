"""One plugin, loaded where it can do no harm.

Each plugin has a pluggy manager to itself, which it never leaves. So a plugin that fails in its
import, its hook signatures or any of its hooks can leave nothing behind, no plugin's hook runs
before, around or instead of another's, and the order of results is ours.
"""

import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Self, TypeAlias

import attrs
import pluggy

from modalloy import hookspecs
from modalloy.benchmark import Benchmark
from modalloy.errors import DuplicateNameError, SpecError, nearest
from modalloy.hookspecs import GROUP
from modalloy.modality import Connector, Encoder, MergeMethod, Modality
from modalloy.parent import Parent
from modalloy.tensor_method import TensorMethod

BUILTIN = "builtin"
"""Name under which the core's own offers are registered; no plugin may take it."""

Spec: TypeAlias = Modality | Encoder | Connector | Parent | MergeMethod | TensorMethod | Benchmark


@attrs.frozen
class Kind:
    """A kind of thing that plugins offer.

    Attributes:
        name: Singular, such as ``"merge_method"``.
        plural: Plural, the attribute of :class:`PluginReport`.
        type: Class of the declared values.
    """

    name: str
    plural: str
    type: type[Spec]

    @property
    def hook(self) -> str:
        """Name of the hook that offers it."""
        return f"register_{self.plural}"

    @property
    def words(self) -> str:
        """Its name as messages have it."""
        return self.name.replace("_", " ")


KINDS = (
    Kind("modality", "modalities", Modality),
    Kind("encoder", "encoders", Encoder),
    Kind("connector", "connectors", Connector),
    Kind("parent", "parents", Parent),
    Kind("merge_method", "merge_methods", MergeMethod),
    Kind("tensor_method", "tensor_methods", TensorMethod),
    Kind("benchmark", "benchmarks", Benchmark),
)
"""In the order in which the hooks are called."""

SLOW = 0.5
"""Seconds from which on loading a plugin is told as slow; one should take some milliseconds."""

HOOKS = (*(kind.hook for kind in KINDS), "register_commands")
"""All hooks of the contract."""


@attrs.frozen(kw_only=True)
class PluginReport:
    """How one plugin fared; the names are those in use, so none unless it is loaded.

    Attributes:
        name: Name of its entry point.
        distribution: Distribution that declares it; ``None`` where registered in code.
        version: Version of the distribution.
        status: ``"loaded"``, ``"failed"``, ``"blocked"`` (disabled) or ``"duplicate"``.
        stage: Where it failed: ``"metadata"``, ``"import"``, ``"hooks"``, a hook's name, or
            ``"names"`` for a duplicate.
        error: Why it is not loaded.
        exception: The exception behind ``error``, where there is one.
        seconds: What its import and hooks took; ``None`` where it was not tried. However long a
            plugin takes, it is waited for: nothing can end an import and leave a process that can
            be trusted.
        hooks: Hooks that it implements, sorted.
        modalities: Names of its modalities, sorted; likewise the further ones.
    """

    name: str
    distribution: str | None = None
    version: str | None = None
    status: str = "blocked"
    stage: str | None = None
    error: str | None = None
    exception: BaseException | None = attrs.field(default=None, eq=False, repr=False)
    seconds: float | None = attrs.field(default=None, eq=False)
    hooks: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    connectors: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    merge_methods: tuple[str, ...] = ()
    tensor_methods: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where the plugin comes from, as messages name it."""
        if self.distribution is None:
            return "registered in code"
        return f"{self.distribution} {self.version}" if self.version else self.distribution

    @property
    def subject(self) -> str:
        """The plugin, as messages name it."""
        return f"plugin {self.name!r} ({self.origin})"

    @property
    def slow(self) -> bool:
        """Whether loading it took :data:`SLOW` seconds or more."""
        return self.seconds is not None and self.seconds >= SLOW

    def __str__(self) -> str:
        verdict = {
            "loaded": "is loaded",
            "failed": f"failed at {self.stage}: {self.error}",
            "blocked": f"is disabled: {self.error}",
            "duplicate": f"is left out: {self.error}",
        }
        return f"{self.subject} {verdict[self.status]}"

    def left_out(self, status: str, stage: str | None, reason: BaseException | str) -> Self:
        """Return the report of the same plugin, not in use and why."""
        kept = type(self)(
            name=self.name,
            distribution=self.distribution,
            version=self.version,
            seconds=self.seconds,
        )
        if isinstance(reason, str):
            return attrs.evolve(kept, status=status, stage=stage, error=reason)
        text = str(reason) if isinstance(reason, DuplicateNameError) else named(reason)
        return attrs.evolve(kept, status=status, stage=stage, error=text, exception=reason)


def named(error: BaseException) -> str:
    """Return an error's type and message, whatever a plugin made of it, at most a page long."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - its __str__ is the plugin's code, too
        text = f"(its message cannot be had: {type(second).__name__})"
    if len(text) > _PAGE:
        text = f"{text[:_PAGE]} ... ({len(text)} characters)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_PAGE = 4000


@attrs.frozen(eq=False)
class Plugin:
    """One plugin as loaded, apart from all others.

    Attributes:
        report: How it fared on its own; which of its names are in use is another matter.
        load: Imports and returns the plugin object.
        manager: The plugin's own pluggy manager; ``None`` unless it loaded.
        offers: Declared values by kind and name. Those of a plugin that failed are what it
            offered until then, for telling who would have supplied a missing name.
    """

    report: PluginReport
    load: Callable[[], object]
    manager: pluggy.PluginManager | None = None
    offers: Mapping[str, Mapping[str, Spec]] = attrs.Factory(dict)

    def left_out(self, status: str, stage: str | None, reason: BaseException | str) -> "Plugin":
        """Return the same plugin, not in use and why."""
        return attrs.evolve(self, report=self.report.left_out(status, stage, reason))


def load(plugin: Plugin) -> Plugin:
    """Import a plugin and call its registration hooks in quarantine.

    What it prints meanwhile goes to standard error.

    Returns:
        The plugin with status ``"loaded"`` and its offers, or ``"failed"`` and the reason.
    """
    if plugin.report.stage == "metadata":
        return plugin
    quarantine = _Quarantine(plugin)
    start = time.perf_counter()
    try:
        # What it prints must not get between what a command, or any program, writes as data.
        with contextlib.redirect_stdout(sys.stderr):
            hooks = quarantine.run()
    except KeyboardInterrupt:
        raise
    # Not Exception alone: sys.exit() in an import, or a panic of a Rust extension, must not
    # take the host down either. The reason is kept and reported.
    except BaseException as error:  # noqa: BLE001
        failed = _timed(plugin, start).left_out("failed", quarantine.stage, error)
        return attrs.evolve(failed, offers=quarantine.offers)
    offers = {
        kind.name: MappingProxyType(dict(sorted(quarantine.offers[kind.name].items())))
        for kind in KINDS
    }
    report = attrs.evolve(
        _timed(plugin, start).report,
        status="loaded",
        stage=None,
        error=None,
        exception=None,
        hooks=hooks,
    )
    return Plugin(report, plugin.load, quarantine.manager, offers)


def _timed(plugin: Plugin, start: float) -> Plugin:
    report = attrs.evolve(plugin.report, seconds=round(time.perf_counter() - start, 3))
    return attrs.evolve(plugin, report=report)


class _Quarantine:
    """Loads one plugin in a manager of its own, and knows at which stage it is."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.report = plugin.report
        self.stage = "import"
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.offers: dict[str, dict[str, Spec]] = {kind.name: {} for kind in KINDS}

    def run(self) -> tuple[str, ...]:
        """Return the hooks that the plugin implements, all of its offers gathered."""
        subject = self.plugin.load()
        self.stage = "hooks"
        self.manager.register(subject, name=self.report.name)
        callers = sorted(self.manager.get_hookcallers(subject) or (), key=lambda c: c.name)
        hooks = tuple(caller.name for caller in callers if caller.has_spec())
        for caller in callers:
            for implementation in caller.get_hookimpls():
                self._check(caller, implementation)
        self._check_markers(subject, hooks)
        for kind in KINDS:
            if kind.hook in hooks:
                self.stage = kind.hook
                self._call(kind)
        return hooks

    def _check(self, caller: pluggy.HookCaller, implementation: pluggy.HookImpl) -> None:
        if not caller.has_spec():
            if implementation.optionalhook:
                return
            raise SpecError(
                f"there is no hook {caller.name!r}; known: {', '.join(sorted(HOOKS))}."
                f"{nearest(caller.name, HOOKS)}",
                subject=self.report.subject,
            )
        argument = "cli" if caller.name == "register_commands" else "register"
        # pluggy passes positional arguments without a default, and leaves out all others
        # without a word, so an implementation that has one would never get the callback.
        parameters = inspect.signature(implementation.function).parameters
        fits = list(parameters) == [argument] and all(
            p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters.values()
        )
        if not fits:
            raise SpecError(
                f"hook {caller.name!r} must take exactly one argument, {argument!r}, without a "
                f"default; it takes {inspect.signature(implementation.function)}",
                subject=self.report.subject,
            )

    def _check_markers(self, subject: object, hooks: Sequence[str]) -> None:
        bare = [
            hook
            for hook in HOOKS
            if hook not in hooks and callable(inspect.getattr_static(subject, hook, None))
        ]
        if bare:
            raise SpecError(
                f"{', '.join(bare)} would never be called; mark it with @modalloy.hookimpl",
                subject=self.report.subject,
            )
        if not hooks:
            raise SpecError(
                f"{subject!r:.80} implements no hook; the entry point must name a module with "
                f"functions marked @modalloy.hookimpl, of: {', '.join(HOOKS)}",
                subject=self.report.subject,
            )

    def _call(self, kind: Kind) -> None:
        found = self.offers[kind.name]
        done = False

        def register(spec: Spec) -> None:
            if done:
                raise SpecError(
                    f"register was called after {kind.hook} had returned; offers are gathered "
                    "at discovery only",
                    subject=self.report.subject,
                )
            if not isinstance(spec, kind.type):
                raise SpecError(
                    f"register takes a modalloy.{kind.type.__name__} in {kind.hook}; "
                    f"got {spec!r:.80}",
                    subject=self.report.subject,
                )
            if spec.name in found:
                owner = self.report.distribution or self.report.origin
                raise DuplicateNameError(
                    f"{self.report.subject} offers {kind.words} {spec.name!r} twice; give each "
                    "its own name",
                    name=spec.name,
                    owners=(owner, owner),
                )
            found[spec.name] = spec

        results = getattr(self.manager.hook, kind.hook)(register=register)
        done = True
        if results:
            raise SpecError(
                f"{kind.hook} must call register(...) and return nothing; it returned "
                f"{results[0]!r:.80}",
                subject=self.report.subject,
            )
