"""Tiny ModelCompose checkpoints, their authors' way of merging them, and their forward pass.

Written from what the released code does, sharing nothing with ours: names of tensors, the layers'
forward, the Q-Former and the merge. ``oracle`` is the plain transformers model with hooks.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HIDDEN, LAYERS, RANK, ALPHA = 32, 2, 4, 6
WIDTH, POSITIONS = 24, 600
PROJECTIONS = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}
FEATURES = {"vision": 6, "audio": 5, "video": 7, "point": 4}
ENCODERS = {
    "vision": "model/clip-vit-large-patch14-336",
    "audio": "model/beats/BEATs_iter3_plus_AS2M.pt",
    "video": "model/LanguageBind_Video_merge",
    "point": "/somewhere/else/point_bert_v1.2.pt",
}
PROJECTORS = ("linear", "mlp2x_gelu", "qformer_3N_2L")
ADAPTERS = {
    "same": ("default",),
    "modal": ("own",),
    "modal+language": ("default", "own"),
    "none": (),
}
State = dict[str, torch.Tensor]


def lora_state(adapter: str, draw: torch.Generator) -> State:
    state = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in PROJECTIONS.items():
            stem = f"model.layers.{layer}.{name}.lora_"
            state[f"{stem}A.{adapter}.weight"] = 0.3 * torch.randn(RANK, columns, generator=draw)
            state[f"{stem}B.{adapter}.weight"] = 0.3 * torch.randn(rows, RANK, generator=draw)
    return state


def projector_shapes(projector: str, features: int) -> dict[str, tuple[int, ...]]:
    if projector == "linear":
        return {"weight": (HIDDEN, features), "bias": (HIDDEN,)}
    if projector == "mlp2x_gelu":
        return {
            "0.weight": (HIDDEN, features),
            "0.bias": (HIDDEN,),
            "2.weight": (HIDDEN, HIDDEN),
            "2.bias": (HIDDEN,),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "audio_query_tokens": (1, 3, WIDTH),
        "audio_position_embedding.weight": (POSITIONS, features),
        "audio_llama_proj.weight": (HIDDEN, WIDTH),
        "audio_llama_proj.bias": (HIDDEN,),
    }
    bert = "audio_Qformer.bert"
    for kind in ("weight", "bias"):
        shapes[f"{bert}.embeddings.LayerNorm.{kind}"] = (WIDTH,)
    for number in range(2):
        layer = f"{bert}.encoder.layer.{number}"
        for block, source in (("attention", WIDTH), ("crossattention", features)):
            inputs = {"self.query": WIDTH, "self.key": source, "self.value": source}
            for part, size in {**inputs, "output.dense": WIDTH}.items():
                shapes[f"{layer}.{block}.{part}.weight"] = (WIDTH, size)
                shapes[f"{layer}.{block}.{part}.bias"] = (WIDTH,)
            for kind in ("weight", "bias"):
                shapes[f"{layer}.{block}.output.LayerNorm.{kind}"] = (WIDTH,)
                shapes[f"{layer}.output_query.LayerNorm.{kind}"] = (WIDTH,)
        shapes[f"{layer}.intermediate_query.dense.weight"] = (50, WIDTH)
        shapes[f"{layer}.intermediate_query.dense.bias"] = (50,)
        shapes[f"{layer}.output_query.dense.weight"] = (WIDTH, 50)
        shapes[f"{layer}.output_query.dense.bias"] = (WIDTH,)
    return shapes


def make_config(modality: str, strategy: str | None, projector: str) -> dict[str, Any]:
    middle = "" if modality == "vision" else f"{modality}_"
    config: dict[str, Any] = {
        "_name_or_path": "/home/somebody/vicuna-7b-v1.5",
        "model_type": "multimodal",
        "architectures": ["MultimodalLlamaForCausalLM"],
        "lora_strategy": strategy,
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "local_prefix_tokens": 2,
        "local_suffix_tokens": 3,
        "layer_local_tokens": False,
        "reset_scaling_weights": None,
        "merge_default_weights": None,
        **dict.fromkeys((f"mm_{name}_encoder" for name in ENCODERS), None),
        f"mm_{modality}_encoder": ENCODERS[modality],
        f"mm_{middle}hidden_size": FEATURES[modality],
        f"mm_{middle}projector_type": projector,
    }
    if modality in ("vision", "video"):
        config[f"mm_{modality}_select_layer"] = -2
        config[f"mm_{modality}_select_feature"] = "patch"
    return config


def make_state(modality: str, strategy: str | None, projector: str, seed: int) -> State:
    draw = torch.Generator().manual_seed(seed)
    state: State = {}
    for name in ADAPTERS[strategy or "none"]:
        state |= lora_state(modality if name == "own" else name, draw)
    for key, shape in projector_shapes(projector, FEATURES[modality]).items():
        full = f"model.modal_projectors.{modality}.{key}"
        state[full] = 0.4 * torch.randn(shape, generator=draw)
    for owner in ("default", modality):
        state[f"prefix_tokens.{owner}"] = torch.randn(1, 2, HIDDEN, generator=draw)
        state[f"suffix_tokens.{owner}"] = torch.randn(1, 3, HIDDEN, generator=draw)
    return state


def save(
    path: Path, state: State, config: Mapping[str, Any], file: str = "adapter_model.bin"
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if file.endswith(".bin"):
        torch.save(state, path / file)
    else:
        save_file(state, path / file)
    return path


def write_checkpoint(
    path: Path,
    modality: str = "vision",
    strategy: str | None = "modal+language",
    projector: str = "linear",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A single checkpoint, in safetensors so that no process has to be started to read it."""
    config = {**make_config(modality, strategy, projector), **changes}
    state = make_state(modality, strategy, projector, seed)
    return save(path, state, config, "adapter_model.safetensors")


