"""What ``parent.json`` may say about the encoder, checked without torch."""

from collections.abc import Mapping
from typing import Any

import attrs
from modalloy.errors import FormatError, SpecError
from modalloy.structured import structure

SCALES = 3
"""Numbers that tell the scale of a column: its mean, its deviation, and the share of gaps."""

_MOST = 1024  # a damaged or hostile number must not become an allocation
_SUBJECT = "encoder 'timeseries-patches'"


@attrs.frozen(kw_only=True)
class PatchConfig:
    """The encoder by patches.

    Attributes:
        tokens: K, patches that a series is cut into.
        samples: Intervals of a patch.
        columns: The most columns of a series; others are refused. One that has fewer is filled
            up with zeros, so that a column's place matters and its name does not.
    """

    tokens: int = 4
    samples: int = 16
    columns: int = 3

    @property
    def features(self) -> int:
        """F: for each column, the patch, the whole, the roughness of the patch, and the scale."""
        return self.columns * (2 * self.samples + 1 + SCALES)


def read_config(config: Mapping[str, Any]) -> PatchConfig:
    """Check the encoder's configuration.

    Raises:
        SpecError: A key is unknown or of the wrong type, or a number is out of bounds.
    """
    try:
        parsed = structure(dict(config), PatchConfig, _SUBJECT)
    except FormatError as error:
        raise SpecError(str(error), subject=_SUBJECT) from error
    for name, value in attrs.asdict(parsed).items():
        if not 1 <= value <= _MOST:
            raise SpecError(
                f"{_SUBJECT}: {name} must be from 1 to {_MOST}, found {value}", subject=_SUBJECT
            )
    if parsed.tokens * parsed.samples > _MOST:
        raise SpecError(
            f"{_SUBJECT}: tokens times samples must be at most {_MOST}, found "
            f"{parsed.tokens * parsed.samples}",
            subject=_SUBJECT,
        )
    return parsed


def output_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F)."""
    parsed = read_config(config)
    return parsed.tokens, parsed.features
