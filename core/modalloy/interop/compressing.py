"""Compressing the delta of a whole language model, with the error of every matrix on record."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from modalloy.base import Base
from modalloy.deltas.compress import Compressed, Compression, compress
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.interop.language import Tuned
from modalloy.interop.matrices import MatrixRecord, total_error


@attrs.frozen(eq=False)
class CompressedLanguage:
    """A language model's delta, compressed.

    Attributes:
        delta: Pairs of the linear layers.
        whole: Tensors that no pair can hold, which stay as they were tuned.
        matrices: One record for each pair, sorted by name.
        limits: How far it went.
    """

    delta: LowRankDelta
    whole: tuple[Tuned, ...]
    matrices: tuple[MatrixRecord, ...]
    limits: Compression

    @property
    def error(self) -> float:
        """Relative Frobenius error over all pairs."""
        return total_error(self.matrices)

    def record(self) -> Mapping[str, Any]:
        """Return plain data for the manifest."""
        return {
            **attrs.asdict(self.limits),
            "error": round(self.error, 6),
            "whole_tensors": len(self.whole),
            "matrices": [attrs.asdict(one) for one in self.matrices],
        }

    def summary(self) -> str:
        """Return one line for people."""
        ranks = [one.rank for one in self.matrices] or [0]
        worst = max(self.matrices, key=lambda one: one.error, default=None)
        tail = f", worst {worst.error:.1%} of {worst.tensor}" if worst else ""
        return (
            f"compressed {len(self.matrices)} matrices to rank {min(ranks)} to {max(ranks)}: "
            f"relative error {self.error:.1%} over all{tail}; {len(self.whole)} tensors that no "
            "pair can hold are kept whole"
        )


def compress_changed(
    changed: tuple[Tuned, ...],
    delta_of: Callable[[Tuned], tuple[torch.Tensor, torch.dtype]],
    base: Base,
    limits: Compression,
    progress: Callable[[str], None],
) -> CompressedLanguage:
    """Compress what changed in a base's linear layers, one matrix at a time.

    Args:
        changed: Tensors that were tuned.
        delta_of: Returns the float32 delta of one, and the dtype that it was tuned in.
        base: The base.
        limits: How far to go.
        progress: Called with a line of text every few matrices.
    """
    linears = linear_names(base)
    matrices = [one for one in changed if one.name.removesuffix(".weight") in linears]
    whole = [one for one in changed if one.name.removesuffix(".weight") not in linears]
    pairs, records = {}, []
    for number, one in enumerate(matrices):
        if number % 8 == 0:
            progress(f"compressing matrix {number + 1} of {len(matrices)}")
        delta, dtype = delta_of(one)
        found: Compressed = compress(delta, limits, one.name, dtype)
        if found.pair is None:
            continue  # the difference was lost when it was rounded to float32
        pairs[one.name.removesuffix(".weight")] = found.pair
        shape = (delta.shape[0], delta.shape[1])
        records.append(
            MatrixRecord(one.name, shape, found.rank, found.error, float(delta.double().norm()))
        )
    return CompressedLanguage(LowRankDelta(pairs), tuple(whole), tuple(records), limits)


def linear_names(base: Base) -> frozenset[str]:
    """Return the names of a base's linear layers, without reading its weights."""
    from transformers import AutoModelForCausalLM

    from modalloy.composition.layers import linear_layers

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base.config())
    return frozenset(linear_layers(model))
