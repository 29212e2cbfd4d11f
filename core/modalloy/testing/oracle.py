"""What a parent's model computes, told without the stream-aware layers.

The plain transformers model runs; every module whose parameters a delta changes runs once on the
weights of the text stream and once on those of the modality's, and each token takes its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from modalloy.deltas.lowrank import LowRankDelta


def parent_logits(
    model: PreTrainedModel,
    text: LowRankDelta,
    own: LowRankDelta,
    embeds: torch.Tensor,
    types: torch.Tensor,
) -> torch.Tensor:
    """Return the logits of a parent alone.

    Args:
        model: Its base as transformers opens it, float32.
        text: The delta of its text stream, of the base's own modules.
        own: The delta of its modality stream; the same one for a naive parent.
        embeds: ``(B, T, D)``, inputs in place, no padding.
        types: ``(B, T)``, 0 where a token is text.

    Returns:
        ``(B, T, V)`` float32.
    """
    text_changes, own_changes = _by_module(text), _by_module(own)
    with torch.no_grad(), _corrected(model, text_changes, own_changes, types):
        ones = torch.ones(embeds.shape[:2], dtype=torch.long)
        logits: torch.Tensor = model(inputs_embeds=embeds, attention_mask=ones).logits
    return logits


_Changes = dict[str, dict[str, Any]]


def _by_module(delta: LowRankDelta) -> _Changes:
    """Return what a delta changes, by module and parameter: pairs stay pairs."""
    found: _Changes = {}
    for name, pair in delta.pairs.items():
        found.setdefault(name, {})["weight"] = pair
    for name, tensor in delta.tensors.items():
        module, _, parameter = name.rpartition(".")
        found.setdefault(module, {})[parameter] = tensor
    return found


@contextmanager
def _corrected(
    model: nn.Module, text: _Changes, own: _Changes, types: torch.Tensor
) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if name in text or name in own:
            hook = _Correction(text.get(name, {}), own.get(name, {}), types != 0)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Correction:
    """A forward hook that computes a module's output anew, on each stream's weights."""

    def __init__(
        self, text: Mapping[str, Any], own: Mapping[str, Any], is_own: torch.Tensor
    ) -> None:
        self._streams = (text, own)
        self._is_own = is_own
        self._inside = False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> Any:
        if self._inside:
            return output
        self._inside = True
        try:
            on_text, on_own = (
                functional_call(module, _changed(module, changes), args, kwargs)
                for changes in self._streams
            )
        finally:
            self._inside = False
        mask = self._is_own[..., None]
        if output.dim() == 2:  # noqa: PLR2004 - tokens in one row, as experts take them
            mask = mask.flatten(0, 1)
        return torch.where(mask, on_own, on_text)


def _changed(module: nn.Module, changes: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: getattr(module, name) + (change if torch.is_tensor(change) else change.dense())
        for name, change in changes.items()
    }
