"""Toy modalities over tiny bases, from :mod:`modalloy.testing`, and messages to ask them with."""

from typing import Any

from modalloy.testing.parents import random_delta
from modalloy.testing.toys import (
    FEATURES,
    TOKENS,
    TYPES,
    ToyEncoder,
    ToyPlugin,
    build,
    output_shape,
    preprocess,
    read,
    toy_parent,
    toy_registry,
)

__all__ = [
    "FEATURES",
    "TOKENS",
    "TYPES",
    "ToyEncoder",
    "ToyPlugin",
    "ask",
    "build",
    "output_shape",
    "preprocess",
    "random_delta",
    "read",
    "toy_parent",
    "toy_registry",
]


def ask(*parts: Any) -> list[dict[str, Any]]:
    """One user message; text parts as strings, inputs as (content type, numbers)."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": part[0], part[0]: part[1]}
        for part in parts
    ]
    return [{"role": "user", "content": content}]
