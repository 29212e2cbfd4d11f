"""Checking a parent: its files, what it needs, and the invariants of a composition with it."""

import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from modalloy.base import Base, check_fingerprint, resolve_base
from modalloy.composition.connecting import ModalityConnector
from modalloy.composition.encoders import EncoderStore
from modalloy.deltas.lowrank import read_adapter
from modalloy.deltas.whole import STREAMS
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
from modalloy.testing.invariants import CLOSE, check_invariants
from modalloy.testing.parents import tiny_parent
from modalloy.testing.report import Check, Checks, expect
from modalloy.testing.used import Used

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
    - that every number in its files is finite, that its adapters can be read, and which streams
      they are for;
    - that modality, encoder and connector are registered and belong together, that the encoder's
      shape is the recorded one, that the tensors of encoder and connector are just those of their
      types, and that the connector looks at its input, gives a batch what it gives each input
      alone, and as many tokens as it declares;
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
        checks.run(subject, "numbers", lambda: _finite(directory)),
        checks.run(subject, "streams", lambda: _streams(directory, manifest)),
        checks.run(subject, "encoder", lambda: opens_encoder(registry, directory, manifest)),
        checks.run(subject, "connector", lambda: opens_connector(registry, directory, manifest)),
    ]
    if all(sound):
        with tempfile.TemporaryDirectory(prefix="modalloy-") as folder:
            _compose(checks, subject, (directory, base), registry, tuple(samples), Path(folder))
    return checks.finish()


def _readable(directory: Path) -> str:
    manifest = read_manifest(directory)
    mark = manifest.base.fingerprint
    expect(
        all(re.fullmatch("[0-9a-f]{64}", one) for one in (mark.structure, mark.content)),
        f"the base's fingerprint is made of two SHA-256, found {mark.structure!r:.80} and "
        f"{mark.content!r:.80}; take it from Base.fingerprint",
    )
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


def _finite(directory: Path) -> str:
    """Check that no file of tensors has a number that is none."""
    count = 0
    for file in sorted(directory.rglob("*.safetensors")):
        name = file.relative_to(directory).as_posix()
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                    tensor = tensors.get_tensor(key)
                    finite = not tensor.is_floating_point() or bool(tensor.float().isfinite().all())
                    expect(finite, f"{name}: tensor {key!r} has NaN or infinite values")
                    count += 1
        except (OSError, SafetensorError) as error:
            raise AssertionError(f"{name} cannot be read: {error}") from error
    return f"{count} tensors are finite"


def _streams(directory: Path, manifest: ParentManifest) -> str:
    """Read the adapters, and say which streams run on the base as it is."""
    found = []
    for stream in STREAMS if manifest.strategy == "decoupled" else STREAMS[:1]:
        adapter, weights = (directory / f"{stream}_{kind}" for kind in ("adapter", "weights"))
        pairs = read_adapter(adapter).pairs if adapter.is_dir() else {}
        has = [f"{len(pairs)} pairs"] if pairs else []
        has += ["whole weights"] if weights.is_dir() else []
        found.append(f"{stream}: {' and '.join(has) or 'none, it runs on the base as it is'}")
    return "; ".join(found)


def opens_encoder(registry: Registry, directory: Path, manifest: ParentManifest) -> str:
    """Check that a parent's encoder is there, of the recorded shape, and opens.

    Args:
        registry: Supplies it.
        directory: The parent directory.
        manifest: Its manifest.

    Returns:
        What was found.

    Raises:
        AssertionError: It is another modality's, or of another shape.
        ModalloyError: It is not registered, or does not open.
    """
    spec = registry.modality(manifest.modality, requires=manifest.requires)
    entry = manifest.encoder
    kind = registry.encoder(entry.type, requires=manifest.requires)
    expect(
        kind.modality == manifest.modality,
        f"encoder {kind.name!r} takes {kind.modality!r} inputs, the parent is of "
        f"{manifest.modality!r}",
    )
    shape = list(Used(kind, entry.config).shape())
    expect(
        entry.shape in (None, shape),
        f"{MANIFEST} records the shape {entry.shape}, the encoder's configuration gives {shape}",
    )
    if (directory / ENCODER_FILE).is_file():  # opened, since no sample may be at hand to do it
        made = {"type": entry.type, "config": entry.config, "shape": shape}
        known = {"content_type": spec.content_type, "encoder": made, "requires": manifest.requires}
        store = EncoderStore({manifest.modality: known}, registry)
        store.files[manifest.modality] = directory / ENCODER_FILE
        store.digest(manifest.modality)
    return f"{kind.name}, {shape[0]} tokens of {shape[1]} features"


