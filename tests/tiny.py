"""Bases that are made in milliseconds, from :mod:`modalloy.testing`."""

from modalloy.testing.bases import (
    ALL_FAMILIES,
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    small_config,
    small_model,
    tiny_base,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    write_base,
)

__all__ = [
    "ALL_FAMILIES",
    "CHAT_TEMPLATE",
    "FAMILIES",
    "SPECIAL_TOKENS",
    "small_config",
    "small_model",
    "tiny_base",
    "tiny_config",
    "tiny_model",
    "tiny_tokenizer",
    "write_base",
]

FAMILIES = ("llama", "qwen3")
"""What most tests run on."""
