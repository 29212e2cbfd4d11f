"""Configuration of the Q-Former connector; apart from its modules, which import torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modalloy.connectors.options import read_options
from modalloy.errors import SpecError

NAME = "qformer"

_DEFAULTS = MappingProxyType(
    {
        "queries": 32,
        "layers": 2,
        "width": 768,
        "heads": 12,
        "positions": 1024,
        "intermediate": 0,
    }
)

# A damaged or hostile number must not become an allocation.
_MOST = MappingProxyType(
    {
        "queries": 1 << 12,
        "layers": 48,
        "width": 1 << 13,
        "heads": 1 << 8,
        "positions": 1 << 16,
        "intermediate": 1 << 15,
    }
)


def read(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the options of a Q-Former; ``intermediate`` is set where it was 0.

    Args:
        config: See :func:`modalloy.connectors.qformer.build`.

    Raises:
        SpecError: An option is unknown, of another type, out of range, or they do not fit together.
    """
    options: dict[str, int] = read_options(NAME, config, _DEFAULTS)
    options["intermediate"] = options["intermediate"] or 4 * options["width"]
    for key, most in _MOST.items():
        if not 1 <= options[key] <= most:
            raise SpecError(
                f"connector {NAME!r}: {key} must be from 1 to {most}, found {options[key]}",
                subject=NAME,
            )
    if options["width"] % options["heads"]:
        raise SpecError(
            f"connector {NAME!r}: width {options['width']} does not divide into "
            f"{options['heads']} heads; give a width that is a multiple of heads",
            subject=NAME,
        )
    return options


def output_tokens(config: Mapping[str, Any], tokens: int) -> int:
    """Return the number of queries, whatever the number of tokens.

    Args:
        config: As above.
        tokens: K, tokens of an input.

    Raises:
        SpecError: The configuration is not valid, or has fewer positions than tokens.
    """
    options = read(config)
    if tokens > options["positions"]:
        raise SpecError(
            f"connector {NAME!r} has {options['positions']} positions, its encoder gives {tokens} "
            "tokens an input; set 'positions' to that number at least and train it anew",
            subject=NAME,
        )
    return options["queries"]
