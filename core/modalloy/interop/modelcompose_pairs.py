"""LoRA pairs of ModelCompose checkpoints, checked against the base."""

from collections.abc import Mapping
from pathlib import Path

import attrs

from modalloy.base import Base
from modalloy.checkpoints.reader import CheckpointReader
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.errors import BaseMismatchError, FormatError
from modalloy.interop.accounting import MODALITY_DELTA, SKIPPED, TEXT_DELTA, Accounting
from modalloy.interop.modelcompose_layout import Plan, Stream, check_complete
from modalloy.interop.modelcompose_settings import DECOUPLED, MODALITIES, Settings
from modalloy.interop.pickles import Weights

Adapters = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Names of factors by adapter, module and ``"A"`` or ``"B"``."""


@attrs.frozen(kw_only=True)
class Source:
    """A checkpoint that is open, and the base that it is put on.

    Attributes:
        settings: What its config.json says.
        weights: Its tensors.
        base: The base.
        accounting: Takes down what becomes of each tensor.
        chosen: Their names of the modalities to convert.
    """

    settings: Settings
    weights: Weights
    base: Base
    accounting: Accounting
    chosen: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """The checkpoint's directory."""
        return self.weights.source

    @property
    def others(self) -> str:
        """Why a tensor is left out where one modality of several was asked for."""
        return f"of another modality than {MODALITIES[self.chosen[0]]}, which was asked for"


@attrs.frozen
class Deltas:
    """The deltas of one parent: of the text stream (or all tokens), and of its own tokens."""

    text: LowRankDelta
    own: LowRankDelta


def read_deltas(source: Source, plan: Plan, adapters: Adapters, name: str) -> Deltas:
    """Return the deltas of a modality's parent.

    Args:
        source: The checkpoint.
        plan: Which adapter serves which stream.
        adapters: Names of the factors.
        name: Their name of the modality.

    Raises:
        FormatError: A factor is missing, or of another rank than config.json says.
        BaseMismatchError: The base has no such layer, or one of another shape.
    """
    # A parent that stands alone is what it was merged as; one of several has a coefficient.
    alone = len(source.chosen) == 1
    return Deltas(
        _read_delta(source, plan.text.get(name), adapters, fold=alone),
        _read_delta(source, plan.own.get(name), adapters, fold=True),
    )


def _read_delta(
    source: Source, stream: Stream | None, adapters: Adapters, *, fold: bool
) -> LowRankDelta:
    if stream is None:
        return LowRankDelta({})
    scale = source.settings.scale * (stream.factor if fold else 1.0)
    modules = adapters[stream.adapter]
    with CheckpointReader(source.base.path) as base:
        check_complete(source.directory, stream.adapter, modules, base.names())
        return LowRankDelta(
            {module: _pair(source, base, module, names, scale) for module, names in modules.items()}
        )


def _pair(
    source: Source, base: CheckpointReader, module: str, factors: Mapping[str, str], scale: float
) -> LowRankPair:
    """Return a pair that fits the base."""
    a, b = (source.weights.tensor(factors[factor]) for factor in "AB")
    rank, name = source.settings.rank, f"{module}.weight"
    layer = base.shape(name) if name in base else None
    if layer is None or (b.shape[0], a.shape[-1]) != layer:
        raise BaseMismatchError(
            f"{source.directory}: the pair of {module!r} changes a layer "
            f"{(b.shape[0], a.shape[-1])}, the base {source.base.id!r} has {layer or 'none'} "
            f"there; take the base that it was tuned from, {source.settings.base or 'a Vicuna'}",
            parent=str(source.directory),
            expected=str((b.shape[0], a.shape[-1])),
            found=str(layer),
        )
    if tuple(a.shape) != (rank, layer[1]) or tuple(b.shape) != (layer[0], rank):
        raise FormatError(
            f"{source.directory}: {module}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} "
            f"are not of the rank that config.json says, {rank}",
            path=source.settings.path,
        )
    return LowRankPair(a, b, scale)


def account_for_pairs(source: Source, plan: Plan, adapters: Adapters) -> None:
    """Say what became of every factor."""
    partial = len(source.chosen) < len(source.settings.modalities)
    left = dict.fromkeys(adapters if partial else (), (SKIPPED, source.others))
    for adapter, (fate, reason) in sorted((left | _fates(source, plan)).items()):
        for factors in adapters[adapter].values():
            for name in factors.values():
                source.accounting.place(name, fate, reason)


def _fates(source: Source, plan: Plan) -> dict[str, tuple[str, str]]:
    """Return what becomes of each adapter that is used, and into what it goes."""
    count, of_all = len(source.chosen), len(source.settings.modalities)
    decoupled = source.settings.strategy in DECOUPLED
    fates = {}
    for name in source.chosen:
        if name in plan.own:
            reason = f"of {MODALITIES[name]} tokens"
            fates[plan.own[name].adapter] = (MODALITY_DELTA, reason)
        if name in plan.text:
            reason = f"of {'text' if decoupled else 'all'} tokens"
            if plan.shared and count > 1:
                reason += f", in each of {count} parents for 1/{count}"
            elif not plan.shared and of_all > 1:
                reason += f", {MODALITIES[name]}'s share"
            fates[plan.text[name].adapter] = (TEXT_DELTA, reason)
    return fates
