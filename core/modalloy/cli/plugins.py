"""``modalloy plugins``: what is installed and how it fared; ``plugins check``: whether it works.

``plugins --requirements`` tells pip how to install the same elsewhere.
"""

import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from modalloy.cli.output import plugins_apart, print_json, print_line, print_table
from modalloy.errors import ModalloyWarning, SpecError
from modalloy.installed import installed_digest
from modalloy.modality import Encoder, Modality, Target, resolve
from modalloy.parent import MANIFEST, Parent, ParentManifest, read_manifest, verify_files
from modalloy.quarantine import BUILTIN, KINDS, PluginReport, Spec
from modalloy.registry import Registry
from modalloy.requirements import installed_set
from modalloy.testing.fresh import check_declaring
from modalloy.testing.report import Check, attempt

command = typer.Typer(add_completion=False, rich_markup_mode=None)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@command.callback(invoke_without_command=True)
def listing(
    ctx: typer.Context,
    *,
    as_json: _Json = False,
    requirements: Annotated[
        bool,
        typer.Option("--requirements", help="Print pip requirements of the installed set."),
    ] = False,
) -> None:
    """List installed plugins: those in use, and those that are not and why."""
    if ctx.invoked_subcommand is not None:
        return
    registry = _discover()
    if requirements:
        _print_requirements(registry, as_json=as_json)
        return
    if as_json:
        print_json([describe(registry, report) for report in registry.reports])
        return
    rows = [_row(registry, report) for report in registry.reports]
    print_table("Plugins", ("plugin", "distribution", "status", "offers"), rows)
    for report in registry.reports:
        if report.status != "loaded":
            print_line(f"{report.status}: {report}")
        if report.slow:
            print_line(f"slow: {report.subject} took {report.seconds:.1f} s to load")


@command.command("check")
def check_command(
    name: Annotated[str, typer.Argument(help="Name of the plugin, as listed.")],
    *,
    as_json: _Json = False,
) -> None:
    """Load all of a plugin's code and verify its packaged weights; exit 1 where it fails."""
    registry = _discover()
    checks = check(registry, name)
    failed = sum(1 for found in checks if found.ok is False)
    if as_json:
        data = {"plugin": name, "ok": not failed, "checks": [attrs.asdict(c) for c in checks]}
        print_json(data)
    else:
        words = {True: "ok", False: "FAILED", None: "skipped"}
        rows = [(words[c.ok], c.subject, c.check, c.detail) for c in checks]
        print_table(f"Plugin {name}", ("", "of", "checked", "found"), rows)
        print_line(f"{len(checks)} checked, {failed} failed")
    if failed:
        raise typer.Exit(1)


def _print_requirements(registry: Registry, *, as_json: bool) -> None:
    found = installed_set(registry.reports)
    if as_json:
        print_json([attrs.asdict(one) for one in found])
        return
    for one in found:
        print_line(one.line)


def describe(registry: Registry, report: PluginReport) -> dict[str, Any]:
    """Return a report as plain data, its parents with base and strategy, its files as a digest."""
    data = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in attrs.asdict(report, recurse=False).items()
        if key != "exception"
    }
    data["sha256"] = installed_digest(report.distribution)
    data["parents"] = [
        {
            "name": parent.name,
            "modality": parent.modality,
            "base": parent.base,
            "strategy": parent.strategy,
            "licence": parent.licence,
        }
        for parent in map(registry.parent, report.parents)
    ]
    return data


def check(registry: Registry, name: str) -> list[Check]:
    """Look at everything that a plugin offers, importing what it names.

    Args:
        registry: Where the plugin is.
        name: The plugin's name.

    Returns:
        What was looked at; a plugin that is not in use fails the first check.

    Raises:
        UnknownNameError: No such plugin is installed.
    """
    report = next((found for found in registry.reports if found.name == name), None)
    if report is None or report.status == "loaded":
        report = registry.require(name)
    if report.status != "loaded":
        return [Check(report.subject, "loading", ok=False, detail=str(report))]
    hooks = f"implements {', '.join(report.hooks)}"
    checks = [Check(report.subject, "loading", ok=True, detail=hooks)]
    if report.distribution is not None and report.name != BUILTIN:
        checks.append(attempt(report.subject, "declaring", lambda: check_declaring(name)))
    offers = list(_offers(registry, report))
    # First of all, while nothing else can have imported torch.
    checks += [c for subject, spec in offers for c in _check_targets(subject, spec, _LIGHT)]
    checks += [c for subject, spec in offers for c in _check_targets(subject, spec, _HEAVY)]
    for subject, spec in offers:
        if isinstance(spec, Modality):
            checks.append(attempt(subject, "apart", functools.partial(_apart, registry, spec)))
        if isinstance(spec, Encoder):
            found = functools.partial(_known_modality, registry, spec.modality)
            checks.append(attempt(subject, "modality", found))
        if isinstance(spec, Parent):
            checks += _check_parent(registry, spec)
    return checks


