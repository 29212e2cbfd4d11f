"""Tiny whole multimodal models of the families that are converted, tuned from a tiny base.

They are made by transformers' own classes. ``layout`` says under which names they are saved: as
transformers 5 writes them, as its modules are called at run time, or as releases before it did.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from modalloy.base import resolve_base
from tiny import tiny_tokenizer

IMAGE, VIDEO, AUDIO = 300, 301, 302
"""Placeholder ids of the models' own, beyond the tokenizer and inside the padded embedding."""

CLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES = {
    "llava": "qwen2",
    "llava_next": "qwen2",
    "video_llava": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen2_audio": "qwen2",
}
"""Tiny base that each family is tuned from here."""

LAYOUTS = ("saved", "runtime", "older")


def whole_model(
    path: Path,
    family: str,
    base: Path,
    *,
    layout: str = "saved",
    noise: float = 0.02,
    seed: int = 0,
) -> PreTrainedModel:
    """Write a model whose language model is the base's with noise, and return it in eval mode."""
    plain = resolve_base(base).model(torch.float32)
    text = plain.config.to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _KINDS[family](text).float()
        language = model.model.language_model
        tuned = {
            name.removeprefix("model."): value + noise * torch.randn_like(value)
            for name, value in plain.named_parameters()
        }
        head = tuned.pop("lm_head.weight", tuned["embed_tokens.weight"])
        language.load_state_dict(tuned)
        model.lm_head.load_state_dict({"weight": head})
        for name, parameter in model.named_parameters():
            if "language_model" not in name and "lm_head" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
    model.tie_weights()
    model.save_pretrained(path)
    if layout != "saved":
        _rename(path, model, layout)
    tiny_tokenizer().save_pretrained(path)
    return model.eval()


def _rename(path: Path, model: PreTrainedModel, layout: str) -> None:
    if layout == "runtime":
        tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
    else:
        from safetensors.torch import load_file

        tensors = {}
        for name, tensor in load_file(path / "model.safetensors").items():
            part, _, rest = name.partition(".")
            if part in ("vision_tower", "image_tower", "video_tower"):
                name = f"{part}.vision_model.{rest}"  # noqa: PLW2901
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit_config(path: Path, **changes: Any) -> None:
    """Change keys of a saved configuration."""
    data = json.loads((path / "config.json").read_text())
    data.update(changes)
    (path / "config.json").write_text(json.dumps(data))


def _mrope(text: dict[str, Any]) -> dict[str, Any]:
    rope = {**text["rope_parameters"], "mrope_section": [1, 1, 2]}
    return {**text, "rope_parameters": rope}


def _text(text: dict[str, Any]) -> dict[str, Any]:
    dropped = ("architectures", "model_type", "transformers_version", "dtype")
    return {k: v for k, v in text.items() if k not in dropped}


def _llava(text: dict[str, Any]) -> Any:
    config = LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return LlavaForConditionalGeneration(config)


def _llava_next(text: dict[str, Any]) -> Any:
    config = LlavaNextConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[28, 56]],
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return LlavaNextForConditionalGeneration(config)


def _video_llava(text: dict[str, Any]) -> Any:
    config = VideoLlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return VideoLlavaForConditionalGeneration(config)


def _qwen2_vl(text: dict[str, Any]) -> Any:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=_text(_mrope(text)),
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl(text: dict[str, Any]) -> Any:
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2}
    vision |= {"intermediate_size": 24, "fullatt_block_indexes": [1], "window_size": 56}
    config = Qwen2_5_VLConfig(
        text_config=_text(_mrope(text)),
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(text: dict[str, Any]) -> Any:
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2}
    vision |= {"intermediate_size": 24, "deepstack_visual_indexes": [0]}
    vision |= {"num_position_embeddings": 16}
    config = Qwen3VLConfig(
        text_config=_text(_mrope(text)),
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return Qwen3VLForConditionalGeneration(config)


def _qwen2_audio(text: dict[str, Any]) -> Any:
    encoder = Qwen2AudioEncoderConfig(
        num_mel_bins=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        d_model=16,
        max_source_positions=20,
    )
    config = Qwen2AudioConfig(
        text_config=text,
        audio_config=encoder,
        audio_token_index=AUDIO,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return Qwen2AudioForConditionalGeneration(config)


_KINDS: dict[str, Any] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "video_llava": _video_llava,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen2_audio": _qwen2_audio,
}
