"""How a model's own processor prepares pictures, as an encoder's configuration says it."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modalloy.checkpoints.safe_files import read_object
from modalloy.checkpoints.safe_index import check_inside
from modalloy.errors import FormatError, SpecError

FILES = ("preprocessor_config.json", "processor_config.json")
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""Mean and standard deviation that CLIP's processor has unless it says otherwise."""

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
"""Those of SigLIP's and Qwen3-VL's."""

_WHITE = 255


RESAMPLING = MappingProxyType({2: "bilinear", 3: "bicubic"})
"""Pillow's numbers of the filters that encoders have."""


def picture_settings(source: Path, otherwise: Mapping[str, Any] = CLIP) -> dict[str, Any]:
    """Return ``mean`` and ``std`` of a model's image processor.

    Args:
        source: The model's directory.
        otherwise: What they are where no file says.

    Raises:
        FormatError: The file is malformed.
        SpecError: Values of a picture become others than encoders make of them.
    """
    found = processor_settings(source)
    factor = found.get("rescale_factor", 1 / _WHITE)
    for name, expected in (("do_rescale", True), ("do_normalize", True)):
        if found.get(name, expected) is not expected:
            raise SpecError(
                f"{source}: the image processor has {name} {found[name]!r}; encoders scale values "
                "to 0 to 1 and normalise them",
                subject=name,
            )
    if not isinstance(factor, float) or abs(factor * _WHITE - 1) > 1e-6:  # noqa: PLR2004
        raise SpecError(
            f"{source}: the image processor's rescale_factor is {factor!r}; encoders have 1/255",
            subject="rescale_factor",
        )
    settings = {}
    for name, key in (("mean", "image_mean"), ("std", "image_std")):
        value = found.get(key, otherwise[key])
        numbers = isinstance(value, list) and len(value) == 3  # noqa: PLR2004
        if not numbers or not all(type(one) in (int, float) and isfinite(one) for one in value):
            raise FormatError(
                f"{source}: the image processor's {key} must be three numbers, found {value!r}",
                path=source,
            )
        settings[name] = [float(one) for one in value]
    if min(settings["std"]) <= 0:
        raise FormatError(
            f"{source}: the image processor's image_std must be positive, found {settings['std']}",
            path=source,
        )
    return settings


def resampling(source: Path) -> str:
    """Return the filter that a model's image processor scales with.

    Raises:
        SpecError: Encoders have no such filter.
    """
    number = processor_settings(source).get("resample", 3)
    if number not in RESAMPLING:
        raise SpecError(
            f"{source}: the image processor scales with filter {number!r}; encoders have "
            f"{', '.join(f'{n} ({name})' for n, name in RESAMPLING.items())}",
            subject="resample",
        )
    return RESAMPLING[number]


def fitting(source: Path, side: int, otherwise: str) -> str:
    """Return how a model's image processor makes a square of a picture.

    Args:
        source: The model's directory.
        side: Of the square that its tower sees, in pixels.
        otherwise: What is done where no file says.

    Returns:
        ``"pad"``, ``"crop"`` or ``"stretch"``, see the plugin's encoders.

    Raises:
        SpecError: The square has another size than the tower's.
    """
    found = processor_settings(source)
    for key in ("size", "crop_size"):
        value = found.get(key, side)
        sizes = list(value.values()) if isinstance(value, dict) else [value]
        if any(one != side for one in sizes):
            raise SpecError(
                f"{source}: the image processor's {key} is {value!r}, its tower sees squares of "
                f"{side} pixels; encoders show it the whole square",
                subject=key,
            )
    for name in ("do_pad", "do_center_crop"):
        if not isinstance(found.get(name, False), bool):
            raise FormatError(
                f"{source}: the image processor's {name} must be true or false, found "
                f"{found[name]!r}",
                path=source,
            )
    if found.get("do_pad"):
        return "pad"
    if "do_center_crop" in found:
        return "crop" if found["do_center_crop"] else "stretch"
    return otherwise


def processor_settings(source: Path) -> Mapping[str, Any]:
    """Return the settings of a model's image processor; empty where it has none."""
    for name in FILES:
        if (source / name).exists():
            check_inside(source, name, source, suffix=".json")
            data = read_object(source / name)
            inner = data.get("image_processor", data)
            return inner if isinstance(inner, dict) else {}
    return {}
