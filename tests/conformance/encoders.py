"""Every encoder that comes with modalloy, as small as it goes and with random weights.

Those that open a model by its name get one that transformers saved; those that a parent brings the
weights of get them by a parent's directory. Either is offered as a parent, as a plugin would.
"""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file

from modalloy import API_VERSION, Parent, Registry, hookimpl
from modalloy.modality import resolve
from modalloy.parent import ENCODER_FILE, ComponentConfig
from modalloy.testing import tiny_parent

Config = dict[str, Any]

TOWER: Config = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
PIXELS: Config = {"mean": [0.5] * 3, "std": [0.25] * 3}
QWEN: Config = {"depth": 2, "num_heads": 2, "patch_size": 4}
QWEN_WIDE: Config = {**QWEN, "hidden_size": 32, "intermediate_size": 48}
QWEN_AUDIO: Config = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 128,
    "max_source_positions": 50,
}

TOWERS: MappingProxyType[str, tuple[str, Config]] = MappingProxyType(
    {
        "clip": ("vision", {"architecture": TOWER, **PIXELS}),
        "siglip": ("vision", {"architecture": TOWER, **PIXELS}),
        "qwen2-vl": (
            "vision",
            {"architecture": {**QWEN, "embed_dim": 32}, **PIXELS, "image_size": 40},
        ),
        "qwen2.5-vl": (
            "vision",
            {
                "architecture": {**QWEN_WIDE, "window_size": 16, "fullatt_block_indexes": [1]},
                **PIXELS,
                "image_size": 40,
            },
        ),
        "qwen3-vl": (
            "vision",
            {
                "architecture": {**QWEN_WIDE, "num_position_embeddings": 16},
                **PIXELS,
                "image_size": 40,
            },
        ),
        "video-llava": ("video", {"architecture": TOWER, **PIXELS}),
        "qwen2-audio": ("audio", {"architecture": QWEN_AUDIO, "seconds": 1.0}),
    }
)
"""Modality and configuration of the encoders whose weights are a parent's own."""


def saved_clip(folder: Path) -> Config:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return {"tokens": 16, "features": 32, "image_size": 32}


def saved_siglip(folder: Path) -> Config:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    SiglipVisionModel(SiglipVisionConfig(**TOWER)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return {"tokens": 16, "features": 32, "image_size": 32}


def saved_ast(folder: Path) -> Config:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    heads: Config = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ASTModel(ASTConfig(hidden_size=8, max_length=56, num_mel_bins=32, **heads)).save_pretrained(
        folder
    )
    ASTFeatureExtractor(max_length=56, num_mel_bins=32).save_pretrained(folder)
    return {"tokens": 5, "features": 8}


def saved_whisper(folder: Path) -> Config:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    tower: Config = {**QWEN_AUDIO, "num_mel_bins": 80, "max_source_positions": 100}
    decoder: Config = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    words: Config = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = WhisperConfig(**tower, **decoder, **words, decoder_start_token_id=1)
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)
    return {"tokens": 4, "features": 16}


def saved_videomae(folder: Path) -> Config:
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel

    frames: Config = {"num_frames": 8, "tubelet_size": 2, "patch_size": 16}
    VideoMAEModel(VideoMAEConfig(**{**TOWER, **frames})).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return {"tokens": 4, "features": 32, "frames": 8, "image_size": 32}


def saved_point_bert(folder: Path) -> Config:
    from modalloy_pointcloud.configuration import point_bert_config
    from modalloy_pointcloud.point_bert import PointBert

    sizes: Config = {"tokens": 9, "features": 12, "points": 64, "groups": 8, "group_size": 4}
    sizes |= {"patch_width": 16, "width": 12, "depth": 2, "heads": 3}
    state = PointBert(point_bert_config({"model": "none", **sizes})).state_dict()
    folder.mkdir()
    save_file(randomised(state), folder / "model.safetensors")
    return sizes


SAVED: MappingProxyType[str, tuple[str, Callable[[Path], Config]]] = MappingProxyType(
    {
        "clip": ("vision", saved_clip),
        "siglip": ("vision", saved_siglip),
        "ast": ("audio", saved_ast),
        "whisper": ("audio", saved_whisper),
        "videomae": ("video", saved_videomae),
        "point-bert": ("pointcloud", saved_point_bert),
    }
)
"""Modality, and what saves a model and tells the configuration, of those that open one by name."""


def randomised(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state with other numbers: small ones, and variances that are positive."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator) - (0 if "var" in name else 0.5)
        for name, tensor in sorted(state.items())
        if not name.endswith("num_batches_tracked")
    }


class Small:
    """Offers a parent of random weights for each encoder of a modality but the packaged ones'.

    Args:
        modality: Name of the modality.
        folder: Takes models and parents.
        registry: Supplies the encoders.
    """

    def __init__(self, modality: str, folder: Path, registry: Registry) -> None:
        self._folder = folder
        self._modality = modality
        torch.manual_seed(0)
        self._parents = [
            *(self._tower(n, c, registry) for n, (m, c) in TOWERS.items() if m == modality),
            *(self._named(n, s) for n, (m, s) in SAVED.items() if m == modality),
        ]

    def _named(self, name: str, save: Callable[[Path], Config]) -> Parent:
        model = self._folder / f"model-{name}"
        return self._parent(f"{name}-by-name", name, {**save(model), "model": str(model)})

    def _tower(self, name: str, config: Config, registry: Registry) -> Parent:
        parent = self._parent(f"{name}-tower", name, config)
        encoder = resolve(registry.encoder(name).build)(config)
        assert isinstance(parent.source, Path)
        save_file(randomised(encoder.state_dict()), parent.source / ENCODER_FILE)
        return parent

    def _parent(self, name: str, encoder: str, config: Config) -> Parent:
        directory = self._folder / name
        base = self._folder / "base"
        tiny_parent(
            directory,
            base,
            self._modality,
            encoder=ComponentConfig(type=encoder, config=config),
            name=name,
        )
        return Parent(
            name=name,
            api_version=API_VERSION,
            modality=self._modality,
            base=str(base),
            strategy="decoupled",
            source=directory,
        )

    @hookimpl
    def register_parents(self, register: Callable[[Parent], None]) -> None:
        """Offer them."""
        for parent in self._parents:
            register(parent)
