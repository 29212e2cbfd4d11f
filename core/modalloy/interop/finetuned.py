"""Whole fine-tuned multimodal models as parents: LLaVA, Qwen-VL, Qwen2-Audio, Video-LLaVA.

The language model becomes a delta from its base, tensor by tensor and never loaded whole; the tower
becomes the encoder, and the projector the connector.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from modalloy.base import Base
from modalloy.base_config import CONFIG_FILE, read_config
from modalloy.checkpoints.new_directory import new_directory
from modalloy.checkpoints.reader import CheckpointReader
from modalloy.deltas.compress import Compression
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.errors import FormatError, SpecError
from modalloy.interop.accounting import CONNECTOR, ENCODER, Accounting
from modalloy.interop.arithmetic import check_arithmetic
from modalloy.interop.compressing import compress_changed
from modalloy.interop.language import compare_language, write_weights
from modalloy.interop.layouts import LANGUAGE, split_name
from modalloy.interop.pickles import find_stem, open_weights
from modalloy.interop.towers import Sizes, Tower, describe_tower
from modalloy.interop.words import Words
from modalloy.interop.writing import (
    Converted,
    ParentParts,
    WrittenParent,
    training_record,
    write_parent,
)
from modalloy.modality import resolve
from modalloy.parent import (
    ENCODER_FILE,
    FORMAT_VERSION,
    TEXT_WEIGHTS,
    BaseReference,
    ParentManifest,
)
from modalloy.registry import Registry

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KIND = "fine-tuned model"
_STEMS = ("model", "pytorch_model")


def convert_finetuned(
    source: Path,
    out: Path,
    *,
    base: Base | None,
    modality: str | None = None,
    limits: Compression | None = None,
    sizes: Sizes | None = None,
    registry: Registry,
    allow_pickle: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Write the parent that a whole fine-tuned model is.

    Args:
        source: Its directory, as transformers saved it, in this release or an older one.
        out: Where to write; must not exist, or be an empty directory.
        base: The language model that it was tuned from.
        modality: Which of its modalities; the first if left out.
        limits: How far its matrices are compressed to low-rank pairs; ``None`` keeps them whole.
        sizes: Of inputs, for towers that take any.
        registry: Supplies encoder types, to compare towers with their weights.
        allow_pickle: Whether ``pytorch_model.bin`` may be read, in a process of its own.
        progress: Called with a line of text before something slow.

    Raises:
        FormatError: Files are missing or malformed, or the model is of no supported family.
        BaseMismatchError: It was not tuned from that base.
        DeltaError: A tensor found no place, or nothing was tuned.
        SpecError: There is no base, or the model has no such modality.
    """
    config = open_config(source)
    if base is None:
        raise SpecError(
            f"{source} is a whole model of type {config.model_type!r}, and what was tuned in it "
            "shows against the language model that it was tuned from; give that with --base "
            "(base=...)",
            subject="base",
        )
    check_arithmetic(source, config.get_text_config(), base)
    tower = describe_tower(config, source, modality, sizes or Sizes())
    stem = find_stem(source, *_STEMS) or _STEMS[0]
    with (
        open_weights(source, stem, allow_pickle=allow_pickle, progress=progress) as weights,
        CheckpointReader(weights, stem) as tuned,
        CheckpointReader(base.path) as plain,
        new_directory(out) as directory,
    ):
        account = Accounting(source.name, tuned.names())
        names, encoder, connector = _sort(tuned, tower, account, registry)
        language = compare_language(
            tuned,
            plain,
            names,
            base,
            account.place,
            words=Words(source, base.path),
            progress=progress,
        )
        compressed = None
        whole = language.changed
        if limits is not None:
            compressed = compress_changed(
                tuple(language.changed), language.delta, base, limits, progress
            )
            whole = compressed.whole
        if whole:
            progress(f"writing {len(whole)} tensors as they were tuned")
            write_weights(directory / TEXT_WEIGHTS, language, whole)
        if encoder:
            tensors = {n: tuned.tensor(s).contiguous() for n, s in sorted(encoder.items())}
            save_file(tensors, directory / ENCODER_FILE, metadata={"format": "pt"})
        rows = account.finish(expected="'language_model.model.layers.0.mlp.up_proj.weight'")
        more: dict[str, Any] = {"notes": list(tower.notes)}
        if compressed is not None:
            more["compression"] = compressed.record()
        files = (
            sorted({tuned.file(name).name for name in tuned.names()}) if weights == source else ()
        )
        manifest = ParentManifest(
            format_version=FORMAT_VERSION,
            name=f"{tower.modality}-{source.resolve().name.lower()}",
            modality=tower.modality,
            base=BaseReference(id=base.id, fingerprint=base.fingerprint),
            strategy="naive",
            encoder=tower.encoder,
            connector=tower.connector,
            requires=tower.requires,
            training=training_record(KIND, source, files, rows, **more),
        )
        parts = ParentParts(
            manifest=manifest,
            text=LowRankDelta({}) if compressed is None else compressed.delta,
            connector={n: tuned.tensor(s) for n, s in sorted(connector.items())},
        )
        manifest = write_parent(directory, parts)
    return Converted(
        kind=KIND,
        parents=(WrittenParent(directory=out, manifest=manifest),),
        accounting=rows,
        notes=tower.notes + (() if compressed is None else (compressed.summary(),)),
        matrices=() if compressed is None else compressed.matrices,
    )


