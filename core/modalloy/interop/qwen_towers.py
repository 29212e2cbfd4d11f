"""Towers of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen2-Audio."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from modalloy.errors import SpecError
from modalloy.interop.accounting import CONNECTOR, ENCODER, SKIPPED
from modalloy.interop.pictures import CLIP, HALF, picture_settings, resampling
from modalloy.interop.towers import Placing, Sizes, Tower
from modalloy.parent import ComponentConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IMAGE_SIZE = 448
"""Side in pixels of the square that pictures become unless another is asked for."""

_THETA, _CHANNELS = 10000.0, 3
_COMMON = ("depth", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size")
_WIDE = ("hidden_size", "intermediate_size", "hidden_act")
_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "qwen2_vl": ("qwen2-vl", (*_COMMON, "embed_dim", "mlp_ratio", "hidden_act")),
        "qwen2_5_vl": ("qwen2.5-vl", (*_COMMON, *_WIDE, "window_size", "fullatt_block_indexes")),
        "qwen3_vl": ("qwen3-vl", (*_COMMON, *_WIDE, "num_position_embeddings")),
    }
)
_MERGERS = MappingProxyType(
    {
        f"merger.{old}.{kind}": f"projection.{new}.{kind}"
        for old, new in (("mlp.0", 0), ("mlp.2", 2), ("linear_fc1", 0), ("linear_fc2", 2))
        for kind in ("weight", "bias")
    }
)
_POSITIONS = (
    "the model gives the tokens of a picture positions in two dimensions (M-RoPE); over a plain "
    "base they have one after another, so answers about where things are may differ"
)
_DEEPSTACK = (
    "the model adds features of earlier layers of its tower inside its first decoder layers "
    "(DeepStack); a composition takes a picture at its input alone"
)


def pictures(config: "PretrainedConfig", source: Path, sizes: Sizes) -> Tower:
    """Return the vision tower of a Qwen-VL model, for squares of one size.

    Raises:
        SpecError: The tower has settings that encoders do not, or the size does not fit it.
    """
    sizes.refuse(str(source), seconds="it hears no sounds")
    kind, names = _KINDS[config.model_type]
    vision = config.vision_config
    theta = (getattr(vision, "rope_parameters", None) or {}).get("rope_theta", _THETA)
    channels = getattr(vision, "in_channels", _CHANNELS)
    if theta != _THETA or channels != _CHANNELS:
        raise SpecError(
            f"{source}: the tower has rope_theta {theta} and {channels} channels; encoders have "
            f"{_THETA} and {_CHANNELS}",
            subject="vision_config",
        )
    for name in ("patch_size", "spatial_merge_size"):
        value = getattr(vision, name)
        if type(value) is not int or value < 1:
            raise SpecError(
                f"{source}: the tower's {name} must be a positive whole number, found {value!r}",
                subject=name,
            )
    side = vision.patch_size * vision.spatial_merge_size
    size = IMAGE_SIZE // side * side if sizes.image_size is None else sizes.image_size
    if size <= 0 or size % side:
        raise SpecError(
            f"{source}: image_size must be a multiple of the {side} pixels of one token, found "
            f"{size}",
            subject="image_size",
        )
    width = vision.embed_dim if config.model_type == "qwen2_vl" else vision.hidden_size
    features = width * vision.spatial_merge_size**2
    architecture = {name: getattr(vision, name) for name in names}
    settings: dict[str, Any] = {
        "architecture": architecture,
        "image_size": size,
        "resample": resampling(source),
        **picture_settings(source, HALF if kind == "qwen3-vl" else CLIP),
    }
    deep = bool(getattr(vision, "deepstack_visual_indexes", None))

    def place(where: str, name: str) -> Placing:
        if where != "visual":
            return SKIPPED, f"a vision parent has no place for {where}"
        if name in _MERGERS:
            return CONNECTOR, _MERGERS[name]
        if name.startswith("deepstack_merger_list."):
            return SKIPPED, "DeepStack: a composition takes pictures at its input alone"
        return ENCODER, f"model.{name}"

    return Tower(
        modality="vision",
        encoder=ComponentConfig(type=kind, config=settings, shape=[(size // side) ** 2, features]),
        connector=ComponentConfig(type="mlp", config={"depth": 2, "width": features}),
        requires="modalloy-vision",
        place=place,
        connector_names=frozenset(_MERGERS.values()),
        first="projection.0.weight",
        notes=(_POSITIONS, *([_DEEPSTACK] if deep else [])),
    )


_SOUND = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "num_mel_bins",
    "max_source_positions",
    "activation_function",
)
_FRAMES_PER_SECOND = 100
_SHORTEST = 0.04
"""Seconds of a window of one token."""
_WINDOW = (
    "the model gives a sound as many tokens as it is long; here every sound is a window of "
    "{seconds:g} s, and what is shorter is followed by silence"
)


def sounds(config: "PretrainedConfig", source: Path, sizes: Sizes) -> Tower:
    """Return the audio tower of a Qwen2-Audio model, for windows of one length.

    Raises:
        SpecError: The length is out of what the tower takes.
    """
    sizes.refuse(str(source), image_size="it sees no pictures")
    audio = config.audio_config
    most = 2 * audio.max_source_positions / _FRAMES_PER_SECOND
    seconds = most if sizes.seconds is None else sizes.seconds
    allowed = _SHORTEST <= seconds <= most
    positions = (round(seconds * _FRAMES_PER_SECOND) - 1) // 2 + 1 if allowed else 0
    if not allowed:
        raise SpecError(
            f"{source}: seconds must be from {_SHORTEST} to {most:g}, which its tower takes, found "
            f"{seconds:g}",
            subject="seconds",
        )
    settings = {"architecture": {name: getattr(audio, name) for name in _SOUND}, "seconds": seconds}

    def place(where: str, name: str) -> Placing:
        if where == "audio_tower":
            return ENCODER, f"model.{name}"
        if where == "multi_modal_projector" and name in _LINEAR:
            return CONNECTOR, _LINEAR[name]
        return SKIPPED, f"an audio parent has no place for {where}"

    return Tower(
        modality="audio",
        encoder=ComponentConfig(
            type="qwen2-audio", config=settings, shape=[positions // 2, audio.d_model]
        ),
        connector=ComponentConfig(type="linear"),
        requires="modalloy-audio",
        place=place,
        connector_names=frozenset(_LINEAR.values()),
        first="projection.weight",
        notes=(_WINDOW.format(seconds=seconds),),
    )


_LINEAR = MappingProxyType({f"linear.{kind}": f"projection.{kind}" for kind in ("weight", "bias")})
