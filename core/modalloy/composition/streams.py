"""Streams: which weights each token of a batch runs on, worked out once per forward pass.

The text stream is type 0 of ``mm_token_type_ids``; each modality has a type of its own. A layer
reads a pass in one of two ways, whichever costs it less:

* *stacked*: all factors at work side by side, two thin products over all tokens, and a factor per
  token and rank that is 0 for the ranks of other streams;
* *by stream*: tokens sorted by stream once per pass, each stream's contiguous rows through its own
  factors, so that the work follows the tokens of each stream whatever the number of modalities.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from modalloy.composition.coefficients import Coefficients, Value
from modalloy.errors import InputError, ModalloyError

StackLayout = tuple[tuple[int, int, float], ...]
"""How a layer's text deltas are stacked along R: (index of the group, rank, scale) each."""

OwnLayout = tuple[tuple[str, int, float], ...]
"""A layer's modality deltas: (name of the modality, rank, scale) each, sorted by name."""


@attrs.frozen(eq=False)
class Stack:
    """The factors of a layer that are at work in a pass, side by side.

    Attributes:
        start: First rank of the text stack that is at work.
        stop: The rank after the last one.
        names: Modalities whose own deltas follow, in this order.
        factors: What each token's low-rank activations are multiplied by, ``(B*T, R)``, or
            ``(1, R)`` where all tokens have the same; float32.
    """

    start: int
    stop: int
    names: tuple[str, ...]
    factors: torch.Tensor


