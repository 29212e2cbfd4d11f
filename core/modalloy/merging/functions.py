"""The merge functions of the built-in methods: parents' deltas in, merged deltas out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.errors import DeltaError, SpecError
from modalloy.merging import methods
from modalloy.merging.merged import Merged, check_share
from modalloy.merging.representing import exact_pair, truncated_pair

Deltas = Mapping[str, LowRankDelta]


def merge_ties(text: Deltas, own: Deltas, *, density: float, scale: float, rank: int) -> Merged:
    """Merge the text deltas by TIES.

    Args:
        text: Text delta by modality.
        own: Not used: modality streams stay the parents'.
        density: See :func:`modalloy.merging.methods.ties`.
        scale: What the merged delta is multiplied by, the authors' lambda.
        rank: Of the result; 0 keeps it whole.

    Raises:
        SpecError: An option is out of range.
    """
    del own
    check_share("density", density)
    keep = _Keeper(rank)
    pairs = {
        module: keep(scale * methods.ties([pair.dense() for pair in pairs], density))
        for module, pairs in _by_module(text)
    }
    whole = _each_tensor(text, lambda tensors: scale * methods.ties(tensors, density))
    return Merged(LowRankDelta(pairs, whole), record=keep.record())


def merge_factor_means(text: Deltas, own: Deltas) -> Merged:
    """Merge the text deltas by averaging their factors apart.

    Raises:
        DeltaError: The parents differ in rank or scale.
    """
    del own
    whole = _each_tensor(text, methods.mean)
    return Merged(LowRankDelta(_each(text, methods.factor_mean), whole))


def merge_swudi(text: Deltas, own: Deltas, *, share: float, time: float, scale: float) -> Merged:
    """Merge the text deltas by SWUDI.

    Args:
        text: Text delta by modality.
        own: Not used: modality streams stay the parents'.
        share: See :func:`modalloy.merging.methods.swudi`.
        time: The same.
        scale: What the merged delta is multiplied by.

    Raises:
        SpecError: An option is out of range.
    """
    del own
    check_share("share", share)
    if time <= 0:
        raise SpecError(f"option 'time' must be above 0, found {time!r}")

    def merge(pairs: Sequence[LowRankPair]) -> LowRankPair:
        pair = methods.swudi(pairs, share, time)
        return LowRankPair(pair.A, scale * pair.B, pair.scale)

    # What is no linear layer is averaged, as the authors do.
    whole = _each_tensor(text, lambda tensors: scale * methods.mean(tensors))
    return Merged(LowRankDelta(_each(text, merge), whole))


def merge_mmer(
    text: Deltas, own: Deltas, *, density: float, strictness: float, rank: int
) -> Merged:
    """Merge naive parents by MMER: text on the merged delta, each modality on its part of it.

    Args:
        text: Text delta by modality.
        own: The same deltas, as naive parents have one for both streams.
        density: Of the TIES that makes the merged delta.
        strictness: See :func:`modalloy.merging.methods.mmer_mask`.
        rank: Of the results; 0 keeps them whole.

    Raises:
        SpecError: An option is out of range.
    """
    check_share("density", density)
    if strictness < 0:
        raise SpecError(f"option 'strictness' must not be negative, found {strictness!r}")
    keep = _Keeper(rank)
    whole: dict[str, LowRankPair] = {}
    parts: dict[str, dict[str, LowRankPair]] = {name: {} for name in own}
    kept = total = 0
    for module, _ in _by_module(text):
        dense = {n: d.pairs[module].dense() for n, d in text.items() if module in d.pairs}
        merged = methods.ties(list(dense.values()), density)
        whole[module] = keep(merged)
        for name, delta in dense.items():
            mask = methods.mmer_mask(delta, merged, strictness)
            parts[name][module] = keep(torch.where(mask, merged, 0.0))
            kept, total = (
                kept + int((mask & (merged != 0)).sum()),
                total + int(merged.count_nonzero()),
            )
    record = keep.record() | {"kept_by_masks": round(kept / max(total, 1), 4)}
    tensors = _each_tensor(text, lambda found: methods.ties(found, density))

    def masked(name: str, delta: torch.Tensor) -> torch.Tensor:
        mask = methods.mmer_mask(delta, tensors[name], strictness)
        return torch.where(mask, tensors[name], 0.0)

    deltas = {
        name: LowRankDelta(pairs, {n: masked(n, d) for n, d in own[name].tensors.items()})
        for name, pairs in parts.items()
    }
    return Merged(LowRankDelta(whole, tensors), deltas, record)


class _Keeper:
    """Turns dense results into pairs, and keeps count of what is lost.

    Args:
        rank: Of the pairs; 0 keeps everything.
    """

    def __init__(self, rank: int) -> None:
        if rank < 0:
            raise SpecError(f"option 'rank' must be 0 (exact) or more, found {rank!r}")
        self._rank = rank
        self._errors: list[float] = []

    def __call__(self, delta: torch.Tensor) -> LowRankPair:
        pair, error = truncated_pair(delta, self._rank) if self._rank else (exact_pair(delta), 0.0)
        self._errors.append(error)
        return pair

    def record(self) -> dict[str, Any]:
        """Return the relative errors of truncation, over all pairs."""
        worst = max(self._errors, default=0.0)
        average = sum(self._errors) / max(len(self._errors), 1)
        return {"relative_error": {"mean": round(average, 6), "worst": round(worst, 6)}}


def _by_module(deltas: Deltas) -> Iterable[tuple[str, list[LowRankPair]]]:
    """Yield each module that a delta reaches with the pairs of those that do, sorted by name.

    A module that one parent alone changed is merged from that one.
    """
    for module in sorted({module for delta in deltas.values() for module in delta.pairs}):
        pairs = [d.pairs[module] for _, d in sorted(deltas.items()) if module in d.pairs]
        shapes = sorted({(pair.B.shape[0], pair.A.shape[1]) for pair in pairs})
        if len(shapes) > 1:
            raise DeltaError(
                f"{module}: the parents' deltas have shapes {shapes}; they were not tuned from "
                "one base",
                tensor=module,
            )
        yield module, pairs


def _each_tensor(
    deltas: Deltas, merge: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Merge what is changed whole, tensor by tensor; one that a single parent changed is its."""
    names = sorted({name for delta in deltas.values() for name in delta.tensors})
    return {
        name: merge([d.tensors[name] for _, d in sorted(deltas.items()) if name in d.tensors])
        for name in names
    }


def _each(
    deltas: Deltas, merge: Callable[[Sequence[LowRankPair]], LowRankPair]
) -> dict[str, LowRankPair]:
    """Merge module by module; an error names the module."""
    merged = {}
    for module, pairs in _by_module(deltas):
        try:
            merged[module] = merge(pairs)
        except DeltaError as error:
            raise DeltaError(f"{module}: {error}", tensor=module) from error
    return merged