def merge(parts: Sequence[tuple[State, dict[str, Any]]], strategy: str) -> tuple[State, dict]:
    """What the authors' merge script makes of checkpoints, for ``sum``, ``mean``, ``online-...``.

    ``convert-`` before a strategy duplicates what ``same`` trained into the modality's own place.
    """
    parts = [(dict(state), dict(config)) for state, config in parts]
    modalities = [next(m for m in ENCODERS if config[f"mm_{m}_encoder"]) for _, config in parts]
    if strategy.startswith("convert-"):
        strategy = strategy.removeprefix("convert-")
        for (state, config), modality in zip(parts, modalities, strict=True):
            config["lora_strategy"] = "modal+language"
            copies = {k: v for k, v in state.items() if ".lora_" in k and ".default" in k}
            state |= {k.replace("default", modality): v.clone() for k, v in copies.items()}
    merged: State = {}
    for key in sorted({key for state, _ in parts for key in state}):
        held = [
            (m, state[key]) for m, (state, _) in zip(modalities, parts, strict=True) if key in state
        ]
        if len(held) > 1 and strategy.startswith("online-merge-"):
            merged |= {key.replace("default", f"default-{m}"): value for m, value in held}
        else:
            total = torch.stack([value for _, value in held]).sum(0)
            merged[key] = total / (len(held) if strategy == "mean" else 1)
    config: dict[str, Any] = {}
    for _, one in parts:
        config |= {key: config.get(key) or value for key, value in one.items()}
    kind = strategy.removeprefix("online-merge-")
    if kind.startswith("reset-"):
        config["reset_scaling_weights"] = kind.removeprefix("reset-")
    elif kind != strategy:
        config["merge_default_weights"] = kind
    return merged, config


def factors(config: Mapping[str, Any]) -> dict[str, float]:
    text = config.get("reset_scaling_weights") or ""
    return {n: float(v) for n, _, v in (part.partition("=") for part in text.split(",") if part)}


