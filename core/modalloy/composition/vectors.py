"""Streams of what is no matrix product: norms, biases and the token embedding.

A fine-tuned model changes these as well. A norm's weight and a bias act on each token by itself, as
a linear layer does, so each token has its own: the base's vector and the deltas of its stream. Of
the embedding only text tokens take rows.
"""

from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from modalloy.composition.probing import token_axes
from modalloy.composition.streams import OwnLayout, Routing, StackLayout, StreamRouter
from modalloy.errors import DeltaError, InputError


class TensorStreams(nn.Module):
    """Deltas of one tensor by stream, beside it.

    Attributes:
        text: ``(G, ...)``, the deltas of the text stream's groups that reach here, stacked;
            ``None`` if there are none.
        own: ``(...)`` by modality.
        text_layout: Which row of the stack is which group's.
        layer: Number of the decoder layer that it is in; -1 outside of them.
    """

    def __init__(
        self,
        like: torch.Tensor,
        router: StreamRouter,
        groups: tuple[int, ...],
        own: tuple[str, ...],
        layer: int,
    ) -> None:
        super().__init__()
        self.router = router
        self.text_layout: StackLayout = tuple((group, 1, 1.0) for group in groups)
        self.own_layout: OwnLayout = tuple((name, 1, 1.0) for name in sorted(own))
        self.layer = layer
        self.text: nn.Parameter | None = None
        if groups:
            self.text = nn.Parameter(like.new_zeros(len(groups), *like.shape))
        self.own = nn.ParameterDict({n: nn.Parameter(torch.zeros_like(like)) for n in sorted(own)})

    def mixed(self, device: torch.device) -> torch.Tensor | None:
        """Return each token's delta of a vector, ``(B*T, D)`` or ``(1, D)`` float32.

        ``None`` where every token has the base's.
        """
        stack = self.router.on(device).stack(self.text_layout, self.own_layout, self.layer)
        if stack is None:
            return None
        rows = [self.own[name][None] for name in stack.names]
        if self.text is not None and stack.stop:
            rows.insert(0, self.text[stack.start : stack.stop])
        return stack.factors @ torch.cat(rows).float()


