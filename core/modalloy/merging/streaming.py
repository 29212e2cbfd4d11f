"""Rules carried out on the CPU, chunk by chunk, from mapped files into the output's files."""

import hashlib
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np

from modalloy.checkpoints.mapped import MappedTensor
from modalloy.checkpoints.writer import ITEM_SIZES, ShardWriter
from modalloy.kernels.cpu import merging
from modalloy.kernels.cpu.blocks import BLOCK, CODES, SIZES, load
from modalloy.kernels.cpu.geometry import inner_products
from modalloy.merging.operands import CHUNK, SCRATCH, Inputs, Stretch, address, cut, place
from modalloy.merging.plan import Piece
from modalloy.merging.ranking import Wanted, find_ranks
from modalloy.merging.rules import (
    NOTHING,
    Deltas,
    Slerp,
    Weighted,
    kept_ranks,
    slerp_weights,
)
from modalloy.merging.schedule import Step
from modalloy.merging.sources import Operand

_WORDS = float(merging.ALL)


@attrs.frozen(eq=False)
class Target:
    """Where a piece is written.

    Attributes:
        name: Of the tensor.
        dtype: Of the output, as safetensors names it.
        writer: The output.
    """

    name: str
    dtype: str
    writer: ShardWriter


def stream(
    rule: Weighted | Deltas | Slerp,
    base: MappedTensor,
    piece: Piece,
    keys: Sequence[int],
    target: Target,
) -> Generator[Step, list[Any], None]:
    """Merge a piece of a tensor, as steps of a job.

    Args:
        rule: What is done with it.
        base: The donor's whole tensor.
        piece: Of it.
        keys: Of the random numbers, one per model.
        target: Where it goes.
    """
    if isinstance(rule, Slerp):
        rule = yield from _slerp(rule, base, piece)
    if isinstance(rule, Weighted):
        operands = piece.operands
        if len(rule.weights) > len(operands):
            operands = (base, *operands)
        yield [
            partial(_weighted, rule, base, piece, operands, stretch, target)
            for stretch in cut(piece.elements, operands)
        ]
        return
    least, most = yield from _limits(rule, base, piece)
    rows = _width(base) if rule.spread is not None else 0
    yield [
        partial(_deltas, rule, base, piece, (least, most), keys, stretch, target)
        for stretch in cut(piece.elements, piece.operands, rows=rows)
    ]


def random_key(seed: int, tensor: str, label: str) -> int:
    """Return the 64-bit key of a model's random numbers for a tensor."""
    text = f"{seed}\0{tensor}\0{label}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def word_limit(probability: float) -> int:
    """Return what a random word has to be below, so that it is with a probability."""
    return min(int(probability * _WORDS), merging.ALL)


def _limits(
    rule: Deltas, base: MappedTensor, piece: Piece
) -> Generator[Step, list[Any], tuple[list[float], list[float]]]:
    """Find the least and the greatest magnitude that each delta keeps."""
    count = len(piece.operands)
    least, most = [0.0] * count, [float("inf")] * count
    wanted, places = [], []
    for i, operand in enumerate(piece.operands):
        density = 1.0 if rule.density is None else rule.density[i]
        outliers = None if rule.outliers is None else rule.outliers[i]
        first, last = kept_ranks(piece.elements, density, outliers)
        if last == NOTHING:
            least[i] = float("inf")
            most[i] = 0.0
        if last not in (NOTHING, piece.elements):
            wanted.append(Wanted(operand, last))
            places.append((least, i))
        if first > 1:
            wanted.append(Wanted(operand, first))
            places.append((most, i))
    if wanted:
        found = yield from find_ranks(base, piece.first, piece.elements, wanted)
        for (limits, i), magnitude in zip(places, found, strict=True):
            limits[i] = magnitude
    return least, most


def _slerp(rule: Slerp, base: MappedTensor, piece: Piece) -> Generator[Step, list[Any], Weighted]:
    operands: tuple[Operand, ...] = (base, *piece.operands)
    stretches = cut(piece.elements, operands)
    if any(stretch.start % BLOCK for stretch in stretches):
        stretches = [Stretch(0, piece.elements)]
    parts = yield [partial(_products, base, piece, operands, stretch) for stretch in stretches]
    norm_a, norm_b, dot = np.concatenate(parts).sum(axis=0)
    return Weighted(weights=slerp_weights(rule.t, float(norm_a), float(norm_b), float(dot)))


def _products(
    base: MappedTensor, piece: Piece, operands: Sequence[Operand], stretch: Stretch
) -> Any:
    inputs = place(base, piece.first, operands, stretch, values=True)
    return inner_products(inputs.addresses, inputs.codes, stretch.count)


def _weighted(
    rule: Weighted,
    base: MappedTensor,
    piece: Piece,
    operands: Sequence[Operand],
    stretch: Stretch,
    target: Target,
) -> None:
    inputs = place(base, piece.first, operands, stretch, values=True)
    out = SCRATCH.bytes("out", stretch.count * ITEM_SIZES[target.dtype])
    merging.weighted_sum(
        inputs.addresses,
        inputs.codes,
        np.array(rule.weights, np.float32),
        np.float32(rule.divisor),
        stretch.count,
        address(out),
        CODES[target.dtype],
    )
    _write(target, piece.first + stretch.start, out)