_LIGHT = ("output_shape", "output_tokens")
"""Targets that must not import torch: prompts are laid out by them."""

_HEAVY = ("read", "preprocess", "build", "questions", "merge", "rule")


def _offers(registry: Registry, report: PluginReport) -> Iterator[tuple[str, Spec]]:
    for kind in KINDS:
        for name in getattr(report, kind.plural):
            yield f"{kind.words} {name!r}", getattr(registry, kind.name)(name)


def _check_targets(subject: str, spec: Spec, names: Sequence[str]) -> Iterator[Check]:
    for name in names:
        target: Target | None = getattr(spec, name, None)
        if target is not None:
            yield attempt(subject, name, functools.partial(_resolved, target, name in _LIGHT))


def _resolved(target: Target, light: bool) -> str:  # noqa: FBT001 - partial of a private function
    before = "torch" in sys.modules
    function = resolve(target)
    if not callable(function):
        raise SpecError(f"target {target!r} is a {type(function).__name__}, not callable")
    if light and not before and "torch" in sys.modules:
        raise SpecError(f"target {target!r} imports torch, which laying out a prompt must not")
    return target if isinstance(target, str) else repr(target)


def _apart(registry: Registry, spec: Modality) -> str:
    """Check that a modality shares with no other what tells inputs apart in a prompt."""
    told = ("content_type", "placeholder", "token_type_id")
    for other in registry.modalities.values():
        for attribute in told if other.name != spec.name else ():
            value = getattr(spec, attribute)
            if value is not None and value == getattr(other, attribute):
                raise SpecError(
                    f"its {attribute} {value!r} is that of modality {other.name!r}, too, so the "
                    "two cannot be composed together; choose another"
                )
    return f"no other modality has its {', '.join(told)}"


def _known_modality(registry: Registry, name: str) -> str:
    registry.modality(name)
    return f"{name!r} is supplied by {registry.owner('modality', name).subject}"


def _check_parent(registry: Registry, parent: Parent) -> Iterator[Check]:
    subject = f"parent {parent.name!r}"
    yield attempt(subject, "modality", lambda: _known_modality(registry, parent.modality))
    if not isinstance(parent.source, Path):
        detail = f"the Hub repository {parent.source!r} is fetched when first used"
        yield Check(subject, "files", ok=None, detail=detail)
        return
    manifests: list[ParentManifest] = []

    def read() -> str:
        manifests.append(read_manifest(parent.directory()))
        return "read"

    yield attempt(subject, MANIFEST, read)
    for manifest in manifests:
        yield from _check_manifest(registry, parent, manifest)


def _check_manifest(
    registry: Registry, parent: Parent, manifest: ParentManifest
) -> Iterator[Check]:
    subject = f"parent {parent.name!r}"
    yield attempt(subject, "files", lambda: _verified(parent, manifest))
    yield attempt(subject, "declaration", lambda: _agrees(parent, manifest))
    # It brings in torch; what is looked at before must not.
    from modalloy.testing.parent_checks import opens_connector, opens_encoder

    for what, opens in (("encoder", opens_encoder), ("connector", opens_connector)):
        found = functools.partial(opens, registry, parent.directory(), manifest)
        yield attempt(subject, what, found)


def _verified(parent: Parent, manifest: ParentManifest) -> str:
    verify_files(parent.directory(), manifest)
    return f"{len(manifest.files)} files have their recorded SHA-256"


def _agrees(parent: Parent, manifest: ParentManifest) -> str:
    """Return what the declaration and the manifest agree on, or raise with all differences."""
    pairs = {
        "name": (parent.name, manifest.name),
        "modality": (parent.modality, manifest.modality),
        "base": (parent.base, manifest.base.id),
        "strategy": (parent.strategy, manifest.strategy),
        "licence": (parent.licence, manifest.licence),
    }
    wrong = [
        f"{key} is declared {declared!r}, {MANIFEST} says {found!r}"
        for key, (declared, found) in pairs.items()
        if declared != found
    ]
    if wrong:
        raise SpecError("; ".join(wrong), subject=f"parent {parent.name!r}")
    return f"{', '.join(pairs)} as in {MANIFEST}"


def _discover() -> Registry:
    """Return all plugins without a word about broken ones: this command shows them itself."""
    with warnings.catch_warnings(), plugins_apart():
        warnings.simplefilter("ignore", ModalloyWarning)
        return Registry.discover(strict=False)


def _row(registry: Registry, report: PluginReport) -> tuple[str, ...]:
    lines = [
        f"parent {parent.name} ({parent.strategy}, on {parent.base})"
        for parent in map(registry.parent, report.parents)
    ]
    for kind in KINDS:
        names = getattr(report, kind.plural)
        if names and kind.type is not Parent:
            label = kind.words if len(names) == 1 else kind.plural.replace("_", " ")
            lines.append(f"{label} {', '.join(names)}")
    return report.name, report.origin, report.status, "\n".join(sorted(lines))
