"""Folding: text tokens on weights that already hold their deltas, at the base's cost.

Decoded tokens are text, all with the coefficients of their prompt, so their layers can be one
matrix each. Many prompts of one set of modalities share their text tokens' weights in the same
way, while their modality tokens keep the base's weights and their own deltas.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from modalloy.composition.layers import StreamLinear
from modalloy.composition.streams import Routing, StreamRouter
from modalloy.errors import ModalloyError

FOLD_AFTER = 16
"""Tokens decoded with the same coefficients before the weights are folded for them."""

FOLD_LIMIT = 2**30
"""Bytes that folded copies of weights may take unless a model's own limit says otherwise."""


class Folding:
    """Decides before each pass whether it runs on folded weights, and folds them when it pays.

    Args:
        language_model: With stream-aware layers.

    Attributes:
        limit: Most bytes that the folded copies may take; 0 never folds.
    """

    def __init__(self, language_model: nn.Module) -> None:
        self._model = language_model
        self._decoded = 0
        self._folded = False
        self._held: torch.Tensor | None = None
        self.limit = FOLD_LIMIT

    @contextmanager
    def held(self, routing: Routing) -> Iterator[None]:
        """Keep weights folded for many prompts that have the same coefficients.

        Passes with other coefficients, and those that are differentiated, run unfolded meanwhile.
        Where the copies would take more than the limit, all do. No weight may change meanwhile.

        Args:
            routing: Of a pass whose rows all have those coefficients.

        Raises:
            ModalloyError: Weights are kept folded already.
        """
        if self._held is not None:
            raise ModalloyError(
                "weights are kept folded already, for one set of modalities at a time; leave the "
                "outer `with model.folded_for(...)` first"
            )
        self.drop()
        try:
            if len(routing.coefficients) == 1 and folded_bytes(self._model) <= self.limit:
                fold_text(self._model, routing)
                self._held = routing.coefficients
            yield
        finally:
            self._held = None
            unfold_text(self._model)

    def before_pass(self, router: StreamRouter, *, cached: int) -> None:
        """Set ``router.runs_folded`` for the pass that is about to run.

        Unless it is held, what was folded is dropped with every new prompt: an answer depends
        neither on those before it nor on weights that were changed since.

        Args:
            router: With the pass's routing.
            cached: Tokens in the cache; none means that the pass is a prompt.
        """
        routing = router.routing
        router.runs_folded = False
        if self._held is not None:
            same = torch.equal(routing.coefficients, self._held)
            router.runs_folded = same and not torch.is_grad_enabled()
            return
        alike = len(routing.coefficients) == 1 and routing.all_text
        if not cached or not alike or torch.is_grad_enabled():
            self.drop()
            return
        self._decoded += 1
        if self._decoded == FOLD_AFTER and folded_bytes(self._model) <= self.limit:
            self._folded = True  # first: what an error leaves half done is then dropped
            fold_text(self._model, routing)
        router.runs_folded = self._folded

    def drop(self) -> None:
        """Free the folded weights, and count decoded tokens anew."""
        if self._folded:
            unfold_text(self._model)
        self._decoded, self._folded = 0, False


@torch.no_grad()
def fold_text(model: nn.Module, routing: Routing) -> None:
    """Add the text deltas to a copy of each weight, at the coefficients of ``routing``.

    Decoded tokens are text, all with the coefficients of their prompt: on folded weights they
    cost what the base's cost. The sum is formed in float32 and rounded once.

    Args:
        model: The language model, with stream-aware layers.
        routing: Of a pass whose rows have the same coefficients.
    """
    for layer in model.modules():
        if not isinstance(layer, StreamLinear):
            continue
        factors = routing.text_factors(layer.text_layout, layer.layer)
        if factors is None or layer.text_A is None or layer.text_B is None:
            layer.folded = None
            continue
        start, stop, scale = factors
        b = layer.text_B[:, start:stop].float() * scale
        sum_ = torch.addmm(layer.weight.float(), b, layer.text_A[start:stop].float())
        layer.folded = sum_.to(layer.weight.dtype)


def unfold_text(model: nn.Module) -> None:
    """Free what :func:`fold_text` made."""
    for layer in model.modules():
        if isinstance(layer, StreamLinear):
            layer.folded = None


def folded_bytes(model: nn.Module) -> int:
    """Return the memory that :func:`fold_text` would take."""
    layers = (m for m in model.modules() if isinstance(m, StreamLinear) and m.text_layout)
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
