"""Checking a parent: its files, what it needs, and the invariants of a composition with it."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from modalloy.base import Base, check_fingerprint, resolve_base
from modalloy.composition.connecting import ModalityConnector
from modalloy.deltas.lowrank import read_adapter
from modalloy.modality import resolve
from modalloy.parent import (
    CONNECTOR_FILE,
    ENCODER_FILE,
    MANIFEST,
    MODALITY_ADAPTER,
    MODALITY_WEIGHTS,
    TEXT_ADAPTER,
    TEXT_WEIGHTS,
    ParentManifest,
    read_manifest,
    verify_files,
    write_manifest,
)
from modalloy.registry import Registry
from modalloy.testing.bases import tiny_base
from modalloy.testing.invariants import check_invariants
from modalloy.testing.parents import tiny_parent
from modalloy.testing.report import Check, Checks, expect

_FOLDERS = {
    "decoupled": (TEXT_ADAPTER, TEXT_WEIGHTS, MODALITY_ADAPTER, MODALITY_WEIGHTS),
    "naive": (TEXT_ADAPTER, TEXT_WEIGHTS),
}


def check_parent(
    path: str | Path,
    base: str | Path | None = None,
    *,
    registry: Registry | None = None,
    samples: Iterable[object] = (),
) -> tuple[Check, ...]:
    """Check a parent directory, and compositions with it.

    Looked at is

    - the manifest, the hash of every file, and that nothing in it would be left unread;
    - that modality, encoder and connector are registered and belong together, that the encoder's
      shape is the recorded one, and that the connector's tensors are just those of its type;
    - with a base, its fingerprint, and the five invariants of the parent over it, beside a toy
      modality: what the parent computes is told by plain transformers;
    - without one, the same invariants of a twin over a tiny base: the parent's encoder and kind of
      connector, with random weights. Nothing is downloaded, and it takes seconds.

    Args:
        path: The directory, or the name of a registered parent.
        base: What it was tuned from, as ``compose`` takes it.
        registry: Supplies its plugin; what is installed if left out.
        samples: Good inputs of its modality; the first is asked about. Without any, random features
            stand in for the encoder's.

    Returns:
        All that was looked at; ``ok`` is ``None`` where something could not be.

    Raises:
        CheckFailed: A check failed; the message lists all that did.
        UnknownNameError: ``path`` is no directory, and no such parent is registered.
    """
    registry = registry or Registry.discover()
    directory = Path(path)
    if not directory.is_dir() and isinstance(path, str):
        directory = registry.parent(path).directory()
    subject = f"parent {str(path)!r}" if isinstance(path, str) else f"parent {directory.name!r}"
    checks = Checks(subject)
    if not checks.run(subject, MANIFEST, lambda: _readable(directory)):
        return checks.finish()
    manifest = read_manifest(directory)
    sound = [
        checks.run(subject, "files", lambda: _verified(directory, manifest)),
        checks.run(subject, "all of it is read", lambda: _all_read(directory, manifest)),
        checks.run(subject, "encoder", lambda: _encoder(registry, manifest)),
        checks.run(subject, "connector", lambda: _connector(registry, directory, manifest)),
    ]
    if all(sound):
        with tempfile.TemporaryDirectory(prefix="modalloy-") as folder:
            _compose(checks, subject, (directory, base), registry, tuple(samples), Path(folder))
    return checks.finish()


def _readable(directory: Path) -> str:
    manifest = read_manifest(directory)
    return f"{manifest.strategy}, of {manifest.modality!r}, for {manifest.base.id}"


def _verified(directory: Path, manifest: ParentManifest) -> str:
    verify_files(directory, manifest)
    return f"{len(manifest.files)} files have their recorded SHA-256"


def _all_read(directory: Path, manifest: ParentManifest) -> str:
    """Check that every tensor is in a file that composing reads."""
    read = {CONNECTOR_FILE, ENCODER_FILE}
    folders = _FOLDERS[manifest.strategy]
    files = sorted(directory.rglob("*.safetensors"))
    names = [file.relative_to(directory).as_posix() for file in files]
    stray = [name for name in names if name not in read and name.split("/")[0] not in folders]
    expect(
        not stray,
        f"{', '.join(stray)} would be read by nothing; a {manifest.strategy} parent has "
        f"{', '.join([*folders, *sorted(read)])}",
    )
    expect(CONNECTOR_FILE in names, f"it has no {CONNECTOR_FILE}")
    return f"{len(names)} files of tensors"


def _encoder(registry: Registry, manifest: ParentManifest) -> str:
    registry.modality(manifest.modality, requires=manifest.requires)
    entry = manifest.encoder
    kind = registry.encoder(entry.type, requires=manifest.requires)
    expect(
        kind.modality == manifest.modality,
        f"encoder {kind.name!r} takes {kind.modality!r} inputs, the parent is of "
        f"{manifest.modality!r}",
    )
    shape = list(resolve(kind.output_shape)(entry.config))
    expect(
        entry.shape in (None, shape),
        f"{MANIFEST} records the shape {entry.shape}, the encoder's configuration gives {shape}",
    )
    return f"{kind.name}, {shape[0]} tokens of {shape[1]} features"


def _connector(registry: Registry, directory: Path, manifest: ParentManifest) -> str:
    """Load the connector strictly, at the width that the adapters of the parent have."""
    hidden = _hidden(directory)
    features = resolve(registry.encoder(manifest.encoder.type).output_shape)(
        manifest.encoder.config
    )[1]
    build = resolve(registry.connector(manifest.connector.type).build)
    tensors = load_file(directory / CONNECTOR_FILE)
    if hidden is None:
        return f"{len(tensors)} tensors; no adapter tells the base's width, left to composing"
    ends = manifest.prefix_tokens, manifest.suffix_tokens
    with torch.random.fork_rng(devices=[]):
        module = ModalityConnector(
            build(manifest.connector.config, features, hidden), hidden, *ends
        )
    module.load_state_dict(tensors, strict=True)
    return f"{manifest.connector.type}, {len(tensors)} tensors, {features} to {hidden}"


def _hidden(directory: Path) -> int | None:
    """Return the base's width D, the input of any layer that asks, or ``None``."""
    adapter = directory / TEXT_ADAPTER
    if not adapter.is_dir():
        return None
    for name, pair in read_adapter(adapter).pairs.items():
        if name.endswith(("q_proj", "gate_proj", "qkv_proj")):
            return int(pair.A.shape[1])
    return None


