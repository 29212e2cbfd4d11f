"""Names of tensors in whole multimodal checkpoints, old and new.

A checkpoint keeps the names of the transformers release that wrote it: ``language_model.model.x``
before 4.52 and on disk still, ``model.language_model.x`` at run time since, ``model.x`` beside
``visual.y`` in Qwen's own. What tells them apart is the first component that is a part's name.
"""

from collections.abc import Mapping
from types import MappingProxyType

LANGUAGE = "language_model"
"""The part that is the language model."""

PARTS = (
    LANGUAGE,
    "vision_tower",
    "image_tower",
    "video_tower",
    "audio_tower",
    "visual",
    "multi_modal_projector",
    "image_newline",
)
"""Parts that the models of the supported families have."""

_DECODER = ("embed_tokens", "layers", "norm")

_TOWER_PREFIXES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("vision_tower", "image_tower", "video_tower"), "vision_model.")
)
"""What older releases put between a tower's name and its tensors' own."""


def split_name(name: str) -> tuple[str, str] | None:
    """Return the part that a tensor belongs to, and its name there.

    Of the language model that is its name in a plain one, such as
    ``"model.layers.0.mlp.up_proj.weight"`` or ``"lm_head.weight"``.

    Args:
        name: As a checkpoint has it.

    Returns:
        ``None`` where the name is in none of the known layouts.
    """
    rest = name.removeprefix("model.")
    part, _, inner = rest.partition(".")
    if name == "lm_head.weight":
        return LANGUAGE, name
    if part == LANGUAGE:
        inner = inner.removeprefix("model.")
        return LANGUAGE, inner if inner.startswith("lm_head.") else f"model.{inner}"
    if part in PARTS:
        return part, inner.removeprefix(_TOWER_PREFIXES.get(part, "\0"))
    if name.startswith("model.") and part in _DECODER:
        return LANGUAGE, name
    return None
