"""What ``parent.json`` may say about a vision encoder, checked without torch."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar

import attrs

from modalloy.errors import FormatError, SpecError
from modalloy.structured import structure
from modalloy_vision.tower_configuration import is_tower, tower_config


class _Shaped(Protocol):
    """A configuration that fixes the shape of what its encoder returns."""

    @property
    def tokens(self) -> int:
        """K, tokens of one picture."""

    @property
    def features(self) -> int:
        """F, features of one token."""


C = TypeVar("C")


@attrs.frozen(kw_only=True)
class TimmConfig:
    """A timm backbone whose last feature map is pooled to a grid.

    Attributes:
        model: Architecture, a name that ``timm.create_model`` knows.
        features: Channels of the last feature map, F.
        weights: ``"packaged"`` for the file that comes with this plugin, ``"timm"`` for timm's
            own pretrained weights, fetched from the Hub.
        grid: Rows and columns that the feature map is averaged to.
        tokens: Rows times columns, K.
        image_size: Height and width, in pixels, of the square that the backbone sees.
        mean: Subtracted from each channel, on the scale where white is 1.
        std: Each channel is divided by it, same scale.
    """

    model: str
    features: int
    weights: Literal["packaged", "timm"] = "packaged"
    grid: tuple[int, int] = (2, 2)
    tokens: int = 4
    image_size: int = 224
    mean: tuple[float, float, float] = (0.498, 0.498, 0.498)
    std: tuple[float, float, float] = (0.502, 0.502, 0.502)


@attrs.frozen(kw_only=True)
class TransformersConfig:
    """A vision transformer opened through transformers.

    Attributes:
        model: Hub id, or a directory with ``config.json``, weights and image processor.
        tokens: Patches of one picture, K; with the class token where that is selected.
        features: Hidden size, F.
        image_size: Height and width, in pixels, of the square that the model sees.
        revision: Branch, tag or commit of the Hub repository.
        layer: Which hidden state: 0 is the embeddings, -1 the last layer's output, -2 (LLaVA's
            choice) the one before it.
        select: ``"patch"`` for the patches alone, ``"full"`` for the class token before them too.
    """

    model: str
    tokens: int
    features: int
    image_size: int
    revision: str | None = None
    layer: int = -2
    select: Literal["patch", "full"] = "patch"


DEFAULT_TIMM = {
    "model": "tf_efficientnet_lite0",
    "weights": "packaged",
    "grid": [2, 2],
    "image_size": 224,
    "mean": [0.498, 0.498, 0.498],
    "std": [0.502, 0.502, 0.502],
    "tokens": 4,
    "features": 1280,
}
"""Configuration of the packaged encoder, as the packaged parents' ``parent.json`` holds it."""


def timm_config(config: Mapping[str, Any]) -> TimmConfig:
    """Check the configuration of encoder ``timm``.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    parsed = _parse(config, TimmConfig, "encoder 'timm'")
    if math.prod(parsed.grid) != parsed.tokens:
        raise SpecError(
            f"encoder 'timm': grid {list(parsed.grid)} makes {math.prod(parsed.grid)} tokens, "
            f"but tokens is {parsed.tokens}; make the two agree",
            subject="encoder 'timm'",
        )
    _check_positive(
        "encoder 'timm'",
        tokens=parsed.tokens,
        features=parsed.features,
        image_size=parsed.image_size,
        grid=min(parsed.grid),
        std=min(parsed.std),
    )
    return parsed


def transformers_config(config: Mapping[str, Any], kind: str) -> TransformersConfig:
    """Check the configuration of encoder ``clip`` or ``siglip`` that names a model.

    Args:
        config: Without an architecture; see :mod:`modalloy_vision.tower_configuration` for those.
        kind: Which of the two.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    subject = f"encoder {kind!r}"
    parsed = _parse(config, TransformersConfig, subject)
    _check_positive(
        subject, tokens=parsed.tokens, features=parsed.features, image_size=parsed.image_size
    )
    return parsed


def timm_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``timm``."""
    return _shape(timm_config(config))


def clip_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``clip``."""
    return _patches_shape(config, "clip")


def siglip_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``siglip``."""
    return _patches_shape(config, "siglip")


def _patches_shape(config: Mapping[str, Any], kind: str) -> tuple[int, int]:
    if is_tower(config):
        return tower_config(config, kind).shape
    return _shape(transformers_config(config, kind))


def _shape(config: _Shaped) -> tuple[int, int]:
    return config.tokens, config.features


def _parse(config: Mapping[str, Any], kind: type[C], subject: str) -> C:
    try:
        return structure(dict(config), kind, subject)
    except FormatError as error:
        raise SpecError(str(error), subject=subject) from error


def _check_positive(subject: str, **values: float) -> None:
    bad = {name: value for name, value in values.items() if value <= 0}
    if bad:
        raise SpecError(f"{subject}: must be positive, found {bad}", subject=subject)