def _compose(
    checks: Checks,
    subject: str,
    given: tuple[Path, str | Path | None],
    registry: Registry,
    samples: tuple[object, ...],
    work: Path,
) -> None:
    directory, base = given
    if base is not None:
        opened = resolve_base(base)
        if checks.run(subject, "fingerprint", lambda: _fingerprint(directory, opened)):
            check_invariants(checks, subject, opened, directory, registry, samples, work)
        return
    checks.skip(subject, "fingerprint", "no base was given; a twin over a tiny base is composed")
    manifest = read_manifest(directory)
    tiny = tiny_base(work / "base")
    twin = tiny_parent(
        work / "twin",
        tiny,
        manifest.modality,
        encoder=manifest.encoder,
        connector=manifest.connector,
        strategy=manifest.strategy,
        prefix=manifest.prefix_tokens,
        suffix=manifest.suffix_tokens,
        registry=registry,
    )
    if (directory / ENCODER_FILE).is_file():
        shutil.copyfile(directory / ENCODER_FILE, twin / ENCODER_FILE)
        _record(twin)
    check_invariants(checks, f"{subject}, twin", resolve_base(tiny), twin, registry, samples, work)


def _record(directory: Path) -> None:
    """Write the manifest anew, with the files that are there now."""
    write_manifest(directory, read_manifest(directory))


def _fingerprint(directory: Path, base: Base) -> str:
    manifest = read_manifest(directory)
    check_fingerprint(manifest.name, manifest.base.fingerprint, base.fingerprint)
    return f"{base.fingerprint} is that of {base.id}"