def oracle(
    base: Path,
    state: State,
    config: Mapping[str, Any],
    embeds: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Logits of the released model.

    Args:
        base: The LLM.
        state: Of the checkpoint, its own names.
        config: Of the checkpoint.
        embeds: ``(B, T, D)``.
        masks: ``(B, T)`` bool: tokens of each modality, learned tokens included.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    reset = factors(config)
    routed = config["lora_strategy"] in ("modal", "modal+language") and bool(masks)
    anything = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    for mask in masks.values() if routed else ():
        anything = anything | mask
    streams = {"default": ~anything, **(masks if routed else {})}

    def branch(module: str, adapter: str, x: torch.Tensor) -> torch.Tensor | float:
        a = state.get(f"{module}.lora_A.{adapter}.weight")
        b = state.get(f"{module}.lora_B.{adapter}.weight")
        if a is None or b is None:
            return 0.0
        return (x @ a.T @ b.T) * (config["lora_alpha"] / config["lora_r"] * reset.get(adapter, 1.0))

    def make_hook(module: str) -> Any:
        def hook(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            for stream, mask in streams.items():
                several = [f"default-{m}" for m in masks_of(config)]
                online = stream == "default" and any("default-" in name for name in reset)
                for adapter in several if online else [stream]:
                    out = out + mask[..., None] * branch(module, adapter, args[0])
            return out

        return hook

    for layer in range(LAYERS):
        for name in PROJECTIONS:
            module = f"model.layers.{layer}.{name}"
            model.get_submodule(module).register_forward_hook(make_hook(module))
    with torch.no_grad():
        return model(inputs_embeds=embeds).logits


def masks_of(config: Mapping[str, Any]) -> list[str]:
    return [name for name in ENCODERS if config.get(f"mm_{name}_encoder")]


def connect(state: State, modality: str, projector: str, features: torch.Tensor) -> torch.Tensor:
    """Embeddings of an input's features ``(N, K, F)``, learned tokens around them."""
    stem = f"model.modal_projectors.{modality}."
    own = {key.removeprefix(stem): value for key, value in state.items() if key.startswith(stem)}
    if projector == "linear":
        body = F.linear(features, own["weight"], own["bias"])
    elif projector == "mlp2x_gelu":
        middle = F.gelu(F.linear(features, own["0.weight"], own["0.bias"]))
        body = F.linear(middle, own["2.weight"], own["2.bias"])
    else:
        body = qformer(own, features)
    ends = [state[f"{end}_tokens.{modality}"] for end in ("prefix", "suffix")]
    before, after = (end.expand(len(features), -1, -1) for end in ends)
    return torch.cat([before, body, after], dim=1)


def qformer(own: State, features: torch.Tensor) -> torch.Tensor:
    """BERT with cross-attention in every layer, over learned queries; 12 heads."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), own[f"{name}.weight"], own[f"{name}.bias"], 1e-12)

    def attend(name: str, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        split = [
            linear(f"{name}.self.{part}", given).unflatten(-1, (12, WIDTH // 12)).transpose(1, 2)
            for part, given in (("query", x), ("key", source), ("value", source))
        ]
        scores = split[0] @ split[1].transpose(-1, -2) / math.sqrt(WIDTH // 12)
        mixed = (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)
        return norm(f"{name}.output.LayerNorm", linear(f"{name}.output.dense", mixed) + x)

    bert = "audio_Qformer.bert"
    placed = features + own["audio_position_embedding.weight"][: features.shape[1]]
    x = norm(f"{bert}.embeddings.LayerNorm", own["audio_query_tokens"])
    x = x.expand(len(features), -1, -1)
    for number in range(2):
        layer = f"{bert}.encoder.layer.{number}"
        x = attend(f"{layer}.attention", x, x)
        x = attend(f"{layer}.crossattention", x, placed)
        wide = F.gelu(linear(f"{layer}.intermediate_query.dense", x))
        x = norm(f"{layer}.output_query.LayerNorm", linear(f"{layer}.output_query.dense", wide) + x)
    return linear("audio_llama_proj", x)
