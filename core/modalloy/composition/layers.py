"""Stream-aware layers, and putting them into an opened language model.

For a token of the text stream: ``y = W x + sum_g lambda_g s_g B_g A_g x``, with the text deltas of
all groups (the parents', and what a merge method made of them) stacked along R, so that the sum is
two thin products whatever the number of parents.
For a token of modality m: ``y = W x + s_m B_m A_m x`` with that parent's modality delta
(arXiv 2402.12750, section 3.2; token by token as in the authors' released code).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modalloy.composition.coefficients import order_groups
from modalloy.composition.patterns import expand_patterns, expand_tensors
from modalloy.composition.streams import OwnLayout, Routing, StackLayout, StreamRouter
from modalloy.composition.vectors import TensorStreams, fill_tensor, insert_tensor_streams
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.errors import DeltaError, InputError

Entries = Mapping[str, Iterable[Mapping[str, Any]]]
"""Patterns of deltas (module, rank, scale) by group or modality, see
:func:`modalloy.composition.patterns.summarise`."""


class StreamLinear(nn.Linear):
    """A linear layer whose low-rank deltas depend on each token's stream.

    Takes the place of the base's layer and keeps its ``weight`` and ``bias`` under their own
    names.

    Attributes:
        text_A: ``(R, I)``, the text deltas' A stacked; ``None`` if no text delta reaches here.
        text_B: ``(O, R)``, their B side by side.
        text_layout: Which ranks of the stack are whose.
        modality_A: ``(R_m, I)`` by modality.
        modality_B: ``(O, R_m)`` by modality.
        modality_scale: Scale by modality.
        own_layout: Their ranks and scales.
        layer: Number of the decoder layer that it is in; -1 outside of them, which has the last
            layer's coefficients.
        bias_streams: Deltas of the bias by stream, if there are any.
        router: Shared by all layers of the model.
        folded: ``(O, I)``, weight and text deltas as one, for decoding; see
            :mod:`modalloy.composition.folding`.
    """

    def __init__(
        self,
        base: nn.Linear,
        router: StreamRouter,
        text: StackLayout,
        modality: Mapping[str, tuple[int, float]],
        layer: int,
    ) -> None:
        super().__init__(
            base.in_features, base.out_features, bias=base.bias is not None, device="meta"
        )
        self.weight = base.weight
        self.bias = base.bias
        self.router = router
        self.text_layout = text
        self.layer = layer
        self.own_layout: OwnLayout = tuple((name, *modality[name]) for name in sorted(modality))
        self.modality_scale = {name: scale for name, (_, scale) in modality.items()}
        self.bias_streams: TensorStreams | None = None
        self.folded: torch.Tensor | None
        self.register_buffer("folded", None, persistent=False)

        def factors(rank: int) -> tuple[nn.Parameter, nn.Parameter]:
            a = base.weight.new_zeros(rank, base.in_features)
            b = base.weight.new_zeros(base.out_features, rank)
            return nn.Parameter(a), nn.Parameter(b)

        self.text_A: nn.Parameter | None = None
        self.text_B: nn.Parameter | None = None
        if text:
            self.text_A, self.text_B = factors(sum(rank for _, rank, _ in text))
        self.modality_A = nn.ParameterDict()
        self.modality_B = nn.ParameterDict()
        for name, (rank, _) in modality.items():
            self.modality_A[name], self.modality_B[name] = factors(rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T, I)`` (or any shape that flattens to B*T rows) to ``(..., O)``.

        Raises:
            InputError: ``x`` has another number of rows than the pass under way.
        """
        out = self._product(x)
        mixed = None if self.bias_streams is None else self.bias_streams.mixed(x.device)
        if mixed is None:
            return out
        wide = mixed if len(mixed) == 1 else mixed.view(out.shape)
        return out + wide.to(out.dtype)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with the base's bias."""
        routing = self.router.on(x.device)
        folded = self.folded if self.router.runs_folded else None
        if folded is not None and routing.all_text:
            return F.linear(x, folded, self.bias)
        flat = x if x.ndim == 2 else x.flatten(0, -2)  # noqa: PLR2004
        if flat.shape[0] != routing.tokens:
            raise InputError(
                f"a stream-aware layer was given {flat.shape[0]} tokens, the pass under way has "
                f"{routing.tokens}"
            )
        if folded is None and (routing.all_text or self._stacking_pays(routing)):
            out = self._stacked(flat, routing)
        else:
            out = self._by_stream(x, flat, routing, folded)
        return out.view(*x.shape[:-1], self.out_features)

    def _stacking_pays(self, routing: Routing) -> bool:
        """Whether products with 0 cost less than sorting: an eighth of the base's own work."""
        wasted = routing.waste(self.text_layout, self.own_layout, self.layer)
        allowed = routing.tokens * self.in_features * self.out_features
        return 8 * wasted * (self.in_features + self.out_features) <= allowed

    def _stacked(self, flat: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Map rows ``(B*T, I)`` to ``(B*T, O)`` with all factors at work side by side."""
        y = F.linear(flat, self.weight, self.bias)
        stack = routing.stack(self.text_layout, self.own_layout, self.layer)
        if stack is None:
            return y
        a = [self.modality_A[name] for name in stack.names]
        b = [self.modality_B[name] for name in stack.names]
        if self.text_A is not None and self.text_B is not None and stack.stop:
            a.insert(0, self.text_A[stack.start : stack.stop])
            b.insert(0, self.text_B[:, stack.start : stack.stop])
        z = F.linear(flat, (a[0] if len(a) == 1 else torch.cat(a)).to(flat.dtype))
        # The factors are float32, so the product is rounded once, to the dtype of the layer.
        z = (z * stack.factors).to(flat.dtype)
        return torch.addmm(y, z, (b[0] if len(b) == 1 else torch.cat(b, dim=1)).to(flat.dtype).T)

    def _by_stream(
        self, x: torch.Tensor, flat: torch.Tensor, routing: Routing, folded: torch.Tensor | None
    ) -> torch.Tensor:
        """Map rows ``(B*T, I)`` to ``(B*T, O)``, each stream through its own factors."""
        rows = routing.sort(x, flat)
        ends = routing.streams[0][2]  # the text stream comes first
        y = F.linear(rows if folded is None else rows[ends:], self.weight, self.bias)
        parts = []
        for name, start, stop in routing.streams:
            mine = rows[start:stop]
            if name:
                skipped = 0 if folded is None else ends
                parts.append(self._own(name, y[start - skipped : stop - skipped], mine))
            elif folded is None:
                parts.append(self._text(y[start:stop], mine, routing))
            else:
                parts.append(F.linear(mine, folded, self.bias))
        return routing.unsort(torch.cat(parts))

    def _text(self, y: torch.Tensor, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Return ``y (n, O)`` with the text deltas of the text stream's rows ``x (n, I)``."""
        factors = routing.text_factors(self.text_layout, self.layer)
        if factors is None or self.text_A is None or self.text_B is None:
            return y
        start, stop, scale = factors
        text_rows = routing.sorted_text_rows()
        z = F.linear(x, self.text_A[start:stop].to(x.dtype))
        z = (z * (scale if text_rows is None else scale[text_rows])).to(x.dtype)
        return torch.addmm(y, z, self.text_B[:, start:stop].to(x.dtype).T)

    def _own(self, name: str, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``y (n, O)`` with the modality delta of that modality's rows ``x (n, I)``."""
        if name not in self.modality_A:
            return y
        z = F.linear(x, self.modality_A[name].to(x.dtype)) * self.modality_scale[name]
        return torch.addmm(y, z, self.modality_B[name].to(x.dtype).T)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that a delta may reach, by name.

    Subclasses are left out: a quantised or fused layer computes something else than ``W x``.
    """
    return {name: m for name, m in model.named_modules() if type(m) is nn.Linear}


def insert_streams(model: nn.Module, text: Entries, own: Entries) -> StreamRouter:
    """Replace the linear layers that any delta reaches by stream-aware ones, weights at zero.

    Args:
        model: The causal language model, as transformers opened it.
        text: Patterns of the text stream's deltas by group, in the order of coefficients.
        own: Patterns of the modality deltas by modality; empty unless decoupled.

    Returns:
        The router that the layers share.

    Raises:
        DeltaError: A delta names a module that the model lacks or that is not a linear layer, or a
            tensor that cannot depend on the stream.
    """
    linears = linear_layers(model)
    texts, owns = (
        {name: expand_patterns(entries, linears) for name, entries in given.items()}
        for given in (text, own)
    )
    parameters = [name for name, _ in model.named_parameters()]
    text_tensors, own_tensors = (
        {name: expand_tensors(entries, parameters) for name, entries in given.items()}
        for given in (text, own)
    )
    reached = {m for table in (*texts.values(), *owns.values()) for m in table}
    tensors = {t for names in (*text_tensors.values(), *own_tensors.values()) for t in names}
    reached |= {t.removesuffix(".bias") for t in tensors if t.removesuffix(".bias") in linears}
    router = StreamRouter()
    for module in sorted(reached):
        layout = tuple(
            (index, *table[module]) for index, table in enumerate(texts.values()) if module in table
        )
        modality = {name: table[module] for name, table in owns.items() if module in table}
        numbers = [int(part) for part in module.split(".") if part.isdigit()]
        layer = numbers[0] if numbers else -1
        stream = StreamLinear(linears[module], router, layout, modality, layer)
        model.set_submodule(module, stream)
    insert_tensor_streams(model, router, dict(enumerate(text_tensors.values())), own_tensors)
    return router


def separate_head(model: Any) -> StreamRouter | None:
    """Give a stream-aware head a router of its own: it runs on the tokens whose logits are kept.

    Returns:
        That router, or ``None`` where no delta reaches the head.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, StreamLinear):
        return None
    router = head.router = StreamRouter()
    if head.bias_streams is not None:
        head.bias_streams.router = router
    return router


def fill_streams(
    model: nn.Module,
    text: Mapping[str, LowRankDelta],
    modality: Mapping[str, LowRankDelta],
) -> None:
    """Copy deltas into the layers that :func:`insert_streams` made for them.

    Args:
        model: The language model.
        text: Text-stream delta by group.
        modality: Modality-stream delta by modality; empty unless decoupled.

    Raises:
        DeltaError: A pair's shape is not its layer's, or a pair found no place.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, StreamLinear)}
    groups = order_groups(text)
    for parent in order_groups({*text, *modality}):
        for kind, table in (("text", text), ("modality", modality)):
            for module, pair in table[parent].pairs.items() if parent in table else ():
                layer = layers.get(module)
                if layer is None:
                    raise DeltaError(
                        f"{parent}: the {kind} delta of {module!r} found no place", tensor=module
                    )
                a, b = _place(layer, kind, parent, groups)
                if a.shape != pair.A.shape or b.shape != pair.B.shape:
                    raise DeltaError(
                        f"{parent}: the {kind} delta of {module!r} has A {tuple(pair.A.shape)} "
                        f"and B {tuple(pair.B.shape)}; its layer takes {tuple(a.shape)} and "
                        f"{tuple(b.shape)}",
                        tensor=module,
                    )
                with torch.no_grad():
                    a.copy_(pair.A)
                    b.copy_(pair.B)
            for name, tensor in table[parent].tensors.items() if parent in table else ():
                group = None if kind == "modality" else groups.index(parent)
                fill_tensor(model, name, group, parent, tensor)


def _place(
    layer: StreamLinear, kind: str, parent: str, groups: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views of A ``(R, I)`` and B ``(O, R)`` that hold one pair of a layer."""
    if kind == "modality":
        return layer.modality_A[parent], layer.modality_B[parent]
    start = 0
    for index, rank, _ in layer.text_layout:
        if groups[index] == parent and layer.text_A is not None and layer.text_B is not None:
            return layer.text_A[start : start + rank], layer.text_B[:, start : start + rank]
        start += rank
    raise DeltaError(f"{parent}: the layer holds no text delta of it")
