"""The key-value cache's name, which transformers changed in 5.24: ``past_key_values`` before."""

import inspect
from typing import Any

from transformers import GenerationMixin

NAMES = ("cache", "past_key_values")
"""What callers may call it."""

CACHE = next(
    name
    for name in NAMES
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
"""What the installed transformers calls a cache, as an argument and in outputs."""


def take_cache(kwargs: dict[str, Any]) -> Any:
    """Take a cache out of arguments, whatever it is called there; ``None`` if there is none."""
    found = [kwargs.pop(name, None) for name in NAMES]
    return next((one for one in found if one is not None), None)
