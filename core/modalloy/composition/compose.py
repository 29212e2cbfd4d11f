"""Composing: choose parents, check them against the base, put everything together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from modalloy.base import Base, resolve_base
from modalloy.composition.coefficients import Spec, make_coefficients
from modalloy.composition.configuration import ModalloyConfig, check_dtype
from modalloy.composition.directory import read_directory
from modalloy.composition.fitting import fit_delta, without_embedding
from modalloy.composition.layers import fill_streams, linear_layers
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.patterns import summarise
from modalloy.composition.processing import ModalloyProcessor
from modalloy.composition.record import provenance
from modalloy.composition.selection import Chosen, choose_parents
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.deltas.whole import read_stream
from modalloy.errors import FormatError, SpecError
from modalloy.merging.merged import Merged, complete_options, run_merge
from modalloy.modality import MERGED, Modality, resolve
from modalloy.parent import CONNECTOR_FILE, ENCODER_FILE, MANIFEST
from modalloy.registry import Registry

FIRST_FREE_TYPE_ID = 5
"""Token types from here on are assigned per composition; those below are reserved."""

_MOST = 1 << 16
"""Tokens of an input, and features of a token, that a file may claim."""

_ANEW = "it is of another version of its plugin: install that, or train the parent anew"


class Composition(NamedTuple):
    """A composed model and its processor."""

    model: ModalloyForConditionalGeneration
    processor: ModalloyProcessor


def compose(  # noqa: PLR0913 - all but the first are options by name
    base: str | Path = "smollm2",
    *,
    revision: str | None = None,
    modalities: Iterable[str] | None = None,
    parents: Iterable[str | Path] = (),
    method: str = "damc",
    method_options: Mapping[str, float] | None = None,
    coefficients: Spec | None = None,
    dtype: str | torch.dtype = "auto",
    registry: Registry | None = None,
    progress: Callable[[str], None] | None = None,
) -> Composition:
    """Compose the installed modalities, or those named, over one base.

    Args:
        base: ``"smollm2"``, a Hugging Face directory, or a Hub id.
        revision: Commit, tag or branch of the base, for a Hub id.
        modalities: Names of modalities; all that have a parent for this base if left out.
        parents: Parent directories, or names of registered parents, that stand beside the
            installed ones or take the place of those of the same modality.
        method: ``"damc"``, ``"naive"``, or another registered merge method.
        method_options: Options of the merge method, such as ``{"density": 0.3}`` with TIES.
        coefficients: A rule's name (``"presence"`` or ``"uniform"`` with DAMC, ``"mean"``,
            ``"sum"`` or ``"zero"`` with NaiveMC; a method's first is its default), one value per
            group of text deltas (modality, and ``"merged"`` where the method makes one), or
            such values by frozenset of the modalities present.
        dtype: Of weights and arithmetic; ``"auto"`` takes the base's.
        registry: Supplies plugins; what is installed if left out.
        progress: Called with a line of text before something slow, and about installed
            modalities that are left out.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        BaseMismatchError: A parent was tuned from another base.
        UnknownNameError: A modality, parent or method is not registered.
        MissingComponentError: A parent, an encoder type or a base is not at hand.
        SpecError: The parts do not fit together, or an option is none of those above.
    """
    check_dtype(dtype)
    registry = registry or Registry.discover()
    kind = registry.merge_method(method)
    options = complete_options(kind, method_options or {})
    opened = resolve_base(base, revision, progress)
    chosen = choose_parents(registry, opened, kind, modalities, parents)
    unused = sorted(registry.modalities.keys() - {one.modality for one in chosen})
    if progress is not None and modalities is None and unused:
        progress(f"Left out, without a parent over {opened.id}: {', '.join(unused)}")
    tokenizer = opened.tokenizer()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it stands
    language_model = opened.model(dtype)
    text = {one.modality: _read(one, "text", opened, language_model) for one in chosen}
    own = {}
    if kind.decoupled:
        own = {one.modality: _own_delta(one, text, opened, language_model) for one in chosen}
    merged = run_merge(kind, text, own, options, progress)
    entries = describe_modalities(registry, chosen, tokenizer)
    config = ModalloyConfig(
        text_config=language_model.config,
        modalities=entries,
        method=method,
        method_options=options,
        decoupled=kind.decoupled,
        base={"id": opened.id, "fingerprint": attrs.asdict(opened.fingerprint)},
        dtype=language_model.dtype,
    )
    texts, owns = _describe_deltas(config, language_model, text, own, merged)
    made = make_coefficients(coefficients, config.text_deltas(), kind.rules)
    config.coefficients = made.to_dict()
    model = build_model(config, language_model, registry)
    fill_streams(model.language_model, texts, owns)
    for one in chosen:
        _load_connector(model, one)
        if (one.directory / ENCODER_FILE).is_file():
            model.encoders.files[one.modality] = one.directory / ENCODER_FILE
    model.provenance = provenance(model, opened, chosen, text, own, merged, registry)
    processor = ModalloyProcessor(
        tokenizer, modalities=entries, chat_template=tokenizer.chat_template
    )
    return Composition(model.eval(), processor.bind(registry))


def load(
    directory: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    registry: Registry | None = None,
) -> Composition:
    """Open a composition that was saved.

    Args:
        directory: A model directory or Hub id.
        revision: Commit, tag or branch, for a Hub id.
        dtype: Of weights and arithmetic; ``"auto"`` takes the saved one.
        registry: Supplies plugins; what is installed if left out.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        FormatError: The directory is no composition, or its tensors are not those of its
            configuration.
        MissingComponentError: There is no such directory, repository or revision.
        SpecError: A revision is given of a directory.
    """
    check_dtype(dtype)
    registry = registry or Registry.discover()
    model, processor = read_directory(str(directory), dtype, registry, revision)
    return Composition(model, processor)


def build_model(
    config: ModalloyConfig, language_model: PreTrainedModel, registry: Registry
) -> ModalloyForConditionalGeneration:
    """Return the modules of a composition around an opened base, deltas at zero."""
    model = ModalloyForConditionalGeneration(
        config, language_model=language_model, registry=registry
    )
    model.connectors.to(dtype=language_model.dtype)
    model.generation_config = language_model.generation_config
    return model


def describe_modalities(
    registry: Registry, chosen: Iterable[Chosen], tokenizer: Any
) -> dict[str, dict[str, Any]]:
    """Return ``modalities`` of the configuration, adding the placeholders to the tokenizer.

    Raises:
        SpecError: Two modalities claim one content type, placeholder or token type, or an encoder
            is another modality's.
    """
    chosen = sorted(chosen, key=lambda one: one.modality)
    specs = {one.modality: registry.modality(one.modality) for one in chosen}
    _check_distinct(specs)
    taken = {spec.token_type_id for spec in specs.values()}
    free = (value for value in range(FIRST_FREE_TYPE_ID, 1 << 16) if value not in taken)
    entries: dict[str, dict[str, Any]] = {}
    for one in chosen:
        spec, manifest = specs[one.modality], one.manifest
        known = tokenizer.get_vocab()
        if spec.placeholder not in known:
            tokenizer.add_tokens([spec.placeholder], special_tokens=True)
        shape = _encoder_shape(registry, one)
        connector = registry.connector(manifest.connector.type)
        tokens = shape[0]
        if connector.output_tokens is not None:
            tokens = resolve(connector.output_tokens)(manifest.connector.config, tokens)
        entries[one.modality] = {
            "content_type": spec.content_type,
            "payload_keys": list(spec.payload_keys),
            "placeholder": spec.placeholder,
            "placeholder_id": tokenizer.convert_tokens_to_ids(spec.placeholder),
            "token_type_id": next(free) if spec.token_type_id is None else spec.token_type_id,
            "tokens": manifest.prefix_tokens + tokens + manifest.suffix_tokens,
            "prefix_tokens": manifest.prefix_tokens,
            "suffix_tokens": manifest.suffix_tokens,
            "encoder": {**attrs.asdict(manifest.encoder), "shape": list(shape)},
            "connector": attrs.asdict(manifest.connector),
            "requires": manifest.requires,
            "text_delta": [],
            "modality_delta": None,
        }
    return entries


def _encoder_shape(registry: Registry, one: Chosen) -> tuple[int, int]:
    """Return (K, F) of a parent's encoder, from its plugin or, where none has it, its manifest."""
    entry = one.manifest.encoder
    if entry.shape is not None and entry.type not in registry.encoders:
        return _check_shape(one, entry.shape)
    encoder = registry.encoder(entry.type, requires=one.manifest.requires)
    if encoder.modality != one.modality:
        raise SpecError(
            f"parent {one.source}: encoder {encoder.name!r} takes {encoder.modality!r} inputs, "
            f"the parent's modality is {one.modality!r}",
            subject=one.source,
        )
    try:
        shape = resolve(encoder.output_shape)(entry.config)
    except SpecError as error:
        raise SpecError(f"parent {one.source}: {error}; {_ANEW}", subject=one.source) from error
    if entry.shape not in (None, [*shape]):
        raise SpecError(
            f"parent {one.source}: encoder {encoder.name!r} gives {shape[0]} tokens of {shape[1]} "
            f"features, {MANIFEST} says {entry.shape[0]} of {entry.shape[1]}; {_ANEW}",
            subject=one.source,
        )
    return shape


