"""What authors of plugins test them with.

::

    from modalloy.testing import check_modality, check_parent

    def test_my_modality():
        check_modality("smell", samples=[Path("tests/coffee.smell")])

    def test_my_parent():
        check_parent("smell-smollm2-decoupled")

A check that fails raises :class:`CheckFailed`, an ``AssertionError`` that lists every failure, with
what was expected and what was found; one that passes returns all that was looked at. Nothing here
needs pytest. A pytest plugin with fixtures is installed beside it
(:mod:`modalloy.testing.pytest_plugin`), and costs other people's test runs nothing.

Importing this package imports neither torch nor transformers; names are loaded when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modalloy.testing.bases import (
        small_config,
        small_model,
        tiny_base,
        tiny_config,
        tiny_model,
        tiny_tokenizer,
        write_base,
    )
    from modalloy.testing.modality_checks import check_modality
    from modalloy.testing.parent_checks import check_parent
    from modalloy.testing.parents import random_delta, tiny_parent
    from modalloy.testing.report import Check, CheckFailed
    from modalloy.testing.toys import ToyPlugin, toy_parent, toy_registry
    from modalloy.testing.wheel_checks import build_wheel, check_wheel

_LAZY = {
    "Check": "report",
    "CheckFailed": "report",
    "ToyPlugin": "toys",
    "build_wheel": "wheel_checks",
    "check_modality": "modality_checks",
    "check_parent": "parent_checks",
    "check_wheel": "wheel_checks",
    "random_delta": "parents",
    "small_config": "bases",
    "small_model": "bases",
    "tiny_base": "bases",
    "tiny_config": "bases",
    "tiny_model": "bases",
    "tiny_parent": "parents",
    "tiny_tokenizer": "bases",
    "toy_parent": "toys",
    "toy_registry": "toys",
    "write_base": "bases",
}

__all__ = [
    "Check",
    "CheckFailed",
    "ToyPlugin",
    "build_wheel",
    "check_modality",
    "check_parent",
    "check_wheel",
    "random_delta",
    "small_config",
    "small_model",
    "tiny_base",
    "tiny_config",
    "tiny_model",
    "tiny_parent",
    "tiny_tokenizer",
    "toy_parent",
    "toy_registry",
    "write_base",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'modalloy.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modalloy.testing.{_LAZY[name]}"), name)
