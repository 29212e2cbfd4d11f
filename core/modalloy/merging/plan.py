"""What becomes of every tensor: who is merged where, by explicit rules, all of it on record.

The output has the donor's tensors. A model that lacks one takes no part in it; what an adapter does
not touch is the base's. An embedding with
more or fewer rows than the donor's is merged row range by row range, each by the models that have
it; rows that the donor lacks are given up. A tied head is not written, and one that a tied model
lacks is its embedding. What is not floating point is the donor's. Tensors that the donor lacks are
skipped. A model of which nothing finds a place is an error, as is a shape that fits nowhere.
"""

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from modalloy.checkpoints.mapped import MappedTensor
from modalloy.checkpoints.writer import ITEM_SIZES, TensorLayout
from modalloy.errors import DeltaError
from modalloy.kernels.cpu.blocks import CODES
from modalloy.merging.agreement import differing
from modalloy.merging.sources import Operand, Pair, Source, Sources

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_MATRIX = 2


@attrs.frozen(eq=False)
class Piece:
    """Rows of a tensor that the same models are merged in; the whole tensor nearly always.

    Attributes:
        first: Number of the first element.
        elements: How many.
        models: Positions among the sources' models.
        operands: What each of those has, from its own first element on.
    """

    first: int
    elements: int
    models: tuple[int, ...]
    operands: tuple[Operand, ...]


@attrs.frozen(eq=False)
class TensorPlan:
    """One tensor of the output.

    Attributes:
        layout: Its name, dtype and shape.
        donor: The donor's own, from the first element on.
        pieces: What is merged; none where the donor's bytes are copied.
    """

    layout: TensorLayout
    donor: MappedTensor
    pieces: tuple[Piece, ...]


@attrs.frozen(eq=False)
class Plan:
    """A whole merge.

    Attributes:
        tensors: In the order of the donor's files.
        accounting: What became of every tensor, of the output and of the models.
    """

    tensors: tuple[TensorPlan, ...]
    accounting: tuple[Mapping[str, Any], ...]


def make_plan(sources: Sources, written: str | None, *, whole: bool = False) -> Plan:
    """Decide what becomes of every tensor.

    Args:
        sources: The models.
        written: Dtype of merged tensors as safetensors names it; ``None`` keeps the donor's.
        whole: Whether models are merged, not their deltas: what an adapter leaves as it is counts
            then even where no other model has the tensor.

    Raises:
        DeltaError: Shapes do not fit, or a model's tensors find no place.
    """
    account = _Account()
    heads = {id(source): _tied_head(source) for source in (sources.donor, *sources.models)}
    plans = []
    used: dict[str, set[str]] = {source.label: set() for source in sources.models}
    for name, entry in sorted(
        sources.donor.entries.items(), key=lambda item: (item[1].file, item[1].start)
    ):
        if name == _HEAD and heads[id(sources.donor)] is not None:
            account.add("output", "skipped: tied to the embedding", name)
            continue
        donor = sources.maps.tensor(entry)
        found = []
        for position, source in enumerate(sources.models):
            own, operand = _operand(source, name, heads[id(source)], sources)
            if operand is not None:
                used[source.label].add(own)
                found.append((position, operand))
        found += _untouched(donor, found, sources.models, whole=whole)
        plans.append(
            _plan_tensor(
                name,
                donor,
                sorted(found, key=operator.itemgetter(0)),
                sources.models,
                written,
                account,
            )
        )
    _account_unused(sources, used, heads, account)
    return Plan(tuple(plans), account.rows())


def _untouched(
    donor: MappedTensor,
    found: Sequence[tuple[int, Operand]],
    models: Sequence[Source],
    *,
    whole: bool,
) -> list[tuple[int, Operand]]:
    """Return what adapters and parents have for a tensor that they leave as it is: the base's."""
    if donor.dtype not in CODES or not (found or whole):
        return []
    there = {position for position, _ in found}
    return [
        (position, donor)
        for position, source in enumerate(models)
        if source.kind != "model" and position not in there
    ]


def _plan_tensor(
    name: str,
    donor: MappedTensor,
    found: Sequence[tuple[int, Operand]],
    models: Sequence[Source],
    written: str | None,
    account: "_Account",
) -> TensorPlan:
    labels = [models[position].label for position, _ in found]
    operands = [operand for _, operand in found]
    floating = _check_dtypes(name, donor, list(zip(labels, operands, strict=True)))
    if not found and floating and written not in (None, donor.dtype):
        account.add("output", f"the donor's, as {written}: no model has it", name)
        layout = TensorLayout(name, str(written), donor.shape)
        kept = [Piece(0, layout.elements, (), ())] if layout.elements else []
        return TensorPlan(layout, donor, tuple(kept))
    if not found or not floating:
        why = "no model has it" if not found else f"{donor.dtype} is not merged"
        account.add("output", f"copied from the donor: {why}", name)
        return TensorPlan(TensorLayout(name, donor.dtype, donor.shape), donor, ())
    dtype = written or (donor.dtype if donor.dtype != "F64" else "F32")
    pieces = _split(name, donor, found, models, account)
    lacking = sorted({model.label for model in models} - set(labels))
    account.add(
        "output",
        f"merged from {', '.join(labels)}" + (f"; {', '.join(lacking)} lacks it" * bool(lacking)),
        name,
    )
    return TensorPlan(TensorLayout(name, dtype, donor.shape), donor, pieces)


