"""Directories of small models to merge, whose tensors have all the shapes that matter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SHAPES = {
    "model.embed_tokens.weight": (40, 24),
    "model.layers.0.self_attn.q_proj.weight": (24, 24),
    "model.layers.0.mlp.up_proj.weight": (70, 24),
    "model.layers.0.input_layernorm.weight": (24,),
    "model.layers.1.self_attn.q_proj.weight": (24, 24),
    "model.layers.1.mlp.up_proj.weight": (70, 24),
    "model.layers.1.input_layernorm.weight": (24,),
    "model.layers.2.mlp.up_proj.weight": (70, 24),
    "model.norm.weight": (24,),
    "lm_head.weight": (40, 24),
}


def draw(
    seed: int,
    near: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> dict[str, torch.Tensor]:
    """Draw a base's tensors, or those of a model near one."""
    generator = torch.Generator().manual_seed(seed)
    if near is None:
        return {
            n: (0.02 * torch.randn(s, generator=generator)).to(dtype) for n, s in shapes.items()
        }
    return {
        n: (t.float() + 0.004 * torch.randn(t.shape, generator=generator)).to(dtype)
        for n, t in near.items()
    }


def save(directory: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """Write a model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    plain = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40}
    text = json.dumps(plain | {"torch_dtype": "bfloat16"} | config)
    (directory / "config.json").write_text(text, encoding="utf-8")
    return directory


def make_models(
    folder: Path, count: int = 3, dtype: torch.dtype = torch.bfloat16
) -> tuple[Path, list[Path]]:
    """Write a base and models near it, named ``a``, ``b``, ..."""
    base = draw(0, dtype=dtype)
    paths = [save(folder / chr(ord("a") + n), draw(n + 1, base, dtype)) for n in range(count)]
    return save(folder / "base", base), paths


def read(directory: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a directory."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def recipe(
    method: str,
    base: Path | None,
    models: list[Path],
    own: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a recipe in which every model has the same settings."""
    found: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(m), "parameters": dict(own or {})} for m in models],
    }
    if base is not None:
        found["base_model"] = str(base)
    return found | more


def assert_same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    """Assert that two models are the same to the bit."""
    assert sorted(a) == sorted(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        flat = [one.reshape(-1).view(torch.uint8) for one in (tensor, b[name])]
        assert torch.equal(*flat), name


def write_pair(directory: Path, prefix: str = "") -> Path:
    """Write an adapter over one matrix."""
    from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, write_adapter

    generator = torch.Generator().manual_seed(9)
    a = torch.randn(3, 24, generator=generator)
    b = torch.randn(70, 3, generator=generator)
    pairs = {f"{prefix}model.layers.1.mlp.up_proj": LowRankPair(a, b, 2.0)}
    write_adapter(directory, LowRankDelta(pairs), base_id="base")
    return directory
