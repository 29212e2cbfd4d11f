"""Towers of LLaVA, LLaVA-NeXT and Video-LLaVA: CLIP or SigLIP, and a projector of two layers."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from modalloy.errors import SpecError
from modalloy.interop.accounting import CONNECTOR, ENCODER, SKIPPED
from modalloy.interop.pictures import CLIP, HALF, fitting, picture_settings, resampling
from modalloy.interop.towers import Placing, Sizes, Tower
from modalloy.parent import ComponentConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_KINDS = MappingProxyType({"clip_vision_model": "clip", "siglip_vision_model": "siglip"})
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
_CHANNELS = 3
_PROJECTOR = MappingProxyType(
    {
        f"linear_{n}.{kind}": f"projection.{2 * n - 2}.{kind}"
        for n in (1, 2)
        for kind in ("weight", "bias")
    }
)
_TILES = (
    "LLaVA-NeXT also shows large pictures in tiles; here a picture is one square of the tower's "
    "size, as it sees one that is small"
)


def pictures(config: "PretrainedConfig", source: Path, sizes: Sizes) -> Tower:
    """Return LLaVA's tower."""
    _refuse_sizes(config, source, sizes)
    return _tower(config, source, "vision", "vision_tower", _pictures(config, source), {})


def tiles(config: "PretrainedConfig", source: Path, sizes: Sizes) -> Tower:
    """Return LLaVA-NeXT's tower, for one square a picture."""
    _refuse_sizes(config, source, sizes)
    others = {"image_newline": "ends the rows of tiles, of which there are none here"}
    encoder = _pictures(config, source)
    return _tower(config, source, "vision", "vision_tower", encoder, others, (_TILES,))


def clips(config: "PretrainedConfig", source: Path, sizes: Sizes) -> Tower:
    """Return Video-LLaVA's tower for videos.

    Raises:
        SpecError: Its frames are prepared otherwise than the encoder of videos does.
    """
    _refuse_sizes(config, source, sizes)
    ways = fitting(source, config.vision_config.image_size, "crop"), resampling(source)
    if ways != ("crop", "bicubic"):
        raise SpecError(
            f"{source}: the image processor makes squares of frames by {' and '.join(ways)}; the "
            "encoder of videos by crop and bicubic",
            subject="do_center_crop",
        )
    encoder = ComponentConfig(
        type="video-llava",
        config={
            "architecture": _architecture(config.vision_config),
            "layer": _layer(config, source),
            "frames": FRAMES,
            **picture_settings(source),
        },
    )
    frame = _patches(config) + 1
    encoder = _shaped(encoder, FRAMES * frame, config)
    others = {"image_tower": "for pictures; convert them with --modality vision"}
    return _tower(config, source, "video", "video_tower", encoder, others)


def pictures_beside_clips(config: "PretrainedConfig", source: Path, sizes: Sizes) -> Tower:
    """Return Video-LLaVA's tower for pictures."""
    _refuse_sizes(config, source, sizes)
    others = {"video_tower": "for videos; convert them with --modality video"}
    encoder = _pictures(config, source)
    return _tower(config, source, "vision", "image_tower", encoder, others)


FRAMES = 8
"""Frames of a video that Video-LLaVA sees."""


