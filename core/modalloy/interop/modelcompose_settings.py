"""What the config.json of a ModelCompose checkpoint says.

Facts from the released code (THUNLP-MT/ModelCompose, commit 7846997), ``multimodal_llama.py``.
"""

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

import attrs

from modalloy.base_config import CONFIG_FILE, read_config
from modalloy.errors import FormatError, SpecError

KIND = "ModelCompose"
MODALITIES: Mapping[str, str] = MappingProxyType(
    {"vision": "vision", "audio": "audio", "video": "video", "point": "pointcloud"}
)
"""Our name of each of their modalities."""

DECOUPLED = ("modal", "modal+language")
"""``lora_strategy`` under which a modality's tokens run on its own adapter."""

_STRATEGIES = (None, "none", "same", *DECOUPLED)
_REFUSED = MappingProxyType(
    {
        "layer_local_tokens": "learned tokens were inserted at every layer, which the released "
        "code does not do and a parent cannot hold",
        "seperate_layernorm": "norms were tuned by modality, which the released code does not "
        "read back and its checkpoints do not name",
    }
)
_MOST = 1 << 12


@attrs.frozen(kw_only=True)
class ModalitySettings:
    """What config.json says of one modality.

    Attributes:
        encoder: Name or path of its encoder, as it stands there.
        projector: Type of its connector, such as ``"mlp2x_gelu"``.
        features: F, features of an encoder's token.
        prefix: Learned tokens before the features.
        suffix: Learned tokens after them.
        layer: Hidden state of the encoder that is taken, where one is chosen.
        select: Which of its tokens, where that is chosen: ``"patch"`` or ``"cls_patch"``.
    """

    encoder: str
    projector: str
    features: int
    prefix: int
    suffix: int
    layer: int
    select: str


@attrs.frozen(kw_only=True)
class Settings:
    """What config.json says.

    Attributes:
        path: The file.
        strategy: ``lora_strategy``.
        scale: alpha / R of every pair.
        rank: R.
        modalities: By their name.
        reset: ``reset_scaling_weights``: factor by adapter.
        base: Last part of the name of the base that it was tuned from, or ``None``.
    """

    path: Path
    strategy: str | None
    scale: float
    rank: int
    modalities: Mapping[str, ModalitySettings]
    reset: Mapping[str, float]
    base: str | None


def is_modelcompose(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a ModelCompose checkpoint."""
    encoders = [f"mm_{name}_encoder" for name in MODALITIES]
    return config.get("model_type") == "multimodal" or any(
        key in config for key in ("lora_strategy", *encoders)
    )


def read_settings(source: Path) -> Settings:
    """Read config.json.

    Raises:
        FormatError: A value is of another type, or names no modality.
        SpecError: It was trained in a way that a parent cannot hold.
    """
    path = source / CONFIG_FILE
    config = read_config(source)
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise SpecError(f"{path}: {key} is set: {reason}", subject=key)
    strategy = config.get("lora_strategy")
    if strategy not in _STRATEGIES:
        raise SpecError(
            f"{path}: lora_strategy is {strategy!r}, which the released code does not know; "
            f"expected one of {', '.join(map(str, _STRATEGIES))}",
            subject="lora_strategy",
        )
    rank = _number(path, config, "lora_r", 128, whole=True)
    alpha = _number(path, config, "lora_alpha", 256)
    base = config.get("_name_or_path")
    return Settings(
        path=path,
        strategy=strategy,
        scale=alpha / rank,
        rank=int(rank),
        modalities=_read_modalities(path, config),
        reset=_read_reset(path, config.get("reset_scaling_weights")),
        base=last_part(base) if isinstance(base, str) and base else None,
    )


def last_part(name: str) -> str:
    """Return the last part of a path or Hub id, however it is separated."""
    return PurePosixPath(PureWindowsPath(name.rstrip("/\\")).as_posix()).name


def _read_modalities(path: Path, config: Mapping[str, Any]) -> dict[str, ModalitySettings]:
    if config.get("mm_vision2_encoder") or config.get("mm_vision2_tower"):
        raise SpecError(
            f"{path}: it has a second vision encoder (vision2); a composition takes one parent for "
            "each modality",
            subject="vision2",
        )
    found = {}
    for name in MODALITIES:
        encoder = config.get(f"mm_{name}_encoder")
        if not encoder and name == "vision":
            encoder = config.get("mm_vision_tower")
        if not encoder:
            continue
        if not isinstance(encoder, str):
            raise FormatError(
                f"{path}: mm_{name}_encoder must be a name, found {encoder!r}", path=path
            )
        found[name] = _read_modality(path, config, name, encoder)
    if not found:
        raise FormatError(
            f"{path} names no encoder; expected one of "
            f"{', '.join(f'mm_{name}_encoder' for name in MODALITIES)}",
            path=path,
        )
    return found


def _read_modality(
    path: Path, config: Mapping[str, Any], name: str, encoder: str
) -> ModalitySettings:
    middle = "" if name == "vision" else f"{name}_"
    features = f"mm_{middle}hidden_size"
    if config.get(features) is None:
        features = "mm_hidden_size"  # where the released code looks next
    ends = {}
    for end in ("prefix", "suffix"):
        key = f"local_{end}_tokens"
        own = f"local_{name}_{end}_tokens"
        # None of any modality's own where the general number is 0: that is how it is built.
        general = _count(path, config, key)
        chosen = general and config.get(own) is not None
        ends[end] = _count(path, config, own) if chosen else general
    layer = config.get(f"mm_{name}_select_layer", -2)
    if type(layer) is not int:
        raise FormatError(
            f"{path}: mm_{name}_select_layer must be an integer, found {layer!r}", path=path
        )
    return ModalitySettings(
        encoder=encoder,
        projector=str(config.get(f"mm_{middle}projector_type") or "linear"),
        features=int(_number(path, config, features, 768, whole=True)),
        prefix=ends["prefix"],
        suffix=ends["suffix"],
        layer=layer,
        select=str(config.get(f"mm_{name}_select_feature") or "patch"),
    )


def _count(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key) or 0
    if type(value) is not int or not 0 <= value <= _MOST:
        raise FormatError(f"{path}: {key} must be from 0 to {_MOST}, found {value!r}", path=path)
    return value


def _number(
    path: Path, config: Mapping[str, Any], key: str, default: float, *, whole: bool = False
) -> float:
    value = config.get(key, default)
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 < value < 1 << 20:
        raise FormatError(
            f"{path}: {key} must be a positive {'integer' if whole else 'number'}, found {value!r}",
            path=path,
        )
    return float(value)


def _read_reset(path: Path, text: object) -> dict[str, float]:
    """Read ``default-video=0.333,vision=0.5``."""
    if text is None or text == "":
        return {}
    factors = {}
    for part in str(text).split(","):
        name, equals, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not math.isfinite(number):
            raise FormatError(
                f"{path}: reset_scaling_weights has {part!r}, expected NAME=NUMBER such as "
                "default-video=0.333",
                path=path,
            )
        factors[name.strip()] = number
    return factors
