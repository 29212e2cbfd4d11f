"""Which axis of a norm's input counts tokens, found out by running the base without weights.

Norms of single heads see ``(B, T, heads, D)`` in some models and ``(B, heads, T, D)`` in others,
and a pass of as many tokens as there are heads does not tell them apart.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from modalloy.errors import DeltaError

_LENGTHS = (13, 17, 19, 23, 29, 31, 37)
_ROWS = 2


def token_axes(config: PreTrainedConfig, names: Collection[str]) -> dict[str, int]:
    """Return the axis that counts tokens in the input of each of some modules of a base.

    Args:
        config: Of the base.
        names: Of the modules.

    Raises:
        DeltaError: The base does not run without weights, or a module's input has no such axis.
    """
    length = _length(config)
    found: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config).eval()
        modules = dict(model.named_modules())
        for name in sorted(names):
            modules[name].register_forward_pre_hook(_noting(found, name))
        embeds = torch.zeros(_ROWS, length, int(config.hidden_size), dtype=model.dtype)
        # A whole mask: of a plain one transformers looks at values, which there are none of.
        mask = torch.ones(_ROWS, 1, length, length, dtype=torch.bool)
        try:
            model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise DeltaError(
                f"deltas of {min(names)!r} and the like have no place: {type(model).__name__} does "
                f"not run without weights, which would tell where its tokens are ({error})",
                tensor=min(names),
            ) from error
    axes = {}
    for name in sorted(names):
        shape = found.get(name, ())
        places = [axis for axis, size in enumerate(shape) if axis and size == length]
        if len(places) != 1 or shape[0] != _ROWS:
            raise DeltaError(
                f"the delta of {name!r} has no place: the module sees {shape} of {_ROWS} rows of "
                f"{length} tokens, and which are its tokens cannot be told",
                tensor=name,
            )
        axes[name] = places[0]
    return axes


def _length(config: PreTrainedConfig) -> int:
    """Return a number of tokens that no other size of the base equals."""
    sizes = {value for value in config.to_dict().values() if isinstance(value, int)}
    return next(length for length in _LENGTHS if length not in sizes)


def _noting(found: dict[str, tuple[int, ...]], name: str) -> Any:
    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found[name] = tuple(inputs[0].shape)

    return note