def _tower(
    config: "PretrainedConfig",
    source: Path,
    modality: str,
    part: str,
    encoder: ComponentConfig,
    others: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> Tower:
    """Return a tower with LLaVA's projector.

    Args:
        config: The whole model's configuration.
        source: Its directory.
        modality: Name of the modality.
        part: Name of the tower among the model's parts.
        encoder: What it becomes.
        others: Why further parts are skipped, by name.
        notes: As in :class:`Tower`.
    """
    activation = getattr(config, "projector_hidden_act", "gelu")
    bias = getattr(config, "multimodal_projector_bias", True)
    if activation != "gelu" or not bias:
        raise SpecError(
            f"{source}: the projector has activation {activation!r} and bias {bias}; connectors "
            "have 'gelu' and a bias",
            subject="projector",
        )

    def place(where: str, name: str) -> Placing:
        if where == part:
            return ENCODER, f"model.{name}"
        if where == "multi_modal_projector" and name in _PROJECTOR:
            return CONNECTOR, _PROJECTOR[name]
        return SKIPPED, others.get(where, f"a {modality} parent has no place for {where}")

    return Tower(
        modality=modality,
        encoder=encoder,
        connector=ComponentConfig(type="mlp", config={"depth": 2}),
        requires=f"modalloy-{modality}",
        place=place,
        connector_names=frozenset(_PROJECTOR.values()),
        first="projection.0.weight",
        notes=notes,
    )


def _pictures(config: "PretrainedConfig", source: Path) -> ComponentConfig:
    kind = _KINDS.get(config.vision_config.model_type)
    if kind is None:
        raise SpecError(
            f"{source}: its tower is of type {config.vision_config.model_type!r}; encoders are "
            f"made of {', '.join(sorted(_KINDS))}",
            subject="vision_config",
        )
    select = {"default": "patch", "full": "full"}[
        getattr(config, "vision_feature_select_strategy", "default")
    ]
    if kind == "siglip" and select == "patch":
        raise SpecError(
            f"{source}: with vision_feature_select_strategy 'default' the model drops the first "
            "token of its tower, which in SigLIP is a patch of the picture; encoders keep all",
            subject="vision_feature_select_strategy",
        )
    fit = fitting(source, config.vision_config.image_size, "crop" if kind == "clip" else "stretch")
    settings: dict[str, Any] = {
        "architecture": _architecture(config.vision_config),
        "layer": _layer(config, source),
        "select": select,
        "fit": fit,
        "resample": resampling(source),
        **picture_settings(source, CLIP if kind == "clip" else HALF),
    }
    if kind == "siglip":
        settings["architecture"]["vision_use_head"] = config.vision_config.vision_use_head
    tokens = _patches(config) + (kind == "clip" and select == "full")
    return _shaped(ComponentConfig(type=kind, config=settings), tokens, config)


def _shaped(encoder: ComponentConfig, tokens: int, config: "PretrainedConfig") -> ComponentConfig:
    width = int(config.vision_config.hidden_size)
    return ComponentConfig(type=encoder.type, config=encoder.config, shape=[tokens, width])


def _architecture(vision: Any) -> dict[str, Any]:
    if vision.num_channels != _CHANNELS:
        raise SpecError(
            f"the tower sees {vision.num_channels} channels; encoders show it {_CHANNELS}",
            subject="num_channels",
        )
    found = {name: getattr(vision, name) for name in _SIZES}
    for name, value in found.items():
        if name not in ("hidden_act", "layer_norm_eps") and (type(value) is not int or value < 1):
            raise SpecError(
                f"the tower's {name} must be a positive whole number, found {value!r}", subject=name
            )
    return found


def _patches(config: "PretrainedConfig") -> int:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return int(side * side)


def _layer(config: "PretrainedConfig", source: Path) -> int:
    layer, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if isinstance(layer, int) and not -depth - 1 <= layer <= depth:
        raise SpecError(
            f"{source}: vision_feature_layer is {layer}, its tower has {depth} layers",
            subject="vision_feature_layer",
        )
    if not isinstance(layer, int):
        raise SpecError(
            f"{source}: its features are of several layers of the tower ({layer}); encoders "
            "return one",
            subject="vision_feature_layer",
        )
    return layer


def _refuse_sizes(config: "PretrainedConfig", source: Path, sizes: Sizes) -> None:
    fixed = config.vision_config.image_size
    sizes.refuse(
        str(source),
        image_size=f"its tower sees squares of {fixed} pixels",
        seconds="it hears no sounds",
    )
