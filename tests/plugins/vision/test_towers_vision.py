"""CLIP and SigLIP towers of whole models: made from a configuration, weights loaded into them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from modalloy.composition.encoders import EncoderStore
from modalloy.connectors import mlp
from modalloy.errors import MissingComponentError, SpecError
from modalloy.registry import Registry
from modalloy_vision import configuration, transformers_encoder

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 36,  # four patches a row, and 4 pixels that are not seen
    "patch_size": 8,
}
CLIP_PIXELS: dict[str, Any] = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
SIGLIP_PIXELS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"architecture": SHAPE, **CLIP_PIXELS},
    "siglip": {"architecture": SHAPE, **SIGLIP_PIXELS},
}
BUILD: dict[str, Any] = {
    "clip": transformers_encoder.build_clip,
    "siglip": transformers_encoder.build_siglip,
}
PREPROCESS: dict[str, Any] = {
    "clip": transformers_encoder.preprocess_clip,
    "siglip": transformers_encoder.preprocess_siglip,
}
SHAPES = {"clip": configuration.clip_shape, "siglip": configuration.siglip_shape}
KINDS = sorted(BUILD)
SIDES = [(36, 36), (50, 36), (36, 51), (97, 41), (40, 333), (20, 13), (1000, 7)]


def tower(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    if kind == "clip":
        return CLIPVisionModel(CLIPVisionConfig(**SHAPE, **more)).eval()
    return SiglipVisionModel(SiglipVisionConfig(**SHAPE, **more)).eval()


def loaded(encoder: nn.Module, model: nn.Module) -> nn.Module:
    """Load a tower's weights as a parent's file has them: ``model.`` and the class's own names."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    encoder.load_state_dict(weights, strict=True)
    return encoder


def pixels(count: int, side: int = 36) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("select", ["patch", "full"])
@pytest.mark.parametrize("layer", [-2, -1, 0, 3])
def test_features_are_the_towers_own(kind: str, select: str, layer: int) -> None:
    model = tower(kind)
    config = {**CONFIGS[kind], "select": select, "layer": layer}
    encoder = loaded(BUILD[kind](config), model)
    inputs = pixels(2)
    with torch.no_grad():
        states = model(pixel_values=inputs, output_hidden_states=True).hidden_states[layer]
    expected = states if select == "full" else states[:, -16:]
    features = encoder(pixel_values=inputs)
    assert features.shape == (2, *SHAPES[kind](config))
    assert torch.equal(features, expected)


def llava(vision: Any, strategy: Any, layer: int) -> Any:
    text = {
        "model_type": "llama",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    torch.manual_seed(0)
    config: Any = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=60,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    ("kind", "strategy", "select", "layer"),
    [
        ("clip", "default", "patch", -2),
        ("clip", "full", "full", -2),
        ("siglip", "full", "full", -1),
    ],
)
def test_a_llavas_tower_and_projector(kind: str, strategy: str, select: str, layer: int) -> None:
    settings: Any = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[kind]
    whole = llava(settings(**SHAPE), strategy, layer)
    config = {**CONFIGS[kind], "select": select, "layer": layer}
    encoder = loaded(BUILD[kind](config), whole.model.vision_tower)
    connector = mlp.build({"depth": 2}, 32, 24)
    projector = whole.model.multi_modal_projector.state_dict()
    names = {"linear_1": "0", "linear_2": "2"}
    connector.load_state_dict(
        {f"{names[n.split('.')[0]]}.{n.split('.')[1]}": t for n, t in projector.items()}
    )
    inputs = pixels(2)
    with torch.no_grad():
        expected = torch.stack(list(whole.get_image_features(inputs).pooler_output))
        found = connector(encoder(pixel_values=inputs))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), SIDES)
