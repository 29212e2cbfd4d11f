"""Bases that are made in milliseconds: real classes and tokenizers, random weights."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_ROLES = MappingProxyType(
    {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
)
_WORDS = ("the", "\u0120is", "\u0120what", "\u0120a", "assistant", "system", "user")

_SHAPE: MappingProxyType[str, Any] = MappingProxyType(
    {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
    }
)

_PADDED = 320  # rows of the embedding, more than the tokenizer has tokens

# Families differ where real bases do. Llama ties its head and has a row of the embedding for every
# token (as SmolLM2 does); qwen3 has a head of its own and rows to spare (as Qwen3-8B). Windows are
# shorter than the prompts of tests; granite's multipliers are those of its 3.x models in kind.
_FAMILIES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "llama": {"model_type": "llama", "tie_word_embeddings": True},
        "qwen2": {"model_type": "qwen2", "vocab_size": _PADDED, "tie_word_embeddings": True},
        "qwen3": {"model_type": "qwen3", "vocab_size": _PADDED, "tie_word_embeddings": False},
        "mistral": {"model_type": "mistral", "sliding_window": 8},
        "gemma3": {
            "model_type": "gemma3_text",
            "vocab_size": _PADDED,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
            "tie_word_embeddings": True,
        },
        "phi3": {"model_type": "phi3", "sliding_window": 16},
        "olmo2": {"model_type": "olmo2", "vocab_size": _PADDED},
        "granite": {
            "model_type": "granite",
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
        "qwen3_moe": {
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    }
)

ALL_FAMILIES = tuple(_FAMILIES)
"""Families that there are tiny bases of."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with ChatML's special tokens and template."""
    names = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        for end in range(1, len(word)):
            merge = (word[:end], word[end])
            if merge not in merges:
                merges.append(merge)
                names.append(word[: end + 1])
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=_SHAPE["max_position_embeddings"],
        **_ROLES,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(family: str, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """Return the configuration of a tiny model of ``family`` for ``tokenizer``."""
    if family not in _FAMILIES:
        raise ValueError(f"family must be one of {ALL_FAMILIES}; got {family!r}")
    options = {"vocab_size": len(tokenizer), **_FAMILIES[family]}
    return small_config(options.pop("model_type"), tokenizer, **options)


def small_config(
    kind: str, tokenizer: PreTrainedTokenizerFast | None = None, **options: Any
) -> PretrainedConfig:
    """Return a tiny configuration of any decoder-only model type.

    Args:
        kind: The model type.
        tokenizer: That the model is for; the tiny one if left out.
        **options: Beside the shape that all have, or in its place; ``None`` leaves one out.
    """
    tokenizer = tokenizer or tiny_tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    options = {"vocab_size": _PADDED, **_SHAPE, **ids, **options}
    given = {name: value for name, value in options.items() if value is not None}
    config: PretrainedConfig = CONFIG_MAPPING[kind](**given)
    return config


def tiny_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """Return a tiny random causal language model in float32 and eval mode.

    Hidden size 32, 2 layers, 4 heads over 2 key-value heads of 8. The weights depend on
    ``family`` and ``seed`` only, and the global random state is left as it was.
    """
    return small_model(tiny_config(family, tiny_tokenizer()), seed)


def small_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Return a random causal language model of a configuration, as :func:`tiny_model` does."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = kind(config)
    return model.eval()


def tiny_base(
    path: Path,
    family: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "50GB",
) -> Path:
    """Write a tiny base to ``path`` as a Hugging Face directory and return ``path``.

    Args:
        path: Directory to make.
        family: One of :data:`ALL_FAMILIES`, such as ``"llama"`` (tied head) or ``"qwen3"`` (a head
            of its own, padded vocabulary).
        seed: Of the random weights.
        dtype: That the weights are rounded to and saved in.
        max_shard_size: Such as ``"10KB"`` for a base in several files.

    Returns:
        ``path``.
    """
    model: Any = tiny_model(family, seed)
    return write_base(path, model.to(dtype), max_shard_size)


def write_base(path: Path, model: Any, max_shard_size: str = "50GB") -> Path:
    """Write a model and the tiny tokenizer to ``path``, and return ``path``."""
    model.save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(path)
    return path
