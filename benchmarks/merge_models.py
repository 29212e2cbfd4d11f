"""Llama-shaped checkpoints of random weights, for benchmarks of merging."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {
    "0.1B": {"hidden": 768, "intermediate": 2048, "layers": 12, "heads": 12, "kv": 4},
    "1.1B": {"hidden": 2048, "intermediate": 5632, "layers": 22, "heads": 32, "kv": 4},
    "3B": {"hidden": 3072, "intermediate": 8192, "layers": 26, "heads": 24, "kv": 8},
}
"""Sizes by name; that of 1.1B is TinyLlama's."""
VOCABULARY = 32000
_BASE, _DELTA = 0.02, 0.002
"""Standard deviations of the base's weights and of the parents' deltas."""


def tensors(size: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of a model's tensors."""
    shape = SHAPES[size]
    hidden, wide = shape["hidden"], shape["intermediate"]
    narrow = hidden // shape["heads"] * shape["kv"]
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        for name, outs, ins in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", narrow, hidden),
            ("self_attn.v_proj", narrow, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ):
            yield f"{prefix}{name}.weight", (outs, ins)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def make_models(work: Path, size: str, parents: int, kinds: int = 3) -> tuple[Path, list[Path]]:
    """Write a base and parents in bfloat16, unless they are there.

    Args:
        work: Where they go.
        size: One of :data:`SHAPES`.
        parents: How many.
        kinds: How many different ones; the others are links to those, so that inputs stay in the
            system's cache.

    Returns:
        Directories of the base and of the parents.
    """
    root = work / size
    base = root / "base"
    generator = torch.Generator().manual_seed(0)
    if not (base / "config.json").is_file():
        _save(base, size, {n: _draw(s, _BASE, generator).bfloat16() for n, s in tensors(size)})
    found = []
    for number in range(parents):
        directory = root / f"parent-{number}"
        found.append(directory)
        if (directory / "config.json").is_file():
            continue
        if number >= kinds:
            directory.mkdir(exist_ok=True)
            for name in ("model.safetensors", "config.json"):
                (directory / name).hardlink_to(root / f"parent-{number % kinds}" / name)
            continue
        generator = torch.Generator().manual_seed(1 + number)
        _save(directory, size, _tuned(base, generator))
    return base, found


def _tuned(base: Path, generator: torch.Generator) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", framework="pt") as file:
        names = file.keys()
        found = {}
        for name in names:
            tensor = file.get_tensor(name)
            found[name] = (tensor.float() + _draw(tensor.shape, _DELTA, generator)).bfloat16()
    return found


def _draw(shape: tuple[int, ...], deviation: float, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * deviation


def _save(directory: Path, size: str, weights: dict[str, torch.Tensor]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    shape = SHAPES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
