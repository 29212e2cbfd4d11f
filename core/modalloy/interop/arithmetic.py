"""Whether a language model computes as its base does, as far as their configurations tell.

Two models may have tensors of the same names and shapes and differ in what they do with them:
heads, positions, windows, multipliers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from modalloy.base import Base
from modalloy.errors import BaseMismatchError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TEXT_TYPES: Mapping[str, str] = MappingProxyType(
    {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
)
"""Plain model type of a language model that a multimodal one has under another name."""

# What no logit depends on, or what is told by the shapes of tensors, or compared elsewhere.
_NEUTRAL = re.compile(
    r".*(dropout|_drop|_pdrop|_token_id|token_index)|(_name_or_path|architectures|auto_map|bad_words.*"
    r"|begin_suppress.*|chunk_size.*|dtype|torch_dtype|finetuning_task|id2label|label2id|initializer_\w+"
    r"|is_decoder|is_encoder_decoder|max_position_embeddings|max_window_layers|model_type|name_or_path"
    r"|output_\w+|prefix|pretraining_tp|problem_type|return_dict|router_aux_loss_coef|task_specific.*"
    r"|tie_word_embeddings|tokenizer_class|transformers_version|use_bfloat16|use_cache|use_return_dict"
    r"|vocab_size|_attn_implementation\w*|_experts_implementation\w*|rope_scaling|rope_theta"
    r"|use_sliding_window|default_theta|head_dim)"
)
_MULTIMODAL_ROPE = ("mrope_section", "mrope_interleaved", "type")


def check_arithmetic(source: Path, text: "PretrainedConfig", base: Base) -> None:
    """Check that a model's language model is of the kind of a base and computes as it does.

    Args:
        source: The model's directory, for messages.
        text: Configuration of its language model.
        base: The base.

    Raises:
        BaseMismatchError: It is not.
    """
    own = base.config()
    kind = _TEXT_TYPES.get(text.model_type, text.model_type)
    differences = []
    if kind != own.model_type:
        differences.append(f"model_type {kind!r} and {own.model_type!r}")
    else:
        found, expected = _settings(text, own), _settings(own, own)
        differences += [
            f"{name} {found[name]} and {expected[name]}"
            for name in sorted(expected)
            if found[name] != expected[name]
        ]
    if differences:
        raise BaseMismatchError(
            f"{source}: its language model does not compute as the base {base.id!r} does: "
            f"{'; '.join(differences)}. Give the base that it was tuned from",
            parent=str(source),
            expected=own.model_type,
            found=kind,
        )


def _settings(config: "PretrainedConfig", own: "PretrainedConfig") -> dict[str, Any]:
    """Return what logits depend on, by the names of the base's configuration.

    What another configuration does not know is as that of the base's kind is by default.
    """
    defaults = type(own)().to_dict()
    data = config.to_dict()
    names = [name for name in own.to_dict() if not _NEUTRAL.fullmatch(name)]
    found = {name: _plain(data.get(name, defaults.get(name))) for name in names}
    found["head_dim"] = _head_dim(config)
    if "rope_parameters" in found:
        found["rope_parameters"] = _rope(found["rope_parameters"])
    layers = found.get("layer_types")
    slides = "sliding_attention" in layers if layers else data.get("use_sliding_window", True)
    if not slides:
        found["sliding_window"] = None
    if layers is not None and set(layers) == {"full_attention"}:
        found["layer_types"] = None
    return found


def _head_dim(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _rope(value: Any) -> Any:
    """Return the parameters of positions without what is only for more than one dimension."""
    if not isinstance(value, dict):
        return value
    if any(isinstance(one, dict) for one in value.values()):  # by kind of layer
        return {name: _rope(one) for name, one in value.items()}
    kind = value.get("rope_type", value.get("type"))
    kept = {name: one for name, one in value.items() if name not in _MULTIMODAL_ROPE}
    return {**kept, "rope_type": "default" if kind in (None, "mrope") else kind}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
