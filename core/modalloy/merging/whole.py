"""Rules carried out on whole tensors in torch: on a GPU by Triton kernels, and as references.

On the CPU :mod:`modalloy.merging.streaming` does the same chunk by chunk; for all rules but
:class:`~modalloy.merging.rules.Slerp`, :class:`~modalloy.merging.rules.Whole` and low-rank deltas
bit by bit.
"""

from collections.abc import Sequence
from typing import Any

import torch

from modalloy.checkpoints.mapped import MappedTensor
from modalloy.errors import DeltaError
from modalloy.kernels.cpu.blocks import BLOCK, CODES, SIZES
from modalloy.kernels.philox import random_words
from modalloy.kernels.sparse import delta_merge
from modalloy.kernels.threshold import kth_largest
from modalloy.kernels.weighted import weighted_sum
from modalloy.merging.plan import Piece
from modalloy.merging.rules import (
    NOTHING,
    Deltas,
    Floats,
    Rule,
    Slerp,
    Weighted,
    Whole,
    kept_ranks,
    slerp_weights,
)
from modalloy.merging.sources import Operand, Pair

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""What is read, by the name that safetensors has for it; all but F64 is written."""


def merge_piece(
    rule: Rule,
    base: MappedTensor,
    piece: Piece,
    keys: Sequence[int],
    dtype: str,
    device: torch.device,
) -> Any:
    """Merge a piece of a tensor and return its bytes, ``(n,)`` uint8.

    Args:
        rule: What is done with it.
        base: The donor's whole tensor.
        piece: Of it.
        keys: Of the random numbers, one per model.
        dtype: Of the result, as safetensors names it.
        device: Where it is done.
    """
    width = base.shape[-1] if base.shape else 1
    shape = (piece.elements // width, width) if len(base.shape) > 1 else base.shape
    start = read_tensor(base, piece.first, piece.elements, device).reshape(shape)
    models = [_read(operand, piece, device).reshape(shape) for operand in piece.operands]
    is_delta = [isinstance(operand, Pair) for operand in piece.operands]
    merged = apply_rule(
        rule, start, models, is_delta=is_delta, keys=keys, first=piece.first, dtype=DTYPES[dtype]
    )
    return merged.contiguous().cpu().reshape(-1).view(torch.uint8).numpy()


def apply_rule(
    rule: Rule,
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    *,
    is_delta: Sequence[bool] | None = None,
    keys: Sequence[int] = (),
    first: int = 0,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Carry out a rule.

    Args:
        rule: What is done.
        base: ``(O, I)``, or of any other shape, in any floating dtype.
        models: Of the same shape, one per weight of the rule.
        is_delta: Which of them are differences from the base already, in float32.
        keys: Of the random numbers, one per model.
        first: Number of the first element within its tensor, a multiple of the rows' length.
        dtype: Of the result; that of the base by default.
        backend: Of the kernels.

    Returns:
        The merged tensor.
    """
    flags = list(is_delta or [False] * len(models))
    out = dtype or base.dtype
    if isinstance(rule, Deltas):
        return _deltas(rule, base, models, flags, keys, first, out, backend)
    values = [
        base.float() + model if flag else model for model, flag in zip(models, flags, strict=True)
    ]
    if isinstance(rule, Whole):
        made = rule.function(base.float(), [value.float() for value in values])
        if not isinstance(made, torch.Tensor) or made.shape != base.shape:
            shape = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise DeltaError(
                f"the method's function returned {shape}, expected a tensor {tuple(base.shape)}; "
                "this is an error of the plugin that offers it"
            )
        return made.to(out)
    if isinstance(rule, Slerp):
        a, b = base.double().reshape(-1), values[0].double().reshape(-1)
        weights = slerp_weights(rule.t, *(float(x @ y) for x, y in ((a, a), (b, b), (a, b))))
        rule, values = Weighted(weights=weights), [base, values[0]]
    return weighted_sum(values, rule.weights, divisor=rule.divisor, out_dtype=out, backend=backend)


