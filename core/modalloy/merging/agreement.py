"""Settings that change what a model computes from tensors of the same shapes."""

from collections.abc import Mapping
from typing import Any

_SETTINGS = (
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "layer_norm_eps",
    "layer_types",
    "logits_scaling",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_key_value_heads",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
)


def differing(config: Mapping[str, Any], output: Mapping[str, Any]) -> str | None:
    """Return how a model computes otherwise than the output will, or ``None``.

    Merging models of, say, two bases of rotary embeddings may be meant, so it is told and not
    refused. A setting that only one of the two spells out is not looked at.

    Args:
        config: The model's ``config.json``.
        output: The output's.
    """
    found = [
        f"{name} {config[name]!r}, the output {output[name]!r}"
        for name in _SETTINGS
        if name in config and name in output and config[name] != output[name]
    ]
    return f"it computes otherwise than the output: {'; '.join(found)}" if found else None
