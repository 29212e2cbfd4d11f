"""ModelCompose checkpoints (Chen et al., arXiv 2402.12750) as parents.

A checkpoint holds everything that was trained: LoRA pairs of the text stream (``default``) and of
each modality's own tokens, connectors, learned tokens before and after an input's features. It
holds no LLM: the base has to be at hand.

==================  ===========================================================================
``lora_strategy``   becomes
==================  ===========================================================================
``modal+language``  a decoupled parent (DAMC)
``modal``           a decoupled parent whose text stream is the base's own
``same``            a naive parent (NaiveMC): one delta for all tokens
``none``, unset     a naive parent where it has pairs, else a decoupled one without deltas: its
                    connector alone was trained
==================  ===========================================================================

A merged checkpoint becomes one parent for each modality, and the coefficients under which they
compose to what it was. Where the parents' text deltas were merged offline into one, each has that
one, for 1/N: exact, since text deltas are summed in function space.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from modalloy.base import Base
from modalloy.checkpoints.new_directory import check_free, new_directory
from modalloy.composition.coefficients import make_coefficients
from modalloy.errors import SpecError, UnknownNameError
from modalloy.interop.accounting import Accounting, Row
from modalloy.interop.modelcompose_connectors import (
    Connection,
    read_connection,
    skip_text_tokens,
)
from modalloy.interop.modelcompose_encoders import read_encoder
from modalloy.interop.modelcompose_layout import (
    EXPECTED_NAMES,
    PROJECTOR,
    TOKENS,
    Plan,
    group_adapters,
    make_plan,
)
from modalloy.interop.modelcompose_pairs import (
    Deltas,
    Source,
    account_for_pairs,
    read_deltas,
)
from modalloy.interop.modelcompose_settings import (
    DECOUPLED,
    KIND,
    MODALITIES,
    Settings,
    read_settings,
)
from modalloy.interop.pickles import find_stem, open_all
from modalloy.interop.writing import (
    Converted,
    ParentParts,
    WrittenParent,
    training_record,
    write_parent,
)
from modalloy.parent import FORMAT_VERSION, BaseReference, ParentManifest
from modalloy.registry import Registry

COEFFICIENTS_FILE = "coefficients.json"
_STEMS = ("adapter_model", "mm_projector")
_MORE = "non_lora_trainables"  # read after the others by the released code, where it is there
_REQUIRES = {"clip": "modalloy-vision"}


def convert_modelcompose(
    source: Path,
    out: Path,
    *,
    base: Base | None,
    registry: Registry,
    allow_pickle: bool = False,
    modality: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Converted:
    """Convert a ModelCompose checkpoint, single or merged.

    Args:
        source: Holds ``config.json`` and ``adapter_model.bin`` (or ``mm_projector.bin``, or either
            as safetensors).
        out: The parent directory to write; of a merged checkpoint, the directory of those.
        base: What it was tuned from, ``vicuna-7b-v1.5`` for the released ones.
        registry: Supplies connector types.
        allow_pickle: Whether a ``.bin`` may be read.
        modality: Take this one alone, as one parent.
        progress: Called with a line of text before something slow.

    Returns:
        What was written.

    Raises:
        FormatError: A file is missing, malformed, or not whole.
        DeltaError: A tensor has no place.
        SpecError: It is of a kind that a parent cannot hold, or ``base`` is missing.
        BaseMismatchError: It was tuned from another base.
    """
    check_free(out)
    settings = read_settings(source)
    if base is None:
        named = f" (its config.json says {settings.base!r})" if settings.base else ""
        raise SpecError(
            f"{source}: a ModelCompose checkpoint holds no LLM; give the base that it was tuned "
            f"from{named} with --base",
            subject="base",
        )
    stem = find_stem(source, *_STEMS) or _STEMS[0]
    stems = [stem, *([_MORE] if find_stem(source, _MORE) else [])]
    with open_all(source, stems, allow_pickle=allow_pickle, progress=progress) as weights:
        opened = Source(
            settings=settings,
            weights=weights,
            base=base,
            accounting=Accounting(str(source), weights.names()),
            chosen=_choose(settings, modality),
        )
        return _convert(opened, registry, out, progress)


def _choose(settings: Settings, modality: str | None) -> tuple[str, ...]:
    """Return their names of the modalities to convert."""
    names = tuple(sorted(settings.modalities, key=lambda name: MODALITIES[name]))
    if modality is None:
        return names
    chosen = tuple(name for name in names if modality in (name, MODALITIES[name]))
    if not chosen:
        known = [MODALITIES[name] for name in names]
        raise UnknownNameError("modality of this checkpoint", modality, known)
    return chosen


def _convert(
    source: Source, registry: Registry, out: Path, progress: Callable[[str], None] | None
) -> Converted:
    adapters = group_adapters(source.weights.names())
    plan = make_plan(source.settings, adapters)
    deltas = {name: read_deltas(source, plan, adapters, name) for name in source.chosen}
    hidden = int(source.base.config().get_text_config().hidden_size)
    connections = {
        name: read_connection(
            name, source.settings, source.weights, source.accounting, hidden, registry
        )
        for name in source.chosen
    }
    account_for_pairs(source, plan, adapters)
    skip_text_tokens(source.weights, source.accounting)
    _skip_others(source)
    # A checkpoint of a strategy that trains no pairs is whole with a connector alone.
    trained = source.settings.strategy not in (None, "none")
    rows = source.accounting.finish(expected=EXPECTED_NAMES, needs_delta=trained)
    record = _record(source, rows)
    # Where all tokens run on one adapter, those of a modality that added nothing to it do, too.
    naive = source.settings.strategy not in DECOUPLED and bool(plan.text)
    parents = {
        name: _parts(
            source, name, connections[name], deltas[name], record, "naive" if naive else "decoupled"
        )
        for name in source.chosen
    }
    if progress is not None:
        progress(f"writing {', '.join(MODALITIES[name] for name in source.chosen)}")
    return _write(source, plan, parents, rows, out)


def _skip_others(source: Source) -> None:
    """Account for connectors and learned tokens of modalities that were not asked for."""
    others = source.settings.modalities.keys() - set(source.chosen)
    for name in source.weights.names():
        match = PROJECTOR.fullmatch(name)
        tokens = TOKENS.fullmatch(name)
        owner = match["modality"] if match else tokens["owner"] if tokens else None
        if owner in others:
            source.accounting.skip(name, source.others)


def _record(source: Source, rows: Iterable[Row]) -> dict[str, Any]:
    """Return ``training`` of the parents' manifests, without what is a modality's own."""
    settings = source.settings
    files = [settings.path.name, *source.weights.files]
    read: dict[str, Any] = {"lora_strategy": settings.strategy, "base": settings.base}
    read |= {"lora_r": settings.rank, "lora_alpha": settings.scale * settings.rank}
    read |= {"reset_scaling_weights": dict(sorted(settings.reset.items()))}
    return training_record(KIND, source.directory, files, rows, settings=read)


def _parts(
    source: Source,
    name: str,
    connection: Connection,
    deltas: Deltas,
    record: Mapping[str, Any],
    strategy: str,
) -> ParentParts:
    base, one = source.base, source.settings.modalities[name]
    encoder = read_encoder(name, source.settings)
    several = len(source.settings.modalities) > 1
    manifest = ParentManifest(
        format_version=FORMAT_VERSION,
        name=source.directory.resolve().name + (f"-{MODALITIES[name]}" if several else ""),
        modality=MODALITIES[name],
        base=BaseReference(id=base.id, fingerprint=base.fingerprint),
        strategy=strategy,
        encoder=encoder,
        connector=connection.spec,
        prefix_tokens=one.prefix,
        suffix_tokens=one.suffix,
        requires=_REQUIRES.get(encoder.type),
        training={**record, "notes": list(connection.notes)},
    )
    return ParentParts(
        manifest=manifest, text=deltas.text, modality=deltas.own, connector=connection.tensors
    )


def _write(
    source: Source,
    plan: Plan,
    parents: Mapping[str, ParentParts],
    rows: tuple[Row, ...],
    out: Path,
) -> Converted:
    several = len(parents) > 1
    naive = any(parts.manifest.strategy == "naive" for parts in parents.values())
    method = "naive" if naive else "damc"
    values = _coefficients(source, plan) if several else None
    written = []
    with new_directory(out) as partial:
        for name, parts in parents.items():
            folder = MODALITIES[name] if several else ""
            manifest = write_parent(partial / folder, parts)
            written.append(WrittenParent(directory=out / folder, manifest=manifest))
        if values is not None and method == "damc":
            _write_coefficients(partial / COEFFICIENTS_FILE, method, values)
    notes = [note for parts in parents.values() for note in parts.manifest.training["notes"]]
    unread = [n for n in _STEMS[1:] if find_stem(source.directory, n)]
    if unread and not any(file.startswith(unread[0]) for file in source.weights.files):
        notes.append(
            f"{unread[0]} lies beside {_STEMS[0]} and was not read, as in the released code"
        )
    has_file = values is not None and method == "damc"
    return Converted(
        kind=KIND,
        parents=tuple(written),
        accounting=rows,
        notes=tuple(notes),
        method=method,
        coefficients=values,
        coefficients_file=out / COEFFICIENTS_FILE if has_file else None,
    )


def _coefficients(source: Source, plan: Plan) -> dict[str, float]:
    """Return what each parent's text delta counts for, as in the merged checkpoint."""
    share = len(source.chosen) if plan.shared else 1
    return {
        MODALITIES[name]: plan.text[name].factor / share if name in plan.text else 0.0
        for name in source.chosen
    }


def _write_coefficients(file: Path, method: str, values: Mapping[str, float]) -> None:
    """Write coefficients that hold for every prompt, in the form that ``compose`` reads.

    That form is a table with a row for each set of modalities present.
    """
    names = sorted(values)
    sets = [frozenset(c) for size in range(len(names) + 1) for c in combinations(names, size)]
    made = make_coefficients(dict.fromkeys(sets, values), names, ("presence",))
    data = {
        "format_version": 1,
        "method": method,
        "method_options": {},
        "coefficients": made.to_dict(),
    }
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