def _check_dtypes(name: str, donor: MappedTensor, operands: Sequence[tuple[str, Operand]]) -> bool:
    """Return whether a tensor is merged; one that is not floating point is the donor's.

    Raises:
        DeltaError: It is of a kind that is not read, or models do not agree what it is.
    """
    kinds = {"the output": donor.dtype}
    kinds |= {label: one.dtype for label, one in operands if isinstance(one, MappedTensor)}
    kinds |= {label: "F32" for label, one in operands if isinstance(one, Pair)}
    strange = {label: kind for label, kind in kinds.items() if kind not in ITEM_SIZES}
    strange |= {label: kind for label, kind in kinds.items() if kind.startswith("F8")}
    shown = ", ".join(f"{label} has {kind}" for label, kind in sorted(kinds.items()))
    if strange:
        raise DeltaError(
            f"{name}: {next(iter(strange.values()))} is not merged ({shown}); take the plain "
            "weights that it was made from",
            tensor=name,
        )
    floating = {kind in CODES for kind in kinds.values()}
    if len(floating) > 1:
        raise DeltaError(
            f"{name}: it is floating point in some models and not in others ({shown}); take "
            "the plain weights that the others were made from",
            tensor=name,
        )
    return floating.pop()


def _split(
    name: str,
    donor: MappedTensor,
    found: Sequence[tuple[int, Operand]],
    models: Sequence[Source],
    account: "_Account",
) -> tuple[Piece, ...]:
    """Cut a tensor where the rows of a model end."""
    total = TensorLayout(name, donor.dtype, donor.shape).elements
    width = total // donor.shape[0] if donor.shape and donor.shape[0] else total
    rows = {}
    for position, operand in found:
        shape = operand.shape
        if shape != donor.shape and not _may_differ(name, shape, donor.shape):
            raise DeltaError(
                f"{name}: {models[position].label} has {shape}, the output {donor.shape}; models "
                "of one architecture and size are merged, tuned from one base",
                tensor=name,
            )
        rows[position] = shape[0] if shape else 1
        if shape != donor.shape:
            more = "given up" if rows[position] > donor.shape[0] else "others alone merged below"
            account.add(
                models[position].label,
                f"has {rows[position]} rows, the output {donor.shape[0]}: {more}",
                name,
            )
    if not donor.shape:
        return (_piece(0, total, [(p, o) for p, o in found]),)
    ends = sorted({min(count, donor.shape[0]) for count in rows.values()} | {donor.shape[0]})
    pieces = []
    start = 0
    for end in ends:
        here = [(position, operand) for position, operand in found if rows[position] >= end]
        pieces.append(_piece(start * width, (end - start) * width, here))
        start = end
    return tuple(piece for piece in pieces if piece.elements)


def _piece(first: int, elements: int, found: Sequence[tuple[int, Operand]]) -> Piece:
    return Piece(first, elements, tuple(p for p, _ in found), tuple(o for _, o in found))


def _may_differ(name: str, shape: tuple[int, ...], donor: tuple[int, ...]) -> bool:
    """Whether two shapes are those of embeddings with vocabularies of different sizes."""
    matrices = len(shape) == _MATRIX and len(donor) == _MATRIX and shape[1] == donor[1]
    return matrices and name.endswith((*_EMBEDDINGS, _HEAD))


def _operand(
    source: Source, name: str, embedding: str | None, sources: Sources
) -> tuple[str, Operand | None]:
    """Return the name and place of what a model has for a tensor of the output."""
    if name in source.pairs:
        return name, source.pairs[name]
    if name not in source.entries and name == _HEAD and embedding is not None:
        name = embedding
    entry = source.entries.get(name)
    return name, sources.maps.tensor(entry) if entry else None


def _tied_head(source: Source) -> str | None:
    """Return the embedding that a model's head is tied to; ``None`` where it is not tied."""
    if not source.config.get("tie_word_embeddings"):
        return None
    return next((n for n in source.entries if n.endswith(_EMBEDDINGS)), None)


def _account_unused(
    sources: Sources,
    used: Mapping[str, set[str]],
    heads: Mapping[int, str | None],
    account: "_Account",
) -> None:
    """Record what of the models found no place.

    Raises:
        DeltaError: Of a model it is all, or of an adapter it is anything.
    """
    for source in sources.models:
        own: Mapping[str, Any] = {**source.pairs, **source.entries}
        left = sorted(own.keys() - used[source.label])
        if left and (len(left) == len(own) or source.kind != "model"):
            raise DeltaError(
                f"{source.reference}: {len(left)} of its {len(own)} tensors find no place in the "
                f"output, such as {left[0]!r}; the output has tensors such as "
                f"{next(iter(sources.donor.entries))!r}. It was tuned from another architecture "
                "than the base, or its tensors are named otherwise",
                tensor=left[0],
            )
        for name in left:
            tied = name == _HEAD and heads[id(source)] is not None
            why = "tied to the embedding" if tied else "the output has no such tensor"
            account.add(source.label, f"skipped: {why}", name)
        note = differing(source.config, sources.donor.config)
        for told in (*source.notes, *([note] if note else [])):
            account.add(source.label, told, None)


class _Account:
    """Names of tensors by what became of them."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, source: str, fate: str, name: str | None) -> None:
        """Record a tensor, or something that concerns none."""
        names = self._names[source, fate]
        if name is not None:
            names.append(name)

    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """Return the record: the output first, then the models."""
        order = sorted(self._names, key=lambda key: (key[0] != "output", key[0]))
        return tuple(
            {"source": s, "fate": f, "tensors": len(self._names[s, f]), "names": self._names[s, f]}
            for s, f in order
        )


__all__ = ["Pair", "Piece", "Plan", "TensorPlan", "make_plan"]
