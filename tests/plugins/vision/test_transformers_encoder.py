"""Encoders ``clip`` and ``siglip``, on tiny models of the real classes, saved and opened again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy_vision import configuration, transformers_encoder

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
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


def vision_model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "clip":
        return CLIPVisionModel(CLIPVisionConfig(**SHAPE)).eval()
    return SiglipVisionModel(SiglipVisionConfig(**SHAPE)).eval()


def image_processor(kind: str, side: int = 32) -> Any:
    square = {"height": side, "width": side}
    if kind == "clip":
        return CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square)
    return SiglipImageProcessor(size=square)


def saved(kind: str, directory: Path) -> tuple[Any, dict[str, Any]]:
    model = vision_model(kind)
    model.save_pretrained(directory)
    image_processor(kind).save_pretrained(directory)
    return model, {"model": str(directory), "tokens": 16, "features": 32, "image_size": 32}


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", KINDS)
def test_patches_of_the_chosen_layer(kind: str, tmp_path: Path) -> None:
    model, config = saved(kind, tmp_path)
    inputs = PREPROCESS[kind](picture(), config)
    assert list(inputs) == ["pixel_values"]
    pixels = inputs["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.float32)
    with torch.no_grad():
        states = model(pixel_values=pixels[None], output_hidden_states=True).hidden_states
    for layer in (-2, -1, 0, 3):
        encoder = BUILD[kind]({**config, "layer": layer})
        features = encoder(pixel_values=pixels[None])
        assert features.shape == (1, *SHAPES[kind](config)) == (1, 16, 32)
        torch.testing.assert_close(features, states[layer][:, -16:])
    assert torch.equal(BUILD[kind](config)(pixels[None]), BUILD[kind](config)(pixels[None]))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_in_float32_whatever_was_stored(kind: str, tmp_path: Path) -> None:
    model, config = saved(kind, tmp_path)
    model.bfloat16().save_pretrained(tmp_path)
    encoder = BUILD[kind](config).train()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_own_processor_is_used(kind: str, tmp_path: Path) -> None:
    _, config = saved(kind, tmp_path)
    processor = image_processor(kind)
    processor.image_mean = [0.0, 0.0, 0.0]
    processor.image_std = [2.0, 2.0, 2.0]
    processor.save_pretrained(tmp_path)
    grey = Image.new("RGB", (50, 40), (51, 51, 51))
    pixels = PREPROCESS[kind](grey, config)["pixel_values"]
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.1))


def test_a_whole_clip_checkpoint_serves(tmp_path: Path) -> None:
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    whole: Any = CLIPModel(CLIPConfig(vision_config=SHAPE, text_config=text)).eval()
    whole.save_pretrained(tmp_path)
    config = {"model": str(tmp_path), "tokens": 16, "features": 32, "image_size": 32}
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = whole.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    features = transformers_encoder.build_clip(config)(pixels)
    torch.testing.assert_close(features, states[-2][:, 1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 17}, "has tokens 16; the configuration says tokens 17"),
        (
            {"features": 64, "image_size": 64},
            "has features 32, image_size 32; the configuration says features 64, image_size 64",
        ),
        ({"layer": 4}, "has 3 layers, so layer must be from -4 to 3; the configuration says 4"),
        ({"layer": -5}, "has 3 layers, so layer must be from -4 to 3"),
        ({"tokens": 0}, "must be positive, found {'tokens': 0}"),
        ({"trust_remote_code": True}, "trust_remote_code is not a known key"),
    ],
)
def test_configurations_that_do_not_fit(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, config = saved(kind, tmp_path)
    with pytest.raises(SpecError, match=message) as caught:
        BUILD[kind]({**config, **change})
    assert caught.value.subject == f"encoder {kind!r}"


@pytest.mark.parametrize("kind", KINDS)
def test_another_familys_model_is_refused(kind: str, tmp_path: Path) -> None:
    other = {"clip": "siglip", "siglip": "clip"}[kind]
    _, config = saved(other, tmp_path)
    message = f"is a model of type '{other}_vision_model', expected '{kind}' or"
    with pytest.raises(SpecError, match=message):
        BUILD[kind](config)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_tensors_are_not_made_up(kind: str, tmp_path: Path) -> None:
    _, config = saved(kind, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in sorted(tensors) if "layers.1.mlp.fc1.weight" in name)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"lack 1 tensors, .*layers\.1\.mlp\.fc1\.weight' first"):
        BUILD[kind](config)


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_weights_are_not_opened(kind: str, tmp_path: Path) -> None:
    model, config = saved(kind, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"no model.safetensors but 'pytorch_model.bin': pickles"):
        BUILD[kind](config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_is_not_there(kind: str, tmp_path: Path) -> None:
    where = str(tmp_path / "nothing")
    config = {"model": where, "tokens": 16, "features": 32, "image_size": 32}
    with pytest.raises(MissingComponentError, match=r"the model of .*nothing' cannot") as caught:
        BUILD[kind](config)
    assert caught.value.component == where
    with pytest.raises(MissingComponentError, match=r"the image processor of .*' at revision 'v1'"):
        PREPROCESS[kind](picture(), {**config, "revision": "v1"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_processor_of_another_size_is_refused(kind: str, tmp_path: Path) -> None:
    _, config = saved(kind, tmp_path)
    image_processor(kind, side=24).save_pretrained(tmp_path)
    message = r"makes pictures of shape \(3, 24, 24\), image_size 32 expects \(3, 32, 32\)"
    with pytest.raises(SpecError, match=message):
        PREPROCESS[kind](picture(), config)
