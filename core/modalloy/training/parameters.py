"""What a stage trains: the connectors' and the deltas' parameters, at their start and on disk."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from modalloy.composition.layers import StreamLinear
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.errors import ModalloyError


def init_deltas(model: ModalloyForConditionalGeneration, seed: int) -> None:
    """Give every pair LoRA's start: A uniform as a linear layer's weight, B zero; float32.

    Layer by layer in order of names from a generator of its own, so that the values do not
    depend on what was drawn before.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, layer in sorted(model.language_model.named_modules()):
        if not isinstance(layer, StreamLinear):
            continue
        for store, key, value in list(_factors(layer)):
            fresh = torch.zeros(value.shape, dtype=torch.float32)
            if key.endswith("A") or store is layer.modality_A:
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            parameter = nn.Parameter(fresh.to(value.device))
            if isinstance(store, nn.ParameterDict):
                store[key] = parameter
            else:
                setattr(store, key, parameter)


def _factors(layer: StreamLinear) -> Iterator[tuple[Any, str, nn.Parameter]]:
    """Yield (where it is kept, its name there, the parameter) of a layer's factors."""
    for key in ("text_A", "text_B"):
        if getattr(layer, key) is not None:
            yield layer, key, getattr(layer, key)
    for store in (layer.modality_A, layer.modality_B):
        for key, value in store.items():
            yield store, key, value


def choose_trained(model: ModalloyForConditionalGeneration, *, deltas: bool) -> None:
    """Freeze everything but the connectors and, where asked, the deltas."""
    model.requires_grad_(requires_grad=False)
    model.connectors.requires_grad_(requires_grad=True)
    for layer in model.language_model.modules():
        if isinstance(layer, StreamLinear):
            for _, _, parameter in _factors(layer):
                parameter.requires_grad = deltas


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that are being trained, by name."""
    return {
        n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad
    }


def restore(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`trained_state` returned.

    Raises:
        ModalloyError: The state is of another model or stage.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    odd = sorted(own.keys() ^ state.keys()) or [n for n in own if own[n].shape != state[n].shape]
    if odd:
        raise ModalloyError(
            f"the checkpoint is of another configuration: it differs in {', '.join(odd[:3])}; "
            "remove the work directory and train anew"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


_PARTS = {
    "projection": "the connector",
    "prefix": "the prefix embeddings",
    "suffix": "the suffix embeddings",
    "text_A": "the text delta",
    "text_B": "the text delta",
    "modality_A": "the modality delta",
    "modality_B": "the modality delta",
}


class GradientWatch:
    """Tells which parts of a parent no gradient has reached yet.

    A part counts as reached once any element of its gradient was not zero. (The B of a delta
    starts at zero, so that of its two factors only B has a gradient in the first step.)
    """

    def __init__(self, model: nn.Module) -> None:
        self._waiting: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._waiting.setdefault(_part(name), []).append(parameter)

    def look(self) -> None:
        """Look at the gradients of a step, before they are cleared."""
        for part, parameters in list(self._waiting.items()):
            if any(p.grad is not None and bool(p.grad.any()) for p in parameters):
                del self._waiting[part]

    @property
    def unreached(self) -> list[str]:
        """The parts that are still waiting."""
        return sorted(self._waiting)


def _part(name: str) -> str:
    pieces = name.split(".")
    if pieces[0] == "connectors":  # connectors.<modality>.<part>...
        return _PARTS[pieces[2]]
    return next(_PARTS[piece] for piece in reversed(pieces) if piece in _PARTS)
