"""Video-LLaVA's video tower, against transformers' own on a tiny model."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from modalloy.connectors import mlp
from modalloy.errors import MissingComponentError, SpecError
from modalloy_video import llava_configuration, llava_encoder
from modalloy_video.clip import Clip

ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
CONFIG: dict[str, Any] = {
    "architecture": ARCHITECTURE,
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
}
HIDDEN = 24


def whole(layer: int = -2) -> Any:
    text = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    torch.manual_seed(0)
    config: Any = VideoLlavaConfig(
        vision_config={"model_type": "clip_vision_model", **ARCHITECTURE},
        text_config=text,
        image_token_index=60,
        video_token_index=61,
        vision_feature_layer=layer,
    )
    return VideoLlavaForConditionalGeneration(config).eval()


def loaded(config: dict[str, Any], model: Any) -> nn.Module:
    encoder = llava_encoder.build(config)
    tower = model.model.video_tower.state_dict()
    encoder.load_state_dict({f"model.{name}": t for name, t in tower.items()}, strict=True)
    return encoder


def clip(height: int, width: int, count: int = 8) -> Clip:
    values = np.random.default_rng(height + width).integers(0, 256, (count, height, width, 3))
    return Clip(values.astype(np.uint8), np.arange(count, dtype=np.float64), float(count))


@pytest.mark.parametrize(("layer", "frames"), [(-2, 8), (-1, 3), (1, 20)])
def test_a_video_llavas_tower_and_projector(layer: int, frames: int) -> None:
    model = whole(layer)
    config = {**CONFIG, "layer": layer, "frames": frames}
    encoder = loaded(config, model)
    connector = mlp.build({"depth": 2}, 32, HIDDEN)
    projector = model.model.multi_modal_projector
    names = {"linear_1": "0", "linear_2": "2"}
    connector.load_state_dict(
        {
            f"{names[n.split('.')[0]]}.{n.split('.')[1]}": t
            for n, t in projector.state_dict().items()
        }
    )
    inputs = torch.randn(2, frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder(pixel_values=inputs)
        found = connector(features)
        expected = model.model.get_video_features(inputs).pooler_output
    assert features.shape == (2, frames * 17, 32)
    assert features.shape[1:] == llava_configuration.video_llava_shape(config)
    # The embeddings of a prompt's videos one after another, as the whole model puts them in.
    torch.testing.assert_close(found.flatten(0, 1), expected.flatten(0, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 50), (91, 45), (20, 640), (11, 17)])
def test_frames_are_processed_as_video_llava_does(height: int, width: int) -> None:
    processor: Any = VideoLlavaImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=CONFIG["mean"],
        image_std=CONFIG["std"],
    )
    one = clip(height, width)
    inputs = llava_encoder.preprocess(one, CONFIG)
    assert list(inputs) == ["pixel_values"]
    assert inputs["pixel_values"].dtype == torch.float32
    # What it calls the pixels differs between releases.
    (expected,) = processor(images=list(one.frames), return_tensors="pt").values()
    torch.testing.assert_close(inputs["pixel_values"], expected.float(), rtol=1e-5, atol=1e-5)


def test_frames_are_taken_evenly() -> None:
    frames = np.repeat(np.arange(32, dtype=np.uint8), 32 * 32 * 3).reshape(32, 32, 32, 3)
    one = Clip(frames, np.arange(32, dtype=np.float64), 32.0)
    config = {**CONFIG, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    seen = llava_encoder.preprocess(one, config)["pixel_values"][:, 0, 0, 0]
    torch.testing.assert_close(seen, torch.arange(2, 34, 4).float())


def test_frozen_without_random_numbers_and_empty_until_loaded() -> None:
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    encoder = llava_encoder.build(CONFIG).train()
    assert torch.equal(torch.get_rng_state(), expected)
    inputs = torch.zeros(1, 8, 3, 32, 32)
    message = r"encoder 'video-llava': its configuration holds .* encoder\.safetensors"
    with pytest.raises(MissingComponentError, match=message) as caught:
        encoder(pixel_values=inputs)
    assert caught.value.component == "video-llava"
    tower = whole().half().model.video_tower.state_dict()
    encoder.load_state_dict({f"model.{name}": tensor for name, tensor in tower.items()})
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert torch.isfinite(encoder(pixel_values=inputs)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 65}, "frames must be from 1 to 64, which a clip keeps .* found 65"),
        ({"frames": 0}, "frames must be from 1 to 64"),
        ({"frames": 8.0}, "frames must be int, found 8.0"),
        ({"layer": 4}, "has 3 layers, so layer must be from -4 to 3, found 4"),
        ({"std": [0.5, 0.5, -0.5]}, "std must be positive"),
        ({"select": "patch"}, "select is not a known key"),
        ({"architecture": {}}, "architecture.hidden_size is missing"),
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any], message: str) -> None:
    for target in (llava_encoder.build, llava_configuration.video_llava_shape):
        with pytest.raises(SpecError, match=message) as caught:
            target({**CONFIG, **change})
        assert caught.value.subject == "encoder 'video-llava'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {}}, "architecture.auto_map is not a known key"),
        ({"_attn_implementation": "a/b"}, "architecture._attn_implementation is not a known key"),
        ({"trust_remote_code": True}, "architecture.trust_remote_code is not a known key"),
        ({"hidden_act": "eval"}, "architecture.hidden_act"),
        ({"hidden_size": 33}, "has 33 features, which do not divide into 4 heads"),
        ({"hidden_size": -4}, "architecture.hidden_size must be positive and at most 65536"),
        ({"num_hidden_layers": 300}, "num_hidden_layers must be positive and at most 256"),
        ({"patch_size": 64}, "architecture.patch_size 64 is larger than the picture, image_size 3"),
        ({"image_size": 4096}, "make 2097160 tokens a clip, at most 65536 are taken"),
        ({"hidden_size": 60_000, "num_hidden_layers": 90}, r"makes about [\d,]+ parameters, at m"),
    ],
)
def test_architectures_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        llava_configuration.video_llava_shape(
            {**CONFIG, "architecture": {**ARCHITECTURE, **change}}
        )
