"""Configurations of towers that were taken out of whole models, checked without torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import attrs

from modalloy.errors import FormatError, SpecError
from modalloy.structured import structure
from modalloy_vision.architectures import (
    ClipArchitecture,
    Qwen2VLArchitecture,
    Qwen3VLArchitecture,
    Qwen25VLArchitecture,
    QwenArchitecture,
    SiglipArchitecture,
)

ARCHITECTURE = "architecture"
"""Key whose presence tells a tower of a whole model from one that transformers opens by name."""

QWEN_KINDS = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")

Fit = Literal["crop", "pad", "stretch"]
_MOST_TOKENS = 1 << 14
C = TypeVar("C")


@attrs.frozen(kw_only=True)
class Picturing:
    """How a picture becomes the square that a tower sees.

    Attributes:
        mean: Subtracted from each channel, on the scale where white is 1.
        std: Each channel is divided by it, same scale.
        fit: ``"crop"`` takes the middle of a picture whose short side is scaled to the square's
            (CLIP's way), ``"stretch"`` scales both sides to it (SigLIP's), ``"pad"`` scales the
            long side to it and fills up with ``mean``.
        resample: Filter of the scaling, with antialiasing.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"
    resample: Literal["bicubic", "bilinear"] = "bicubic"


@attrs.frozen(kw_only=True)
class ClipTowerConfig(Picturing):
    """CLIP's vision tower; its weights come with the parent.

    Attributes:
        architecture: Of the tower.
        layer: Which hidden state: 0 is the embeddings, -1 the last layer's output, -2 (LLaVA's
            choice) the one before it.
        select: ``"patch"`` for the patches alone, ``"full"`` for the class token before them too.
    """

    architecture: ClipArchitecture
    layer: int = -2
    select: Literal["patch", "full"] = "patch"

    @property
    def prefix(self) -> int:
        """Tokens at the beginning that are dropped."""
        return self.architecture.prefix if self.select == "patch" else 0

    @property
    def shape(self) -> tuple[int, int]:
        """K and F."""
        one = self.architecture
        return one.patches + one.prefix - self.prefix, one.hidden_size


@attrs.frozen(kw_only=True)
class SiglipTowerConfig(ClipTowerConfig):
    """As :class:`ClipTowerConfig`, for SigLIP, which has no class token."""

    architecture: SiglipArchitecture
    fit: Fit = "stretch"


@attrs.frozen(kw_only=True)
class QwenConfig(Picturing):
    """Vision tower of a Qwen-VL model, up to the MLP of its merger.

    Attributes:
        architecture: Of the tower.
        image_size: Side, in pixels, of the square that it sees: a multiple of the pixels of one
            token. Qwen's own models see pictures of any shape; here K is fixed.
    """

    architecture: QwenArchitecture
    image_size: int
    fit: Fit = "pad"

    @property
    def grid(self) -> int:
        """Patches in a row or column."""
        return self.image_size // self.architecture.patch_size

    @property
    def shape(self) -> tuple[int, int]:
        """K and F."""
        merged = self.architecture.spatial_merge_size
        return (self.grid // merged) ** 2, self.architecture.width * merged**2


@attrs.frozen(kw_only=True)
class Qwen2VLConfig(QwenConfig):
    """See :class:`QwenConfig`."""

    architecture: Qwen2VLArchitecture


@attrs.frozen(kw_only=True)
class Qwen25VLConfig(QwenConfig):
    """See :class:`QwenConfig`."""

    architecture: Qwen25VLArchitecture


@attrs.frozen(kw_only=True)
class Qwen3VLConfig(QwenConfig):
    """See :class:`QwenConfig`."""

    architecture: Qwen3VLArchitecture


_PATCHES: Mapping[str, type[ClipTowerConfig]] = MappingProxyType(
    {"clip": ClipTowerConfig, "siglip": SiglipTowerConfig}
)
_QWEN: Mapping[str, type[QwenConfig]] = MappingProxyType(
    dict(zip(QWEN_KINDS, (Qwen2VLConfig, Qwen25VLConfig, Qwen3VLConfig), strict=True))
)


def is_tower(config: Mapping[str, Any]) -> bool:
    """Tell whether a configuration of ``clip`` or ``siglip`` embeds its architecture."""
    return ARCHITECTURE in config


def tower_config(config: Mapping[str, Any], kind: str) -> ClipTowerConfig:
    """Check the configuration of encoder ``clip`` or ``siglip`` with its architecture in it.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    subject = f"encoder {kind!r}"
    parsed = _parse(config, _PATCHES[kind], subject)
    parsed.architecture.check(subject)
    depth = parsed.architecture.num_hidden_layers
    if not -depth - 1 <= parsed.layer <= depth:
        raise SpecError(
            f"{subject}: architecture has {depth} layers, so layer must be from {-depth - 1} to "
            f"{depth}, found {parsed.layer}",
            subject=subject,
        )
    _check_picturing(subject, parsed)
    return parsed


def qwen_config(config: Mapping[str, Any], kind: str) -> QwenConfig:
    """Check the configuration of an encoder of :data:`QWEN_KINDS`.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    subject = f"encoder {kind!r}"
    parsed = _parse(config, _QWEN[kind], subject)
    parsed.architecture.check(subject)
    side = parsed.architecture.patch_size * parsed.architecture.spatial_merge_size
    if parsed.image_size <= 0 or parsed.image_size % side:
        raise SpecError(
            f"{subject}: image_size must be a multiple of the {side} pixels of one token "
            f"(patch_size {parsed.architecture.patch_size}, spatial_merge_size "
            f"{parsed.architecture.spatial_merge_size}), found {parsed.image_size}",
            subject=subject,
        )
    if parsed.shape[0] > _MOST_TOKENS:
        raise SpecError(
            f"{subject}: image_size {parsed.image_size} makes {parsed.shape[0]} tokens a picture, "
            f"at most {_MOST_TOKENS} are taken; choose a smaller one",
            subject=subject,
        )
    _check_picturing(subject, parsed)
    return parsed


def qwen2_vl_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``qwen2-vl``."""
    return qwen_config(config, "qwen2-vl").shape


def qwen2_5_vl_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``qwen2.5-vl``."""
    return qwen_config(config, "qwen2.5-vl").shape


def qwen3_vl_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``qwen3-vl``."""
    return qwen_config(config, "qwen3-vl").shape


def _parse(config: Mapping[str, Any], kind: type[C], subject: str) -> C:
    try:
        return structure(dict(config), kind, subject)
    except FormatError as error:
        raise SpecError(str(error), subject=subject) from error


def _check_picturing(subject: str, config: Picturing) -> None:
    if min(config.std) <= 0:
        raise SpecError(
            f"{subject}: std must be positive, found {list(config.std)}", subject=subject
        )