def _deltas(
    rule: Deltas,
    base: MappedTensor,
    piece: Piece,
    limits: tuple[Sequence[float], Sequence[float]],
    keys: Sequence[int],
    stretch: Stretch,
    target: Target,
) -> None:
    count = len(piece.operands)
    inputs = place(base, piece.first, (base, *piece.operands), stretch, values=False)
    weights = np.array(rule.weights, np.float32)
    gains, words = weights, np.full(count, merging.ALL, np.uint64)
    if rule.keep is not None and rule.spread is None:
        gains = gains_of(rule.weights, rule.keep)
        words = np.array([word_limit(share) for share in rule.keep], np.uint64)
    elif rule.keep is not None:
        _drop_by_rank(rule, _width(base), inputs, piece.first + stretch.start, keys, stretch)
    out = SCRATCH.bytes("out", stretch.count * ITEM_SIZES[target.dtype])
    merging.delta_merge(
        inputs.addresses,
        inputs.codes,
        inputs.is_delta[1:],
        np.array([weights, gains, *limits], np.float32),
        words,
        np.array(keys, np.uint64),
        np.array([rule.density is not None, rule.elect, rule.normalize]),
        np.array([divisor_of(rule.weights), rule.scale], np.float32),
        piece.first + stretch.start,
        stretch.count,
        address(out),
        CODES[target.dtype],
    )
    _write(target, piece.first + stretch.start, out)


def _width(base: MappedTensor) -> int:
    return base.shape[-1] if base.shape else 1


def gains_of(weights: Sequence[float], keep: Sequence[float]) -> Any:
    """Return what kept values are multiplied by: their weight over their probability."""
    pairs = zip(weights, keep, strict=True)
    return np.array([w / share if word_limit(share) else 0.0 for w, share in pairs], np.float32)


def divisor_of(weights: Sequence[float]) -> float:
    """Return what a sum without election is divided by, where that is asked for."""
    total = np.float32(0)
    for weight in weights:
        total += np.float32(weight)
    return float(total) if abs(total) >= _NO_WEIGHT else 1.0


_NO_WEIGHT = 1e-8


def _drop_by_rank(
    rule: Deltas, width: int, inputs: Inputs, first: int, keys: Sequence[int], stretch: Stretch
) -> None:
    """Put thinned-out deltas in the place of the models: rarer where they are small in their row.

    Changes ``inputs``.
    """
    base = np.empty(stretch.count, np.float32)
    load(inputs.addresses[0], inputs.codes[0], 0, base)
    for i in range(len(keys)):
        keep, spread = rule.keep[i], rule.spread[i]  # type: ignore[index]
        if keep >= 1:
            continue
        delta = SCRATCH.bytes(f"thinned {i}", 4 * stretch.count).view(np.float32)
        load(inputs.addresses[1 + i], inputs.codes[1 + i], 0, delta)
        if not inputs.is_delta[1 + i]:
            delta -= base
        probability = keep_probability(np.abs(delta).reshape(-1, width), keep, spread)
        kept = _words(keys[i], first, stretch.count) < (probability * _WORDS).astype(np.uint64)
        np.copyto(delta, np.where(kept, delta / probability.astype(np.float32), np.float32(0)))
        inputs.addresses[1 + i], inputs.codes[1 + i] = address(delta), CODES["F32"]
        inputs.is_delta[1 + i] = True


def keep_probability(sizes: Any, keep: float, spread: float) -> Any:
    """Return the probabilities with which values are kept, by rank in their row.

    Args:
        sizes: ``(O, I)`` float32, magnitudes.
        keep: In the middle.
        spread: The least has this much less, the largest this much more.

    Returns:
        ``(O * I,)`` float64.
    """
    order = np.argsort(sizes, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(sizes.shape[1])[None, :], axis=1)
    # A row of one value has no small and no large ones.
    share = ranks / (sizes.shape[1] - 1) if sizes.shape[1] > 1 else np.full(ranks.shape, 0.5)
    found: Any = (keep - spread + share * (2 * spread)).reshape(-1)
    return found


def _words(key: int, first: int, count: int) -> Any:
    """Return the random words of consecutive elements, ``(count,)`` uint32."""
    begin = first // BLOCK
    end = -(-(first + count) // BLOCK)
    words = np.empty((end - begin, BLOCK), np.uint32)
    for block in range(begin, end):
        merging.random_words(np.uint64(key), block, words[block - begin])
    skip = first - begin * BLOCK
    return words.reshape(-1)[skip : skip + count]


def _write(target: Target, first: int, out: Any) -> None:
    target.writer.write(target.name, first * ITEM_SIZES[target.dtype], out.data)


def copy(tensor: MappedTensor, size: int, target: Target) -> Step:
    """Return the step that copies a tensor's bytes, of which there are ``size``."""
    step = CHUNK * SIZES[CODES["F32"]]
    return [
        partial(_copy, tensor, start, min(step, size - start), target)
        for start in range(0, size, step)
    ]


def _copy(tensor: MappedTensor, start: int, count: int, target: Target) -> None:
    target.writer.write(target.name, start, tensor.bytes(start, count).data)
