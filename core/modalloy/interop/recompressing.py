"""A parent whose language model was tuned whole, as a low-rank one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from modalloy.base import Base, check_fingerprint
from modalloy.checkpoints.new_directory import new_directory
from modalloy.checkpoints.reader import CheckpointReader
from modalloy.deltas.compress import Compression
from modalloy.deltas.lowrank import LowRankDelta, read_adapter, write_adapter
from modalloy.deltas.whole import read_delta
from modalloy.errors import DeltaError, SpecError
from modalloy.interop.accounting import MODALITY_DELTA, TEXT_DELTA, Row
from modalloy.interop.compressing import CompressedLanguage, compress_changed
from modalloy.interop.language import Language, Tuned, write_weights
from modalloy.interop.writing import Converted, WrittenParent
from modalloy.parent import (
    MODALITY_ADAPTER,
    MODALITY_WEIGHTS,
    TEXT_ADAPTER,
    TEXT_WEIGHTS,
    check_once,
    read_manifest,
    verify_files,
    write_manifest,
)

if TYPE_CHECKING:
    from modalloy.interop.matrices import MatrixRecord

KIND = "parent"
_STREAMS = (
    (TEXT_ADAPTER, TEXT_WEIGHTS, TEXT_DELTA),
    (MODALITY_ADAPTER, MODALITY_WEIGHTS, MODALITY_DELTA),
)


def compress_parent(
    source: Path,
    out: Path,
    *,
    base: Base | None,
    limits: Compression | None,
    progress: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Write a parent whose whole matrices have become low-rank pairs.

    Args:
        source: A parent directory with ``text_weights`` or ``modality_weights``.
        out: Where to write; must not exist, or be an empty directory.
        base: The base that it was tuned from.
        limits: How far to compress.
        progress: Called with a line of text before something slow.

    Raises:
        SpecError: There is no base, or no limit.
        BaseMismatchError: The base is another.
        DeltaError: The parent holds nothing whole.
    """
    manifest = read_manifest(source)
    verify_files(source, manifest)
    if base is None or limits is None:
        raise SpecError(
            f"{source} is a parent already. To compress what it holds whole, give --base and "
            "--rank or --energy",
            subject="base" if base is None else "rank",
        )
    check_fingerprint(manifest.name, manifest.base.fingerprint, base.fingerprint)
    rows: list[Row] = []
    notes: list[str] = []
    matrices: list[MatrixRecord] = []
    records = {}
    with new_directory(out) as directory:
        folders = {name for adapter, weights, _ in _STREAMS for name in (adapter, weights)}
        for name in sorted(manifest.files):
            if name.partition("/")[0] not in folders:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, directory / name)
        for adapter, weights, fate in _STREAMS:
            found = _compress_stream(source, directory, (adapter, weights), base, limits, progress)
            if found is None:
                continue
            rows += [Row(one.tensor, fate, f"rank {one.rank}") for one in found.matrices]
            rows += [Row(one.name, fate, "kept whole") for one in found.whole]
            notes.append(found.summary())
            matrices += found.matrices
            records[weights] = found.record()
        if not matrices:
            raise DeltaError(
                f"{source} holds no matrix whole: all that a pair can hold is low-rank already"
            )
        training = {**manifest.training, "compression": records}
        manifest = write_manifest(directory, attrs.evolve(manifest, training=training))
    return Converted(
        kind=KIND,
        parents=(WrittenParent(directory=out, manifest=manifest),),
        accounting=tuple(rows),
        notes=tuple(notes),
        matrices=tuple(matrices),
    )


def _compress_stream(
    source: Path,
    directory: Path,
    folders: tuple[str, str],
    base: Base,
    limits: Compression,
    progress: Callable[[str], None],
) -> CompressedLanguage | None:
    """Write one stream; return what became of it, or ``None`` where the parent has none whole."""
    adapter, weights = folders
    old = read_adapter(source / adapter) if (source / adapter).is_dir() else LowRankDelta({})
    found = None
    pairs = dict(old.pairs)
    if (source / weights).is_dir():
        with CheckpointReader(source / weights) as tuned, CheckpointReader(base.path) as plain:
            check_once(source / weights, (f"{name}.weight" for name in pairs), tuned.names())
            changed = tuple(Tuned(name, name) for name in tuned.names())
            found = compress_changed(
                changed,
                lambda one: (
                    read_delta(tuned, plain, one.name, base.id),
                    tuned.dtype(one.name),
                ),
                base,
                limits,
                progress,
            )
            if found.whole:
                write_weights(directory / weights, Language(tuned, plain, changed), found.whole)
        pairs |= found.delta.pairs
    if pairs:
        write_adapter(directory / adapter, LowRankDelta(pairs), base_id=base.id)
    return found