@attrs.define(eq=False)
class Routing:
    """The streams of one forward pass over B rows of T tokens.

    Attributes:
        types: ``(B*T,)`` token types; all 0 where every token is on the text stream.
        rows: Row of each token ``(B*T,)`` int64; ``None`` where all rows have the same
            coefficients.
        streams: ``(name, start, stop)`` once tokens are sorted by type; the text stream is named
            ``""`` and comes first, though it may be empty.
        type_ids: Type by modality.
        coefficients: ``(B, groups, layers)`` float32; ``B`` is 1 where all rows have the same,
            and so is ``layers`` where all layers do.
    """

    types: torch.Tensor
    rows: torch.Tensor | None
    streams: Sequence[tuple[str, int, int]]
    type_ids: Mapping[str, int]
    coefficients: torch.Tensor
    _factors: dict[tuple[StackLayout, int], tuple[int, int, torch.Tensor] | None] = attrs.Factory(
        dict
    )
    _stacks: dict[tuple[StackLayout, OwnLayout, int], Stack | None] = attrs.Factory(dict)
    _used: list[list[bool]] | None = None
    _order: tuple[torch.Tensor, torch.Tensor] | None = None
    _input: torch.Tensor | None = None
    _sorted: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """B * T."""
        return self.types.shape[0]

    def to(self, device: torch.device) -> "Routing":
        """Return the same on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        types, coefficients = self.types.to(device), self.coefficients.to(device)
        return Routing(types, rows, self.streams, self.type_ids, coefficients)

    @property
    def all_text(self) -> bool:
        """Whether every token is on the text stream."""
        return len(self.streams) == 1

    def _layer(self, layer: int) -> int:
        """Return where a layer's coefficients stand: all share one place if they are alike."""
        return layer if self.coefficients.shape[2] > 1 else 0

    def text_factors(self, layout: StackLayout, layer: int) -> tuple[int, int, torch.Tensor] | None:
        """Return which ranks of a stack are at work, and the factor of each.

        Args:
            layout: The stack's layout.
            layer: Number of the decoder layer that it is in.

        Returns:
            ``(start, stop, factors)``: ranks ``start`` to ``stop`` of the stack, and coefficient
            times scale for each of them, ``(B, stop - start)`` or ``(1, stop - start)`` float32.
            ``None`` where every coefficient is 0, and the layer is the base's.
        """
        key = (layout, self._layer(layer))
        if key not in self._factors:
            self._factors[key] = self._expand(*key)
        return self._factors[key]

    def _expand(self, layout: StackLayout, layer: int) -> tuple[int, int, torch.Tensor] | None:
        values = self.coefficients[:, :, layer]
        used = [self.used[index][layer] for index, _, _ in layout]
        if not any(used):
            return None
        # Groups at the ends of the stack that no row uses are cut off: a view, no copy.
        first, last = used.index(True), len(used) - used[::-1].index(True)
        start = sum(rank for _, rank, _ in layout[:first])
        columns = [
            (values[:, index] * scale)[:, None].expand(-1, rank)
            for index, rank, scale in layout[first:last]
        ]
        factors = torch.cat(columns, dim=1)
        return start, start + factors.shape[1], factors

    @property
    def used(self) -> list[list[bool]]:
        """By group and layer, whether any row uses it; all, where coefficients are learned."""
        if self._used is None:
            learned = self.coefficients.requires_grad
            self._used = ((self.coefficients != 0).any(dim=0) | learned).tolist()
        return self._used

    def stack(self, text: StackLayout, own: OwnLayout, layer: int) -> Stack | None:
        """Return what of a layer is at work, stacked; ``None`` where the layer is the base's.

        Args:
            text: Layout of the layer's text deltas.
            own: Layout of its modality deltas.
            layer: Number of the decoder layer.
        """
        key = (text, own, self._layer(layer))
        if key not in self._stacks:
            # Of coefficients by layer only the current layer's are kept: each is as wide as a pass.
            self._stacks = {known: one for known, one in self._stacks.items() if known[2] == key[2]}
            self._stacks[key] = self._make_stack(*key)
        return self._stacks[key]

    def _make_stack(self, text: StackLayout, own: OwnLayout, layer: int) -> Stack | None:
        start = stop = 0
        columns: list[torch.Tensor] = []
        found = self.text_factors(text, layer)
        if found is not None:
            start, stop, factors = found
            factors = factors if self.rows is None else factors[self.rows]
            columns = [factors if self.all_text else factors * (self.types == 0)[:, None]]
        present = {name for name, _, _ in self.streams}
        working = [(name, rank, scale) for name, rank, scale in own if name in present]
        for name, rank, scale in working:
            here = (self.types == self.type_ids[name])[:, None].float() * scale
            columns.append(here.expand(-1, rank))
        if not columns:
            return None
        names = tuple(name for name, _, _ in working)
        return Stack(start, stop, names, torch.cat(columns, dim=1))

    def waste(self, text: StackLayout, own: OwnLayout, layer: int) -> int:
        """Return how many token-ranks the stacked way multiplies by 0."""
        found = self.text_factors(text, layer)
        ranks = {name: rank for name, rank, _ in own} | {"": found[1] - found[0] if found else 0}
        working = sum(ranks.get(name, 0) for name, _, _ in self.streams)
        needed = sum((b - a) * ranks.get(name, 0) for name, a, b in self.streams)
        return self.tokens * working - needed

    def sorted_text_rows(self) -> torch.Tensor | None:
        """Return the row of each text token in sorted order, where it matters."""
        return None if self.rows is None else self.rows[self.order[0][: self.streams[0][2]]]

    @property
    def order(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions sorted by type, and where each position went; ``(B*T,)`` int64 each."""
        if self._order is None:
            order = self.types.argsort(stable=True)
            self._order = order, order.argsort()
        return self._order

    def sort(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``flat (B*T, I)``, which is ``x`` flattened, by stream.

        Query, key and value (and gate and up) projections are called with the same tensor, one
        after the other; the last result is kept for them.
        """
        if self._sorted is None or self._input is not x:
            self._input = x
            self._sorted = _Permutation.apply(flat, *self.order)
        return self._sorted

    def unsort(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows ``(B*T, O)`` that are sorted by stream in the order of the batch."""
        order, inverse = self.order
        return _Permutation.apply(rows, inverse, order)


class _Permutation(torch.autograd.Function):
    """Reorder rows. Torch's own backward of a gather is a scatter-add, far slower on the CPU."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor
    ) -> torch.Tensor:
        ctx.inverse = inverse
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grads[0].index_select(0, ctx.inverse), None, None


def route(
    types: torch.Tensor,
    present: torch.Tensor,
    type_ids: Mapping[str, int],
    coefficients: Coefficients,
    *,
    decoupled: bool,
    trial: torch.Tensor | None = None,
) -> Routing:
    """Work out the streams of a forward pass.

    Args:
        types: ``(B, T)`` integers: ``mm_token_type_ids`` of the tokens of this pass.
        present: ``(B, M)`` bool: modalities in each row's whole prompt, cached tokens included.
        type_ids: Type of each modality, in sorted order of names.
        coefficients: Of the composition, over its groups.
        decoupled: Whether modality tokens leave the text stream.
        trial: ``(1, groups, layers)`` float32 in place of the coefficients, as they are learned.
    """
    batch, length = types.shape
    flat = types.reshape(-1) if decoupled else torch.zeros_like(types).reshape(-1)
    if trial is not None:
        return Routing(flat, None, _boundaries(flat, type_ids), type_ids, trial)
    table = _coefficient_rows(present, tuple(type_ids), coefficients)
    rows = None
    if len(table) > 1:
        rows = torch.arange(batch, device=types.device).repeat_interleave(length)
    wide = max(coefficients.layers, 1)
    values = torch.tensor(
        [[v if isinstance(v, tuple) else (v,) * wide for v in row] for row in table],
        dtype=torch.float32,
        device=types.device,
    ).reshape(len(table), -1, wide)  # a composition may have no groups
    return Routing(flat, rows, _boundaries(flat, type_ids), type_ids, values)


def _boundaries(flat: torch.Tensor, type_ids: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Return where each stream lies once the tokens are sorted by type."""
    counts = torch.bincount(flat).tolist()
    names = {0: "", **{value: name for name, value in type_ids.items()}}
    streams, start = [], 0
    for value, count in enumerate(counts):
        if count or value == 0:
            streams.append((names[value], start, start + count))
        start += count
    return streams


def _coefficient_rows(
    present: torch.Tensor, names: Sequence[str], coefficients: Coefficients
) -> list[tuple[Value, ...]]:
    """Return one row of coefficients per row of the batch, or a single one if all are equal."""
    if not coefficients.by_presence:
        return [coefficients.default]
    rows = [
        coefficients.row(frozenset(name for name, here in zip(names, row, strict=True) if here))
        for row in present.tolist()
    ]
    return rows[:1] if len(set(rows)) == 1 else rows


def check_types(types: torch.Tensor, type_ids: Mapping[str, int]) -> None:
    """Check that every token type is text or one of the composition's.

    Raises:
        InputError: Some token has another type.
    """
    known = {0, *type_ids.values()}
    unknown = sorted(set(torch.unique(types).tolist()) - known)
    if unknown:
        names = ", ".join(f"{value} {name}" for name, value in type_ids.items())
        raise InputError(
            f"mm_token_type_ids holds {unknown}, which this composition does not have; its types "
            f"are 0 text, {names}"
        )


class StreamRouter:
    """What all stream-aware layers of one model share: the routing of the pass under way.

    There is one pass at a time: threads must not run one model at once, and with gradient
    checkpointing a forward pass must be followed by its own backward pass.

    The routing of a training pass stays in place after it, so that layers recomputed in the
    backward pass (gradient checkpointing) run on the same streams.
    """

    def __init__(self) -> None:
        self._routing: Routing | None = None
        self._copies: dict[torch.device, Routing] = {}
        self.runs_folded = False
        """Whether the pass under way runs on folded weights."""

    @property
    def routing(self) -> Routing:
        """Routing of the pass under way.

        Raises:
            ModalloyError: The language model was called on its own.
        """
        if self._routing is None:
            raise ModalloyError(
                "the language model of a composition was called on its own: its layers do not "
                "know which stream each token is on. Call the composed model instead"
            )
        return self._routing

    @routing.setter
    def routing(self, value: Routing) -> None:
        self._routing = value
        self._copies.clear()

    def on(self, device: torch.device) -> Routing:
        """Return the routing of the pass for a layer on ``device``, one copy for each device."""
        routing = self.routing
        if routing.types.device == device:
            return routing
        if device not in self._copies:
            self._copies[device] = routing.to(device)
        return self._copies[device]

    def clear(self) -> None:
        """Forget the pass: what runs next says anew which stream each token is on."""
        self._routing = None
        self._copies.clear()
