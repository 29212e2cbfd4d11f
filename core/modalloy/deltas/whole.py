"""Whole deltas: tensors of the base that were tuned as they are, and a parent's streams read.

What is stored is each tensor as it was tuned, not its difference from the base: the difference of
two bfloat16 values is rarely one, the tuned value always is.
"""

from pathlib import Path
from typing import Protocol

import torch

from modalloy.checkpoints.reader import CheckpointReader
from modalloy.deltas.lowrank import LowRankDelta, read_adapter
from modalloy.errors import BaseMismatchError, DeltaError
from modalloy.parent import check_once

STREAMS = ("text", "modality")
"""What a parent may have a delta for."""


class BaseDirectory(Protocol):
    """What this module needs of a base."""

    @property
    def id(self) -> str:
        """Its name, for messages."""

    @property
    def path(self) -> Path:
        """Its directory."""


def read_stream(directory: Path, stream: str, base: BaseDirectory) -> LowRankDelta:
    """Return the delta of a parent's ``"text"`` or ``"modality"`` stream.

    Args:
        directory: The parent directory.
        stream: Which.
        base: The base that the parent was tuned from.

    Returns:
        Pairs, and float32 deltas of the tensors that were tuned whole; empty where the parent left
        the stream as the base has it.

    Raises:
        FormatError: A file is malformed.
        DeltaError: A tensor is not the base's, or is changed both by a pair and whole.
    """
    adapter, weights = (directory / f"{stream}_{kind}" for kind in ("adapter", "weights"))
    delta = read_adapter(adapter) if adapter.is_dir() else LowRankDelta({})
    if not weights.is_dir():
        return delta
    with CheckpointReader(weights) as tuned, CheckpointReader(base.path) as plain:
        check_once(weights, (f"{module}.weight" for module in delta.pairs), tuned.names())
        tensors = {name: read_delta(tuned, plain, name, base.id) for name in tuned.names()}
    return LowRankDelta(delta.pairs, tensors)


def read_delta(
    tuned: CheckpointReader, plain: CheckpointReader, name: str, base_id: str
) -> torch.Tensor:
    """Return the float32 difference of a tuned tensor from the base's.

    Raises:
        DeltaError: The base has no such tensor.
        BaseMismatchError: It has another shape there.
    """
    if name not in plain:
        raise DeltaError(
            f"{tuned.file(name)}: tensor {name!r} has no counterpart in the base {base_id!r}; "
            "nothing can be said about what was tuned in it",
            tensor=name,
        )
    if tuned.shape(name) != plain.shape(name):
        raise BaseMismatchError(
            f"{tuned.file(name)}: tensor {name!r} is {tuned.shape(name)}, the base {base_id!r} has "
            f"{plain.shape(name)}: it was tuned from another base, or its vocabulary was resized",
            parent=str(tuned.directory),
            expected=str(plain.shape(name)),
            found=str(tuned.shape(name)),
        )
    return tuned.tensor(name).float() - plain.tensor(name).float()
