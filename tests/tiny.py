"""Bases that are made in milliseconds: real classes and tokenizers, random weights."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("llama", "qwen3")
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

# The two families differ where real bases do: llama ties its head and has a row of the embedding
# for every token (as SmolLM2 does); qwen3 has a head of its own and rows to spare (as Qwen3-8B).
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
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "llama":
        vocabulary = len(tokenizer)
        return LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **_SHAPE, **ids)
    if family == "qwen3":
        return Qwen3Config(vocab_size=320, tie_word_embeddings=False, **_SHAPE, **ids)
    raise ValueError(f"family must be one of {FAMILIES}; got {family!r}")


def tiny_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """Return a tiny random causal language model in float32 and eval mode.

    Hidden size 32, 2 layers, 4 heads over 2 key-value heads of 8. The weights depend on
    ``family`` and ``seed`` only, and the global random state is left as it was.
    """
    kinds: dict[str, Any] = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}
    config = tiny_config(family, tiny_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = kinds[family](config)
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
        family: ``"llama"`` (tied head) or ``"qwen3"`` (a head of its own, padded vocabulary).
        seed: Of the random weights.
        dtype: That the weights are rounded to and saved in.
        max_shard_size: Such as ``"10KB"`` for a base in several files.

    Returns:
        ``path``.
    """
    model: Any = tiny_model(family, seed)
    model.to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(path)
    return path
