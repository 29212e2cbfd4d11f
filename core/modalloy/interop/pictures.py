"""How a model's own processor prepares pictures, as an encoder's configuration says it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modalloy.checkpoints.safe_files import read_object
from modalloy.checkpoints.safe_index import check_inside
from modalloy.errors import FormatError

FILES = ("preprocessor_config.json", "processor_config.json")
CLIP = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
"""Mean and standard deviation that CLIP's processor has unless it says otherwise."""


def picture_settings(source: Path) -> dict[str, Any]:
    """Return ``mean`` and ``std`` of a model's image processor, CLIP's where it has no file.

    Raises:
        FormatError: The file is malformed.
    """
    found = processor_settings(source)
    settings = {}
    for name, key in (("mean", "image_mean"), ("std", "image_std")):
        value = found.get(key, CLIP[name])
        numbers = isinstance(value, list) and len(value) == 3  # noqa: PLR2004
        if not numbers or not all(type(one) in (int, float) for one in value):
            raise FormatError(
                f"{source}: the image processor's {key} must be three numbers, found {value!r}",
                path=source,
            )
        settings[name] = [float(one) for one in value]
    return settings


def processor_settings(source: Path) -> Mapping[str, Any]:
    """Return the settings of a model's image processor; empty where it has none."""
    for name in FILES:
        if (source / name).exists():
            check_inside(source, name, source, suffix=".json")
            data = read_object(source / name)
            inner = data.get("image_processor", data)
            return inner if isinstance(inner, dict) else {}
    return {}
