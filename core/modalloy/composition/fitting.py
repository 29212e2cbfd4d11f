"""Fitting deltas to an opened base: which of its modules takes what."""

from torch import nn
from transformers import PreTrainedModel

from modalloy.composition.fusing import adapt_pairs
from modalloy.composition.layers import linear_layers
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.errors import DeltaError
from modalloy.families import explain_absence
from modalloy.merging.representing import exact_pair


def fit_delta(delta: LowRankDelta, model: PreTrainedModel) -> LowRankDelta:
    """Return a delta of the base's own modules, in which matrices of linear layers are pairs.

    Where the base ties its head to its embedding, a delta of the embedding is the head's too;
    where it fuses layers that the adapter keeps apart, or the other way round, so are the pairs.
    Nothing is lost.

    Args:
        delta: Of one stream.
        model: The base, as transformers opened it.

    Raises:
        DeltaError: Something in it has no place in the base.
    """
    linears = linear_layers(model)
    pairs, tensors = adapt_pairs(delta.pairs, linears, model.config), dict(delta.tensors)
    for name in pairs:
        problem = explain_absence(name, model)
        if problem:
            raise DeltaError(f"the delta of {name!r} has no place: {problem}", tensor=name)
    head, embedding = _tied_names(model)
    if head and f"{embedding}.weight" in tensors and head not in pairs:
        tensors.setdefault(f"{head}.weight", tensors[f"{embedding}.weight"])
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in list(tensors):
        if name not in known:
            raise DeltaError(
                f"the delta of {name!r} has no place: the base, {type(model).__name__}, has no "
                "such tensor",
                tensor=name,
            )
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in linears:
            pairs[module] = exact_pair(tensors.pop(name))
    return LowRankDelta(pairs, tensors)


def without_embedding(delta: LowRankDelta, model: PreTrainedModel) -> LowRankDelta:
    """Return the delta of a modality's own stream, whose tokens have no row in the embedding."""
    names = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    kept = {name: tensor for name, tensor in delta.tensors.items() if name not in names}
    return LowRankDelta(delta.pairs, kept)


def _tied_names(model: PreTrainedModel) -> tuple[str | None, str]:
    """Return the names of the head, if it is tied, and of the embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    tied = head is not None and head.weight is embedding.weight
    return (names[id(head)] if tied else None), names[id(embedding)]