class StreamNorm(nn.Module):
    """A norm whose weight and bias depend on each token's stream.

    Takes the place of the base's and keeps ``weight`` and ``bias`` under their own names. Any norm
    will do that multiplies by its weight element by element, as those of decoder-only models do.

    Args:
        norm: The base's.
        axis: Of its input, which counts tokens.
    """

    def __init__(self, norm: nn.Module, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.weight: nn.Parameter | None = getattr(norm, "weight", None)
        self.bias: nn.Parameter | None = getattr(norm, "bias", None)
        self._norm = (norm,)  # a tuple, so that its parameters are not counted twice
        self.weight_streams: TensorStreams | None = None
        self.bias_streams: TensorStreams | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T, D)``, ``(B, T, heads, D)`` or ``(B, heads, T, D)`` to the same shape."""
        own = {"weight": self.weight, "bias": self.bias}
        given = {name: value for name, value in own.items() if value is not None}
        tuned = {}
        for name, streams in (("weight", self.weight_streams), ("bias", self.bias_streams)):
            mixed = None if streams is None else streams.mixed(x.device)
            if mixed is not None:
                tuned[name] = (given[name] + _spread(mixed, x, self.axis)).to(given[name].dtype)
        norm = self._norm[0]
        if not isinstance(norm, nn.LayerNorm) or not tuned:
            result: torch.Tensor = functional_call(norm, given | tuned, (x,))
            return result
        # torch's own takes one weight for all tokens.
        both = given | tuned
        plain = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        scaled = plain * both["weight"]
        return scaled + both["bias"] if "bias" in both else scaled


def _spread(mixed: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """Shape vectors ``(B*T, D)`` so that they meet ``x``, whose ``axis`` counts tokens."""
    if mixed.shape[0] == 1:
        return mixed[0]
    if x.shape[0] * x.shape[axis] != mixed.shape[0]:
        raise InputError(
            f"a stream-aware norm was given {tuple(x.shape)}, the pass under way has "
            f"{mixed.shape[0]} tokens"
        )
    shape = [1] * x.ndim
    shape[0], shape[axis], shape[-1] = x.shape[0], x.shape[axis], mixed.shape[1]
    return mixed.view(shape)


class StreamEmbedding(nn.Embedding):
    """A token embedding whose rows depend on the coefficients of their prompt.

    The base's own module becomes one, see :func:`become_stream`, and stays what it was beside:
    whatever else it does (Gemma's scales) it does to the deltas as well.
    """

    weight_streams: TensorStreams | None
    plain_kind: type[nn.Embedding] = nn.Embedding

    def forward(
        self,
        ids: torch.Tensor,
        routing: Routing | None = None,
        *,
        plain: bool = False,
    ) -> torch.Tensor:
        """Map ids ``(B, T)`` to embeddings ``(B, T, D)``.

        Args:
            ids: Of text tokens; those at other tokens' places are looked up as text.
            routing: Of the pass that they are for; the one under way if left out.
            plain: Whether to leave the deltas out.
        """
        found: torch.Tensor = super().forward(ids)
        streams = self.weight_streams
        if plain or streams is None or streams.text is None:
            return found
        routing = routing or streams.router.on(ids.device)
        factors = routing.text_factors(streams.text_layout, max(streams.layer, 0))
        if factors is None:
            return found
        start, stop, scale = factors
        total = found.float()
        for index in range(start, stop):
            delta = {"weight": streams.text[index]}
            rows = functional_call(self, delta, (ids,), {"plain": True}).float()
            total = total + scale[:, index - start][:, None, None] * rows
        return total.to(found.dtype)

    def become_plain(self) -> nn.Embedding:
        """Become the base's own module again, without deltas."""
        self.weight_streams = None
        del self._modules["weight_streams"]
        module: Any = self
        module.__class__ = self.plain_kind
        plain: nn.Embedding = module
        return plain

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by the base's class: the one made of it has no name to be found under."""
        del protocol
        return _revive, (self.plain_kind,), self.__dict__


def become_stream(embedding: nn.Embedding) -> StreamEmbedding:
    """Make a base's embedding a stream-aware one, in place."""
    made: Any = embedding
    kind: Any = type(embedding)
    made.__class__ = _stream_class(kind)
    made.weight_streams = None
    stream: StreamEmbedding = made
    return stream


@cache
def _stream_class(kind: Hashable) -> type[StreamEmbedding]:
    bases: tuple[Any, ...] = (StreamEmbedding,)
    bases += () if kind is nn.Embedding else (kind,)
    return type(StreamEmbedding.__name__, bases, {"plain_kind": kind})


def _revive(kind: Any) -> StreamEmbedding:
    made = _stream_class(kind)
    return made.__new__(made)


def insert_tensor_streams(
    model: nn.Module,
    router: StreamRouter,
    text: Mapping[int, frozenset[str]],
    own: Mapping[str, frozenset[str]],
) -> None:
    """Put streams beside the tensors that whole deltas reach, at zero.

    Args:
        model: The language model, stream-aware linear layers in place.
        router: Shared by all layers.
        text: Names of tensors by index of the text stream's group.
        own: Names of tensors by modality.

    Raises:
        DeltaError: A tensor is missing, or of a module that cannot be stream-aware.
    """
    wanted = sorted({name for names in (*text.values(), *own.values()) for name in names})
    axes = _axes(model, wanted)
    for name in wanted:
        groups = tuple(index for index, names in sorted(text.items()) if name in names)
        modalities = tuple(sorted(modality for modality, names in own.items() if name in names))
        module = _stream_module(model, name, axes)
        kind = name.rpartition(".")[2]
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        like = getattr(module, kind)
        streams = TensorStreams(like, router, groups, modalities, numbers[0] if numbers else -1)
        setattr(module, f"{kind}_streams", streams)


def _axes(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Return the token axis of the norms that may see single heads, by name of the module."""
    config: Any = model.config
    paths = set()
    for path, _, kind in (name.rpartition(".") for name in names):
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue  # which is told where the module is put in place
        tensor = getattr(module, kind, None)
        if not isinstance(tensor, torch.Tensor) or isinstance(module, nn.Linear):
            continue
        if tensor.ndim == 1 and tensor.shape[0] != config.hidden_size:
            paths.add(path)
    return token_axes(config, paths) if paths else {}


def _stream_module(model: nn.Module, name: str, axes: Mapping[str, int]) -> nn.Module:
    """Return the stream-aware module of a tensor, put in place where it is not yet."""
    path, _, kind = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise DeltaError(
            f"the delta of {name!r} has no place: the base has no such module", tensor=name
        ) from error
    if hasattr(module, f"{kind}_streams"):
        return module
    problem = tensor_problem(module, kind)
    if problem:
        raise DeltaError(f"the delta of {name!r} has no place: {problem}", tensor=name)
    if isinstance(module, nn.Embedding):
        return become_stream(module)
    made = StreamNorm(module, axes.get(path, 1))
    model.set_submodule(path, made)
    return made


def tensor_problem(module: nn.Module, kind: str) -> str | None:
    """Say why a tensor of a module cannot depend on the stream, or ``None`` where it can.

    Args:
        module: The module that has it.
        kind: The tensor's name in it.
    """
    names = {name for name, _ in module.named_parameters()}
    if kind not in names:
        return f"{type(module).__name__} has no parameter {kind!r}"
    if isinstance(module, nn.Embedding):
        return None
    if isinstance(module, nn.Linear) and kind == "bias":
        return None
    shapes = {parameter.ndim for parameter in module.parameters()}
    if "norm" in type(module).__name__.lower() and shapes == {1} and names <= {"weight", "bias"}:
        return None
    return (
        f"{kind} of {type(module).__name__} acts on more than one token at a time, or in a way "
        "that is not known; deltas by stream reach linear layers, norms, biases and the token "
        "embedding. `modalloy merge` merges such models whole"
    )


def fill_tensor(
    model: nn.Module, name: str, group: int | None, owner: str, delta: torch.Tensor
) -> None:
    """Copy one whole delta into its place.

    Args:
        model: The language model.
        name: Of the tensor.
        group: Index of the text stream's group, or ``None`` for a modality's own stream.
        owner: Name of the group or modality.
        delta: Of the tensor's shape.

    Raises:
        DeltaError: There is no place for it, or it has another shape.
    """
    path, _, kind = name.rpartition(".")
    streams = getattr(model.get_submodule(path), f"{kind}_streams", None)
    place = None if streams is None else _find_place(streams, group, owner)
    if place is None or place.shape != delta.shape:
        found = "none" if place is None else str(tuple(place.shape))
        raise DeltaError(
            f"{owner}: the delta {tuple(delta.shape)} of {name!r} found no place; the composition "
            f"has {found} for it",
            tensor=name,
        )
    with torch.no_grad():
        place.copy_(delta)


def _find_place(streams: TensorStreams, group: int | None, owner: str) -> torch.Tensor | None:
    if group is None:
        return dict(streams.own).get(owner)
    order = [index for index, _, _ in streams.text_layout]
    return streams.text[order.index(group)] if streams.text is not None and group in order else None