def _deltas(
    rule: Deltas,
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    is_delta: list[bool],
    keys: Sequence[int],
    first: int,
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    lower, upper = _limits(rule, base, models, is_delta, backend)
    models, gains = list(models), None
    if rule.keep is not None and rule.spread is None:
        gains = [
            weight / share if int(share * 2**32) else 0.0
            for weight, share in zip(rule.weights, rule.keep, strict=True)
        ]
    elif rule.keep is not None and rule.spread is not None:
        for i, (keep, spread) in enumerate(zip(rule.keep, rule.spread, strict=True)):
            if keep < 1:
                delta = models[i] if is_delta[i] else models[i].float() - base.float()
                models[i] = _thin_out(delta, keep, spread, keys[i], first)
                is_delta[i] = True
    skip = first % BLOCK if rule.keep is not None and rule.spread is None else 0
    shape = base.shape
    if skip:
        # Random words are laid out by blocks, and a piece may begin within one.
        base, *models = [
            torch.cat([one.new_zeros(skip), one.reshape(-1)]) for one in (base, *models)
        ]
    merged = delta_merge(
        base,
        models,
        rule.weights,
        gains=gains,
        lower=lower,
        upper=upper,
        density=rule.keep if rule.spread is None else None,
        keys=keys if rule.keep is not None and rule.spread is None else None,
        elect=rule.elect,
        normalize=rule.normalize,
        scale=rule.scale,
        is_delta=is_delta,
        start=first - skip if rule.keep is not None and rule.spread is None else 0,
        out_dtype=dtype,
        backend=backend,
    )
    return merged[skip:].reshape(shape) if skip else merged


def _limits(
    rule: Deltas,
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    is_delta: Sequence[bool],
    backend: str,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the least and greatest magnitudes kept, ``(N,)`` float32 on the base's device."""
    if rule.density is None:
        return None, None
    lower = torch.zeros(len(models), device=base.device)
    upper = torch.full((len(models),), float("inf"), device=base.device)
    outliers: Floats | list[None] = rule.outliers or [None] * len(models)
    for i, model in enumerate(models):
        first, last = kept_ranks(model.numel(), rule.density[i], outliers[i])
        if last == NOTHING:
            lower[i], upper[i] = float("inf"), 0.0
            continue
        for limits, rank, given in ((lower, last, model.numel()), (upper, first, 1)):
            if rank != given:
                limits[i] = kth_largest(base, model, rank, is_delta=is_delta[i], backend=backend)
    return lower, upper


def _thin_out(
    delta: torch.Tensor, keep: float, spread: float, key: int, first: int
) -> torch.Tensor:
    """Drop values of a delta, small ones of a row more often, and rescale the others."""
    rows = delta.abs().reshape(-1, delta.shape[-1] if delta.ndim else 1)
    order = torch.argsort(rows, dim=1, stable=True)
    ranks = torch.argsort(order, dim=1)
    # A row of one value has no small and no large ones.
    share = ranks.double() / (rows.shape[1] - 1) if rows.shape[1] > 1 else ranks.double() + 0.5
    probability = keep - spread + share * (2 * spread)
    skip = first % BLOCK
    words = random_words(key, first - skip, skip + delta.numel(), device=delta.device)[skip:]
    words = words.reshape(rows.shape)
    kept = words < (probability * 2.0**32).long()
    thinned = torch.where(kept, delta.reshape(rows.shape) / probability.float(), 0.0)
    return thinned.reshape(delta.shape)


def _read(operand: Operand, piece: Piece, device: torch.device) -> torch.Tensor:
    if isinstance(operand, MappedTensor):
        return read_tensor(operand, piece.first, piece.elements, device)
    width = operand.A.shape[1]
    rows = slice(piece.first // width, (piece.first + piece.elements) // width)
    b, a = (torch.from_numpy(factor).to(device) for factor in (operand.B[rows], operand.A))
    return operand.scale * (b @ a)


def read_tensor(tensor: MappedTensor, first: int, count: int, device: torch.device) -> torch.Tensor:
    """Return a copy of elements of a mapped tensor, ``(count,)``.

    Raises:
        DeltaError: Its dtype is not merged.
    """
    if tensor.dtype not in DTYPES:
        raise DeltaError(f"{tensor.dtype} is not merged; known: {', '.join(DTYPES)}")
    size = SIZES[CODES[tensor.dtype]]
    data = tensor.bytes(size * first, size * count).copy()
    return torch.from_numpy(data).view(DTYPES[tensor.dtype]).to(device)