def opens_connector(registry: Registry, directory: Path, manifest: ParentManifest) -> str:
    """Load a parent's connector strictly, at the width that its adapters have, and call it.

    Args:
        registry: Supplies its type.
        directory: The parent directory.
        manifest: Its manifest.

    Returns:
        What was found.

    Raises:
        AssertionError: What it makes of features is not what a connector should.
        ModalloyError: Its type is not registered, or it does not open.
        RuntimeError: Its tensors are not those of its type.
    """
    kind = registry.connector(manifest.connector.type)
    hidden = _hidden(directory)
    tokens, features = resolve(registry.encoder(manifest.encoder.type).output_shape)(
        manifest.encoder.config
    )
    build = resolve(kind.build)
    tensors = load_file(directory / CONNECTOR_FILE)
    if hidden is None:
        return f"{len(tensors)} tensors; no adapter tells the base's width, left to composing"
    ends = manifest.prefix_tokens, manifest.suffix_tokens
    with torch.random.fork_rng(devices=[]):
        projection = build(manifest.connector.config, features, hidden)
        module = ModalityConnector(projection, hidden, *ends, kind.name)
    module.load_state_dict(tensors, strict=True)
    kept = (
        resolve(kind.output_tokens)(manifest.connector.config, tokens)
        if (kind.output_tokens)
        else tokens
    )
    _connects(module.eval(), (tokens, features), (sum(ends) + kept, hidden))
    return f"{manifest.connector.type}, {len(tensors)} tensors, {features} to {hidden}"


@torch.no_grad()
def _connects(module: ModalityConnector, shape: Sequence[int], goal: Sequence[int]) -> None:
    """Check what a connector makes of features ``(N, K, F)``, which are random numbers."""
    given = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5))
    before = given.clone()
    together = module(given)
    expect(
        tuple(together.shape) == (3, *goal),
        f"of features {(3, *shape)} it must make embeddings {(3, *goal)}, found "
        f"{tuple(together.shape)}",
    )
    expect(torch.equal(given, before), "it changes the features that it is given")
    expect(bool(together.isfinite().all()), "its embeddings have NaN or infinite values")
    expect(
        not torch.equal(together[0], together[1]),
        "it makes the same embeddings of different features: it does not look at its input",
    )
    for place in range(3):
        gap = float((module(given[place : place + 1])[0] - together[place]).abs().max())
        most = CLOSE * max(1.0, float(together.abs().max()))
        expect(
            gap <= most,
            f"input {place} of 3 differs by {gap:.3g} from itself alone, at most {most:.3g} is "
            "rounding",
        )


def _hidden(directory: Path) -> int | None:
    """Return the base's width D, the input of any layer that asks, or ``None``."""
    widths = {}
    for folder in (TEXT_ADAPTER, MODALITY_ADAPTER):
        for name, pair in (
            read_adapter(directory / folder).pairs.items() if (directory / folder).is_dir() else ()
        ):
            if name.endswith(("q_proj", "gate_proj", "qkv_proj")):
                widths[int(pair.A.shape[1])] = f"{folder}: {name}"
    told = "; ".join(f"{where} takes {width} features" for width, where in sorted(widths.items()))
    expect(len(widths) < 2, f"its adapters are of different bases: {told}")  # noqa: PLR2004
    return next(iter(widths), None)


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
