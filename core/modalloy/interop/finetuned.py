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
from modalloy.checkpoints.reader import CheckpointReader
from modalloy.deltas.compress import Compression
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.errors import BaseMismatchError, FormatError, SpecError
from modalloy.interop.accounting import CONNECTOR, ENCODER, Accounting
from modalloy.interop.compressing import compress_changed
from modalloy.interop.language import compare_language, write_weights
from modalloy.interop.layouts import LANGUAGE, split_name
from modalloy.interop.pickles import find_stem, open_weights
from modalloy.interop.towers import Sizes, Tower, describe_tower
from modalloy.interop.words import same_words
from modalloy.interop.writing import (
    Converted,
    ParentParts,
    WrittenParent,
    new_directory,
    training_record,
    write_parent,
)
from modalloy.parent import (
    ENCODER_FILE,
    FORMAT_VERSION,
    TEXT_WEIGHTS,
    BaseReference,
    ParentManifest,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KIND = "fine-tuned model"
_STEMS = ("model", "pytorch_model")
_TEXT_TYPES: Mapping[str, str] = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
"""Plain model type of a language model that a multimodal one has under another name."""
_ALIKE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
)
"""What a language model and its base must agree in beside the shapes of their tensors."""


def convert_finetuned(
    source: Path,
    out: Path,
    *,
    base: Base | None,
    modality: str | None = None,
    limits: Compression | None = None,
    sizes: Sizes | None = None,
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
    check_language(source, config.get_text_config(), base)
    tower = describe_tower(config, source, modality, sizes or Sizes())
    stem = find_stem(source, *_STEMS) or _STEMS[0]
    with (
        open_weights(source, stem, allow_pickle=allow_pickle, progress=progress) as weights,
        CheckpointReader(weights, stem) as tuned,
        CheckpointReader(base.path) as plain,
        new_directory(out) as directory,
    ):
        account = Accounting(source.name, tuned.names())
        names, encoder, connector = _sort(tuned, tower, account)
        language = compare_language(
            tuned,
            plain,
            names,
            base,
            account.place,
            same_words=same_words(source, base.path),
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


def check_language(source: Path, text: "PretrainedConfig", base: Base) -> None:
    """Check that a model's language model is of the kind and size of a base.

    Raises:
        BaseMismatchError: It is not.
    """
    own = base.config()
    kind = _TEXT_TYPES.get(text.model_type, text.model_type)
    differences = []
    if kind != own.model_type:
        differences.append(f"model_type {kind!r} and {own.model_type!r}")
    for name in _ALIKE:
        found, expected = _setting(text, name), _setting(own, name)
        if found != expected and None not in (found, expected):
            differences.append(f"{name} {found} and {expected}")
    if differences:
        raise BaseMismatchError(
            f"{source}: its language model is not of the kind of the base {base.id!r}: "
            f"{'; '.join(differences)}. Give the base that it was tuned from",
            parent=str(source),
            expected=own.model_type,
            found=kind,
        )


def _setting(config: "PretrainedConfig", name: str) -> Any:
    if name == "rope_theta":
        rope = getattr(config, "rope_parameters", None) or {}
        return rope.get("rope_theta", getattr(config, "rope_theta", None))
    return getattr(config, name, None)


def _sort(
    tuned: CheckpointReader, tower: Tower, account: Accounting
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
    _check_shapes(tuned, parts[CONNECTOR], tower)
    return language, parts[ENCODER], parts[CONNECTOR]


def _check_shapes(tuned: CheckpointReader, connector: Mapping[str, str], tower: Tower) -> None:
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
