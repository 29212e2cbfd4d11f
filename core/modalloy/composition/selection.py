"""Choosing which parents a composition is made of, and checking them against its base."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import attrs

from modalloy.base import Base, check_fingerprint
from modalloy.errors import FormatError, MissingComponentError, ModalloyWarning, SpecError
from modalloy.modality import MergeMethod
from modalloy.parent import MANIFEST, Parent, ParentManifest, read_manifest, verify_files
from modalloy.registry import Registry


@attrs.frozen
class Chosen:
    """A parent that a composition takes in.

    Attributes:
        directory: Its parent directory.
        manifest: Its manifest.
        source: Name of the plugin's parent, Hub id, or name of the directory; for records.
    """

    directory: Path
    manifest: ParentManifest
    source: str

    @property
    def modality(self) -> str:
        """Name of its modality."""
        return self.manifest.modality


def choose_parents(
    registry: Registry,
    base: Base,
    method: MergeMethod,
    modalities: Iterable[str] | None,
    parents: Iterable[str | Path],
) -> list[Chosen]:
    """Choose one parent per modality, sorted by modality.

    Named parents come first; the other modalities take the installed parent whose strategy the
    method likes best. All files are checked against their hashes.

    Raises:
        SpecError: No parent is left, two are given for one modality, one has a strategy that
            the method cannot use, or one is not what its plugin declares.
        MissingComponentError: A modality has no parent for this base.
        BaseMismatchError: A parent was tuned from another base.
    """
    for what, names in (("modalities", modalities), ("parents", parents)):
        if isinstance(names, str | Path):
            raise SpecError(f"{what} must be a list of names; got {names!r}, write [{names!r}]")
    chosen: dict[str, Chosen] = {}
    for given in parents:
        one = _open_named(registry, given)
        if one.modality in chosen:
            raise SpecError(
                f"two parents were given for modality {one.modality!r}: "
                f"{chosen[one.modality].source} and {one.source}; give one",
                subject=one.modality,
            )
        chosen[one.modality] = one
    installed = {p.modality for p in registry.parents() if _fits(p, base)}
    wanted = sorted(installed | chosen.keys() if modalities is None else set(modalities))
    left_out = sorted(chosen.keys() - set(wanted))
    if left_out:
        raise SpecError(
            f"a parent was given for {', '.join(left_out)}, which modalities={wanted} (--modality) "
            "leaves out",
            subject=left_out[0],
        )
    for name in wanted:
        registry.modality(name)
        if name not in chosen:
            chosen[name] = _open_installed(registry, base, method, name)
    if not chosen:
        raise SpecError(
            f"no installed plugin has a parent for base {base.id!r}; install one (see `modalloy "
            "plugins`) or give a parent directory"
        )
    for one in chosen.values():
        _check(one, base, method)
    return [chosen[name] for name in wanted]


def _fits(parent: Parent, base: Base) -> bool:
    """Whether a parent is for this base: by name, or by fingerprint where its files are at hand."""
    if parent.base == base.id:
        return True
    if not isinstance(parent.source, Path) or not (parent.source / MANIFEST).is_file():
        return False
    try:
        return read_manifest(parent.source).base.fingerprint == base.fingerprint
    except FormatError as error:
        message = f"parent {parent.name!r} is left out: {error}"
        warnings.warn(message, ModalloyWarning, stacklevel=2)
        return False


def _open_named(registry: Registry, given: str | Path) -> Chosen:
    """Open a parent directory, or a registered parent by name."""
    path = Path(given)
    if isinstance(given, str) and not (path / MANIFEST).is_file():
        if path.is_dir():
            raise FormatError(f"{given} is not a parent directory: it has no {MANIFEST}", path=path)
        return _open(registry.parent(given))
    return Chosen(path, read_manifest(path), path.resolve().name)


def _open(parent: Parent) -> Chosen:
    directory = parent.directory()
    source = parent.name if isinstance(parent.source, Path) else f"{parent.name} ({parent.source})"
    manifest = read_manifest(directory)
    for what in ("modality", "strategy"):
        declared, found = getattr(parent, what), getattr(manifest, what)
        if declared != found:
            raise SpecError(
                f"parent {parent.name!r} is declared with {what} {declared!r}, its {MANIFEST} says "
                f"{found!r}; the plugin and its weights do not belong together, reinstall it",
                subject=parent.name,
            )
    return Chosen(directory, manifest, source)


def _open_installed(registry: Registry, base: Base, method: MergeMethod, modality: str) -> Chosen:
    offered = [p for p in registry.parents(modality=modality) if _fits(p, base)]
    if not offered:
        others = sorted({p.base for p in registry.parents(modality=modality)})
        has = f"its parents are for {', '.join(others)}" if others else "it has no parents yet"
        raise MissingComponentError(
            f"modality {modality!r} has no parent for base {base.id!r} ({has}); train one with "
            "`modalloy train` or give a parent directory",
            component=modality,
        )
    for strategy in method.strategies:
        fitting = [parent for parent in offered if parent.strategy == strategy]
        if len(fitting) > 1:
            names = ", ".join(parent.name for parent in fitting)
            raise SpecError(
                f"modality {modality!r} has {len(fitting)} {strategy} parents for base "
                f"{base.id!r}: {names}; name one of them with parents=[...] (--parent)",
                subject=modality,
            )
        if fitting:
            return _open(fitting[0])
    raise MissingComponentError(
        f"merge method {method.name!r} takes {' or '.join(method.strategies)} parents; modality "
        f"{modality!r} has only {', '.join(sorted({p.strategy for p in offered}))} ones for base "
        f"{base.id!r}. Leave it out with modalities=[...] or use another method",
        component=modality,
    )


def _check(one: Chosen, base: Base, method: MergeMethod) -> None:
    verify_files(one.directory, one.manifest)
    check_fingerprint(one.source, one.manifest.base.fingerprint, base.fingerprint)
    if one.manifest.strategy not in method.strategies:
        raise SpecError(
            f"parent {one.source} is {one.manifest.strategy}; merge method {method.name!r} takes "
            f"{' or '.join(method.strategies)} parents",
            subject=one.source,
        )
