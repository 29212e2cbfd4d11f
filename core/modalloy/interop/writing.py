"""Writing parent directories, whole or not at all."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file

from modalloy.deltas.lowrank import LowRankDelta, write_adapter
from modalloy.errors import FormatError
from modalloy.interop.accounting import Row, to_json, totals
from modalloy.interop.matrices import MatrixRecord
from modalloy.parent import (
    CONNECTOR_FILE,
    ENCODER_FILE,
    MODALITY_ADAPTER,
    MODALITY_WEIGHTS,
    TEXT_ADAPTER,
    TEXT_WEIGHTS,
    ParentManifest,
    sha256,
    write_manifest,
)


@attrs.frozen(kw_only=True)
class ParentParts:
    """What a parent directory is made of.

    Attributes:
        manifest: What to say about it; hashes are added.
        text: Delta of the text stream, or of all tokens: pairs. Empty where the base is as it was.
        modality: Delta of the modality stream: pairs.
        text_weights: Tensors of the base that the text stream has whole, as they were tuned.
        modality_weights: The same, for the modality stream.
        connector: ``projection.*``, ``prefix``, ``suffix``.
        encoder: File with the encoder's weights, to copy.
    """

    manifest: ParentManifest
    text: LowRankDelta = attrs.Factory(lambda: LowRankDelta({}))
    modality: LowRankDelta = attrs.Factory(lambda: LowRankDelta({}))
    text_weights: Mapping[str, torch.Tensor] = attrs.Factory(dict)
    modality_weights: Mapping[str, torch.Tensor] = attrs.Factory(dict)
    connector: Mapping[str, torch.Tensor]
    encoder: Path | None = None


@attrs.frozen(kw_only=True)
class WrittenParent:
    """A parent that a conversion wrote.

    Attributes:
        directory: Where.
        manifest: Its manifest.
    """

    directory: Path
    manifest: ParentManifest


@attrs.frozen(kw_only=True)
class Converted:
    """What came of a conversion.

    Attributes:
        kind: What the source was, such as ``"ModelCompose"``.
        parents: What was written, sorted by modality.
        accounting: What became of every tensor of the source.
        notes: What else there is to know.
        method: Merge method that the parents compose by as the source did.
        coefficients: With it, one value per modality, where the source was several parents.
        coefficients_file: The same as a file, where one was written.
        matrices: How well each matrix was compressed, where any was.
    """

    kind: str
    parents: tuple[WrittenParent, ...]
    accounting: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    method: str = "damc"
    coefficients: Mapping[str, float] | None = None
    coefficients_file: Path | None = None
    matrices: tuple[MatrixRecord, ...] = ()


def check_apart(out: Path, *inputs: Path | None) -> None:
    """Check that nothing is written into what is read.

    Raises:
        FormatError: ``out`` is one of the inputs, or inside one.
    """
    for one in inputs:
        if one is not None and out.resolve().is_relative_to(one.resolve()):
            raise FormatError(
                f"{out} is inside {one}, which is only read; write somewhere else", path=out
            )


def write_parent(directory: Path, parts: ParentParts) -> ParentManifest:
    """Write the files of a parent, its manifest last.

    Args:
        directory: Created where missing; one of
            :func:`~modalloy.checkpoints.new_directory.new_directory`, or inside it.
        parts: What to write; tensors keep their dtype.

    Returns:
        The manifest, hashes included.
    """
    directory.mkdir(exist_ok=True)
    for folder, delta in ((TEXT_ADAPTER, parts.text), (MODALITY_ADAPTER, parts.modality)):
        if delta.pairs:
            write_adapter(directory / folder, delta, base_id=parts.manifest.base.id)
    weights = ((TEXT_WEIGHTS, parts.text_weights), (MODALITY_WEIGHTS, parts.modality_weights))
    for folder, tensors in weights:
        if tensors:
            (directory / folder).mkdir()
            _save(tensors, directory / folder / "model.safetensors")
    _save(parts.connector, directory / CONNECTOR_FILE)
    if parts.encoder is not None:
        shutil.copyfile(parts.encoder, directory / ENCODER_FILE)
    return write_manifest(directory, parts.manifest)


def training_record(
    kind: str, source: Path, files: Iterable[str], rows: Iterable[Row], **more: Any
) -> dict[str, Any]:
    """Return ``training`` of a converted parent's manifest.

    Args:
        kind: What the source is.
        source: Its directory.
        files: Names of the files in it that were read.
        rows: What became of its tensors.
        **more: Further plain data.
    """
    rows = tuple(rows)
    return {
        "converted_from": kind,
        "source": source.resolve().name,
        "files": {name: sha256(source / name) for name in sorted(files)},
        "tensors": dict(totals(rows)),
        "accounting": to_json(rows),
        **more,
    }


def _save(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    ready = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    save_file(ready, file, metadata={"format": "pt"})