def test_pictures_are_processed_as_the_family_does(kind: str, width: int, height: int) -> None:
    square = {"height": 36, "width": 36}
    options = {"image_mean": CONFIGS[kind]["mean"], "image_std": CONFIGS[kind]["std"]}
    processor: Any = (
        CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=square, **options)
        if kind == "clip"
        else SiglipImageProcessorPil(size=square, **options)
    )
    one = picture(width, height)
    expected = processor(images=one, return_tensors="pt")["pixel_values"][0]
    inputs = PREPROCESS[kind](one, CONFIGS[kind])
    assert list(inputs) == ["pixel_values"]
    assert inputs["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(inputs["pixel_values"], expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(3000, 20), (17, 2000)])
def test_a_thin_picture_is_cropped_without_scaling_what_is_cropped_away(
    width: int, height: int
) -> None:
    options = {"image_mean": CLIP_PIXELS["mean"], "image_std": CLIP_PIXELS["std"]}
    square = {"height": 36, "width": 36}
    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=square, **options)
    # Slopes without edges: where rows and columns are scaled in another order, sums that leave the
    # range of a byte are cut off at another place.
    slopes = np.add.outer(np.arange(height), np.arange(width))[..., None] * (0.1, 0.2, 0.3)
    one = Image.fromarray((np.abs(slopes % 400 - 200)).astype(np.uint8))
    expected = processor(images=one, return_tensors="pt")["pixel_values"][0].float()
    found = PREPROCESS["clip"](one, CONFIGS["clip"])["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255 / 0.26)
    assert found.std() > 0.01


def test_a_picture_of_one_row_needs_no_huge_memory() -> None:
    one = Image.new("RGB", (20_000_000, 1), "orange")
    found = PREPROCESS["clip"](one, CONFIGS["clip"])["pixel_values"]
    torch.testing.assert_close(found, found[:, :1, :1].expand(3, 36, 36))


def test_padding_keeps_a_picture_whole_on_its_mean() -> None:
    one = Image.new("RGB", (100, 50), "white")
    found = PREPROCESS["clip"](one, {**CONFIGS["clip"], "fit": "pad"})["pixel_values"]
    assert (found[:, 9:27] > 1.5).all()
    assert (found[:, :9].abs() < 1 / 255 / 0.25).all()
    assert (found[:, 27:].abs() < 1 / 255 / 0.25).all()


def test_the_filter_can_be_another() -> None:
    options = {"image_mean": SIGLIP_PIXELS["mean"], "image_std": SIGLIP_PIXELS["std"]}
    square = {"height": 36, "width": 36}
    processor: Any = SiglipImageProcessorPil(size=square, resample=2, **options)
    one = picture(70, 50)
    expected = processor(images=one, return_tensors="pt")["pixel_values"][0].float()
    config = {**CONFIGS["siglip"], "resample": "bilinear"}
    found = PREPROCESS["siglip"](one, config)["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, PREPROCESS["siglip"](one, CONFIGS["siglip"])["pixel_values"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_composition_loads_a_parents_file(kind: str, tmp_path: Path) -> None:
    config, model = CONFIGS[kind], tower(kind).half()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "encoder.safetensors")
    encoder = {"type": kind, "config": config, "shape": [*SHAPES[kind](config)]}
    store = EncoderStore(
        {"vision": {"content_type": "image", "encoder": encoder}}, Registry.discover()
    )
    store.files["vision"] = tmp_path / "encoder.safetensors"
    with torch.no_grad():
        states = model.float()(pixel_values=pixels(2), output_hidden_states=True).hidden_states
    features = store.run("vision", {"pixel_values": pixels(2)}, torch.device("cpu"))
    assert torch.equal(features, states[-2][:, -16:])


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_without_its_weights_refuses_to_encode(kind: str) -> None:
    encoder = BUILD[kind](CONFIGS[kind])
    message = rf"encoder '{kind}': its configuration holds an architecture .* encoder\.safetensors"
    with pytest.raises(MissingComponentError, match=message) as caught:
        encoder(pixel_values=pixels(1))
    assert caught.value.component == kind
    incomplete = {n: t for n, t in encoder.state_dict().items() if "layers.1" not in n}
    encoder.load_state_dict(incomplete, strict=False)
    with pytest.raises(MissingComponentError):
        encoder(pixel_values=pixels(1))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_in_float32_and_no_random_numbers_are_drawn(kind: str) -> None:
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    encoder = BUILD[kind](CONFIGS[kind])
    assert torch.equal(torch.get_rng_state(), expected)
    loaded(encoder, tower(kind).bfloat16()).train()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())


def test_siglip_without_a_head() -> None:
    model = tower("siglip", vision_use_head=False)
    config = {
        "architecture": {**SHAPE, "vision_use_head": False},
        **SIGLIP_PIXELS,
    }
    encoder = loaded(BUILD["siglip"](config), model)
    assert encoder(pixel_values=pixels(1)).shape == (1, 16, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "m.M"}}, "architecture.auto_map is not a known key"),
        ({"_attn_implementation": "a/b"}, "architecture._attn_implementation is not a known key"),
        ({"trust_remote_code": True}, "architecture.trust_remote_code is not a known key"),
        ({"hidden_act": "os.system"}, "architecture.hidden_act"),
        ({"hidden_size": "32"}, "architecture.hidden_size must be int, found '32'"),
        ({"hidden_size": 33}, "has 33 features, which do not divide into 4 heads"),
        ({"hidden_size": 0}, "architecture.hidden_size must be positive and at most 65536"),
        ({"num_hidden_layers": 1000}, "architecture makes 1000 layers, at most 256 are taken"),
        ({"image_size": 60_000, "patch_size": 2}, "makes 900000000 tokens, at most 65536"),
        ({"patch_size": 64}, "architecture.patch_size 64 is larger than the picture, image_size 3"),
        (
            {"hidden_size": 1 << 14, "intermediate_size": 1 << 16, "num_hidden_layers": 200},
            r"makes about 859,\d+,\d+,\d+ parameters|parameters, at most 10,000,000,000",
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_architectures_that_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    config = {**CONFIGS[kind], "architecture": {**SHAPE, **change}}
    for target in (BUILD[kind], SHAPES[kind]):
        with pytest.raises(SpecError, match=message) as caught:
            target(config)
        assert caught.value.subject == f"encoder {kind!r}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 4}, "has 3 layers, so layer must be from -4 to 3, found 4"),
        ({"select": "cls"}, "select"),
        ({"fit": "squash"}, "fit"),
        ({"std": [0.5, 0.0, 0.5]}, r"std must be positive, found \[0.5, 0.0, 0.5\]"),
        ({"mean": [0.5]}, "mean"),
        ({"model": "openai/clip"}, "model is not a known key"),
        ({"tokens": 16}, "tokens is not a known key"),
        ({"architecture": []}, "architecture"),
        ({"architecture": None}, "architecture"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_configurations_that_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        SHAPES[kind]({**CONFIGS[kind], **change})
    assert caught.value.subject == f"encoder {kind!r}"


def test_the_class_token_of_a_model_that_is_opened_by_name(tmp_path: Path) -> None:
    model = tower("clip")
    model.save_pretrained(tmp_path)
    config = {
        "model": str(tmp_path),
        "tokens": 17,
        "features": 32,
        "image_size": 36,
        "select": "full",
    }
    inputs = pixels(1)
    with torch.no_grad():
        states = model(pixel_values=inputs, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(BUILD["clip"](config)(inputs), states)
    with pytest.raises(SpecError, match="has tokens 17; the configuration says tokens 16"):
        BUILD["clip"]({**config, "tokens": 16})
