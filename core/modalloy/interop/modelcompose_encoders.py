"""Encoders of ModelCompose checkpoints, in our terms; their weights are not in the checkpoints.

Facts from the released code (THUNLP-MT/ModelCompose, commit 7846997), ``multimodal_encoder/``.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modalloy.errors import SpecError
from modalloy.interop.modelcompose_settings import ModalitySettings, Settings, last_part
from modalloy.opened import HUB_ID
from modalloy.parent import ComponentConfig

# BEATs: audio_processor.py cuts and pads every sound to 2 x 512 frames of 128 mel bins; patches of
# 16 x 16 make 64 x 8 tokens of it (BEATs.py, extract_features_new).
_BEATS: Mapping[str, Any] = MappingProxyType(
    {
        "sampling_rate": 16000,
        "mel_bins": 128,
        "frame_length": 25,
        "frame_shift": 10,
        "frames": 1024,
        "mean": 15.41663,
        "std": 6.55582,
    }
)
_BEATS_TOKENS = 512
# Point-BERT v1.2: 8,192 points (x, y, z, r, g, b) in 512 groups, and the class token
# (point_encoder.py: 513 tokens).
_POINTS: Mapping[str, Any] = MappingProxyType({"points": 8192, "channels": 6, "groups": 512})
_POINT_TOKENS = 513
# LanguageBind-Video: 8 frames of 224 pixels through CLIP ViT-L/14; LanguageBindVideoTower takes
# all tokens of a frame, the class token too, and multimodal_arch.py lays the frames end to end.
_VIDEO: Mapping[str, Any] = MappingProxyType({"frames": 8, "image_size": 224})
_VIDEO_TOKENS = 8 * (1 + (224 // 14) ** 2)

_CLIP_ORGANISATIONS = ("openai", "laion")


def read_encoder(name: str, settings: Settings) -> ComponentConfig:
    """Return the encoder of a modality.

    Args:
        name: Their name of the modality.
        settings: What config.json says.

    Raises:
        SpecError: It is one that the released code has and no weights were released for.
    """
    one = settings.modalities[name]
    if name == "vision":
        return _clip(settings, one)
    file = last_part(one.encoder)
    if name == "audio":
        if "beats" not in file.lower():
            raise _unknown_encoder(settings, name, one, "BEATs")
        return _with_shape("beats", {"weights": file, **_BEATS}, _BEATS_TOKENS, one)
    if name == "point":
        return _with_shape("pointbert-v1.2", {"weights": file, **_POINTS}, _POINT_TOKENS, one)
    if not file.endswith("LanguageBind_Video_merge"):
        raise _unknown_encoder(settings, name, one, "LanguageBind_Video_merge")
    config = {"model": f"LanguageBind/{file}", **_VIDEO, "layer": one.layer}
    return _with_shape("languagebind-video", config, _VIDEO_TOKENS, one)


def _with_shape(
    kind: str, config: dict[str, Any], tokens: int, one: ModalitySettings
) -> ComponentConfig:
    return ComponentConfig(type=kind, config=config, shape=[tokens, one.features])


def _clip(settings: Settings, one: ModalitySettings) -> ComponentConfig:
    """Return CLIP's configuration; number and size of its patches stand in its name."""
    model = last_part(one.encoder)
    patch = re.search(r"patch-?(\d+)|ViT-[A-Za-z]+-(\d+)", model)
    if "clip" not in model.lower() or "eva" in model.lower() or patch is None:
        raise _unknown_encoder(settings, "vision", one, "a CLIP such as clip-vit-large-patch14-336")
    if one.select != "patch":
        raise SpecError(
            f"{settings.path}: mm_vision_select_feature is {one.select!r}; encoder 'clip' gives "
            "the patches without the class token ('patch')",
            subject="mm_vision_select_feature",
        )
    if HUB_ID.fullmatch(one.encoder) and one.encoder.startswith(_CLIP_ORGANISATIONS):
        model = one.encoder
    elif model.startswith("clip-vit"):
        model = f"openai/{model}"  # a copy of OpenAI's, by path
    else:
        raise _unknown_encoder(settings, "vision", one, "a Hub id such as openai/clip-vit-...")
    large = re.search(r"-(\d{3})$", model)
    size = int(large[1]) if large else 224
    tokens = (size // int(patch[1] or patch[2])) ** 2
    config = {"model": model, "tokens": tokens, "features": one.features}
    config |= {"image_size": size, "layer": one.layer}
    return _with_shape("clip", config, tokens, one)


def _unknown_encoder(
    settings: Settings, name: str, one: ModalitySettings, expected: str
) -> SpecError:
    return SpecError(
        f"{settings.path}: the {name} encoder is {last_part(one.encoder)!r}; known is {expected}. "
        "What it turns an input into cannot be told from here",
        subject=f"mm_{name}_encoder",
    )