def open_config(source: Path) -> "PretrainedConfig":
    """Return the configuration of a multimodal model, running no code that comes with it.

    Raises:
        FormatError: transformers has no such model type, or the file does not describe one.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    data = read_config(source)
    kind = str(data.get("model_type"))
    path = source / CONFIG_FILE
    if kind not in CONFIG_MAPPING:
        raise FormatError(
            f"{path}: model type {kind!r} is not part of transformers; code that comes with a "
            "model is never run",
            path=path,
        )
    if "quantization_config" in data:
        raise FormatError(
            f"{path}: the model is quantised; convert the plain weights that it was made from",
            path=path,
        )
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(data)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise FormatError(
            f"{path} does not configure a {kind} model: {str(error)[:200]}", path=path
        ) from error
    return config


def _sort(
    tuned: CheckpointReader, tower: Tower, account: Accounting, registry: Registry
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Sort a checkpoint's tensors: language model, encoder and connector, names by new name."""
    language: dict[str, str] = {}
    parts: dict[str, dict[str, str]] = {ENCODER: {}, CONNECTOR: {}}
    for source in tuned.names():
        place = split_name(source)
        if place is None:
            continue  # the accounting tells it from those that are placed
        part, name = place
        if part == LANGUAGE:
            language[name] = source
            continue
        fate, new = tower.place(part, name)
        if fate in parts and new not in parts[fate]:
            parts[fate][new] = source
            account.place(source, fate, tower.reason(fate))
        elif fate not in parts:
            account.skip(source, new)
    _check_connector(tuned, parts[CONNECTOR], tower)
    _check_encoder(tuned, parts[ENCODER], tower, registry)
    return language, parts[ENCODER], parts[CONNECTOR]


def _check_connector(tuned: CheckpointReader, connector: Mapping[str, str], tower: Tower) -> None:
    missing = sorted(tower.connector_names - connector.keys())
    if missing:
        raise FormatError(
            f"{tuned.directory}: the projector lacks {', '.join(missing)} (as the connector names "
            "them); fetch all of its shards",
            path=tuned.directory,
        )
    first = tower.first
    shape = tuned.shape(connector[first])
    if len(shape) != 2 or shape[1] != tower.features:  # noqa: PLR2004
        raise FormatError(
            f"{tuned.file(connector[first])}: {connector[first]!r} is {shape}, its tower has "
            f"{tower.features} features a token: config.json and weights do not belong together",
            path=tuned.file(connector[first]),
        )


def _check_encoder(
    tuned: CheckpointReader, encoder: Mapping[str, str], tower: Tower, registry: Registry
) -> None:
    """Check that a tower's tensors are those that its configuration speaks of."""
    if not encoder:
        raise FormatError(
            f"{tuned.directory} holds no tensor of its tower, which was left out when it was "
            "saved; put the tower's weights beside the others first",
            path=tuned.directory,
        )
    if tower.encoder.type not in registry.encoders:
        return  # compared when it is first used, with the plugin that has it
    module = resolve(registry.encoder(tower.encoder.type).build)(tower.encoder.config)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuned.shape(source) for name, source in encoder.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise FormatError(
                f"{tuned.directory}: tensor {name!r} of its tower is {found.get(name, 'missing')}, "
                f"its config.json makes it {expected.get(name, 'none at all')}; fetch all of its "
                "files again",
                path=tuned.directory,
            )
