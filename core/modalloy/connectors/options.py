"""Reading a connector's configuration: plain JSON data from ``parent.json``."""

from collections.abc import Mapping
from typing import Any

from modalloy.errors import SpecError, nearest


def read_options(
    connector: str, config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``defaults`` overridden by ``config``.

    Raises:
        SpecError: A key is unknown, or a value is of another type than its default.
    """
    for key, value in config.items():
        if key not in defaults:
            raise SpecError(
                f"connector {connector!r} has no option {key!r} "
                f"(options: {', '.join(sorted(defaults))}).{nearest(key, defaults)}",
                subject=connector,
            )
        if type(value) is not type(defaults[key]):
            raise SpecError(
                f"connector {connector!r}: option {key!r} must be "
                f"{type(defaults[key]).__name__}, found {value!r}",
                subject=connector,
            )
    return {**defaults, **config}
