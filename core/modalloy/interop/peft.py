"""PEFT adapters as parents: LoRA pairs, and modules that were trained whole beside them.

An adapter changes a language model and has neither encoder nor connector; an existing parent
supplies those. It acts on every token, so what comes of it is a naive parent.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError
from safetensors.torch import load_file

from modalloy.base import Base, check_fingerprint
from modalloy.checkpoints.new_directory import check_free, new_directory
from modalloy.checkpoints.safe_files import read_object
from modalloy.checkpoints.safe_index import check_inside
from modalloy.deltas.lowrank import CONFIG_FILE
from modalloy.errors import FormatError, SpecError
from modalloy.interop.accounting import Accounting
from modalloy.interop.peft_reading import Components, read_content
from modalloy.interop.pickles import find_stem, open_all
from modalloy.interop.writing import (
    Converted,
    ParentParts,
    WrittenParent,
    training_record,
    write_parent,
)
from modalloy.parent import CONNECTOR_FILE, ENCODER_FILE, read_manifest, verify_files

KIND = "PEFT adapter"
EXPECTED_NAMES = "'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'"
_STEM = "adapter_model"
_MORE = "non_lora_trainables"
"""What LLaVA's training code writes beside an adapter: the projector, and the like."""

_NO_COMPONENTS = (
    "an adapter has no encoder and no connector; name with --components a parent directory, of the "
    "same base, that supplies them. `modalloy train` makes one, and so does `modalloy convert` of "
    "the whole model that the adapter was trained on"
)


def convert_peft(
    source: Path,
    out: Path,
    *,
    base: Base | None,
    components: Path | None,
    allow_pickle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Converted:
    """Convert a PEFT LoRA adapter.

    Args:
        source: Holds ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``).
        out: The parent directory to write.
        base: The language model that it was tuned from, or that the model with a tower contains.
        components: A parent directory, of the same base, whose encoder and connector it takes.
        allow_pickle: Whether a ``.bin`` may be read.
        progress: Called with a line of text before something slow.

    Raises:
        FormatError: A file is missing or malformed.
        DeltaError: The adapter is not a plain LoRA, or a tensor has no place in the base.
        SpecError: ``base`` or ``components`` is missing.
        BaseMismatchError: The adapter or the components were made for another base.
    """
    check_free(out)
    config = _read_config(source)
    if base is None:
        raise SpecError(f"{source}: {_no_base(config)}", subject="base")
    if components is None:
        raise SpecError(f"{source}: {_NO_COMPONENTS}", subject="components")
    taken = _open_components(components, base)
    stems = [_STEM, *([_MORE] if find_stem(source, _MORE) else [])]
    with open_all(source, stems, allow_pickle=allow_pickle, progress=progress) as weights:
        accounting = Accounting(str(source), weights.names())
        read = read_content(weights, config, base, taken, accounting)
        rows = accounting.finish(expected=EXPECTED_NAMES)
        files = [CONFIG_FILE, *weights.files]
        record = training_record(KIND, source, files, rows, components=taken.manifest.name)
        manifest = attrs.evolve(
            taken.manifest,
            name=f"{source.resolve().name}-{taken.manifest.modality}",
            strategy="naive",
            files={},
            licence="unknown",
            training=record,
            scores={},
        )
        encoder = components / ENCODER_FILE
        parts = ParentParts(
            manifest=manifest,
            text=read.text,
            text_weights=read.weights,
            connector=read.connector,
            encoder=encoder if encoder.is_file() else None,
        )
        with new_directory(out) as partial:
            written = write_parent(partial, parts)
    parent = WrittenParent(directory=out, manifest=written)
    note = f"encoder and connector are those of {taken.manifest.name}"
    if read.connector is not taken.connector:
        note = f"the encoder is that of {taken.manifest.name}, the connector the adapter's own"
    return Converted(kind=KIND, parents=(parent,), accounting=rows, notes=(note,), method="naive")


def _no_base(config: Mapping[str, Any]) -> str:
    tuned = config.get("base_model_name_or_path")
    said = f" ({CONFIG_FILE} says {tuned!r})" if isinstance(tuned, str) and tuned else ""
    return (
        f"an adapter holds no LLM; give the language model that it was tuned from{said} with --base"
    )


def _read_config(source: Path) -> dict[str, Any]:
    path = source / CONFIG_FILE
    check_inside(source, CONFIG_FILE, source, suffix=".json")
    try:
        return read_object(path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error


def _open_components(directory: Path, base: Base) -> Components:
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    check_fingerprint(manifest.name, manifest.base.fingerprint, base.fingerprint)
    path = directory / CONNECTOR_FILE
    try:
        connector = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} cannot be read as safetensors: {error}", path=path) from error
    return Components(directory=directory, manifest=manifest, connector=connector)