def _check_shape(one: Chosen, shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2 or not all(0 < size <= _MOST for size in shape):  # noqa: PLR2004
        raise SpecError(
            f"parent {one.source}: the encoder's shape must be [tokens, features], each from 1 to "
            f"{_MOST}; found {list(shape)}",
            subject=one.source,
        )
    return shape[0], shape[1]


def _check_distinct(specs: Mapping[str, Modality]) -> None:
    for attribute in ("content_type", "placeholder", "token_type_id"):
        seen: dict[Any, str] = {}
        for name, spec in specs.items():
            value = getattr(spec, attribute)
            if value is not None and value in seen:
                raise SpecError(
                    f"modalities {seen[value]!r} and {name!r} both have {attribute} {value!r}, so "
                    "a prompt could not tell them apart; compose them apart with "
                    "modalities=[...] (--modality)",
                    subject=name,
                )
            seen[value] = name


def _read(one: Chosen, stream: str, base: Base, language_model: PreTrainedModel) -> LowRankDelta:
    return fit_delta(read_stream(one.directory, stream, base), language_model)


def _own_delta(
    one: Chosen,
    text: Mapping[str, LowRankDelta],
    base: Base,
    language_model: PreTrainedModel,
) -> LowRankDelta:
    """Return the delta of a parent's modality stream.

    A naive parent's only delta serves both its streams: post-hoc decoupling, what ModelCompose
    calls ``convert``.
    """
    if one.manifest.strategy == "naive":
        return without_embedding(text[one.modality], language_model)
    return without_embedding(_read(one, "modality", base, language_model), language_model)


def _describe_deltas(
    config: ModalloyConfig,
    language_model: PreTrainedModel,
    text: Mapping[str, LowRankDelta],
    own: Mapping[str, LowRankDelta],
    merged: Merged,
) -> tuple[dict[str, LowRankDelta], Mapping[str, LowRankDelta]]:
    """Say in the configuration which layers the deltas of each stream reach, and return those.

    Returns:
        The text stream's deltas by group, and the modality streams' by modality.

    Raises:
        DeltaError: A delta has no place in the base.
    """
    known = list(linear_layers(language_model)), [n for n, _ in language_model.named_parameters()]
    if merged.text is not None:
        config.merged_delta = summarise(merged.text, *known)
    owns = own if merged.own is None else merged.own
    for name, entry in config.modalities.items():
        if name in config.text_deltas():
            entry["text_delta"] = summarise(text[name], *known)
        if name in owns:
            entry["modality_delta"] = summarise(owns[name], *known)
    held = {MERGED: merged.text} if merged.text is not None else {}
    held |= {name: delta for name, delta in text.items() if name in config.text_deltas()}
    return held, owns


def _load_connector(model: ModalloyForConditionalGeneration, one: Chosen) -> None:
    path = one.directory / CONNECTOR_FILE
    try:
        model.connectors[one.modality].load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise FormatError(
            f"{path} does not hold the connector that its parent.json describes "
            f"({one.manifest.connector.type}): {error}; {_ANEW}",
            path=path,
        ) from error
