"""Encoder ``videomae``, on tiny models of the real classes, saved and opened again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEImageProcessor,
    VideoMAEModel,
    VivitConfig,
    VivitModel,
)

from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy_video.clip import Clip
from modalloy_video.configuration import videomae_shape
from modalloy_video.videomae_encoder import build, preprocess

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
    "num_frames": 8,
    "tubelet_size": 2,
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 16,
}


def processor(side: int = 32) -> Any:
    square = {"height": side, "width": side}
    return VideoMAEImageProcessor(size={"shortest_edge": side}, crop_size=square)


def saved(directory: Path, family: Any = VideoMAEModel) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model = family(VideoMAEConfig(**SHAPE)).eval()
    model.save_pretrained(directory)
    processor().save_pretrained(directory)
    config = {"model": str(directory), "tokens": 4, "features": 32, "frames": 8, "image_size": 32}
    return model, config


def clip() -> Clip:
    frames = np.random.default_rng(0).integers(0, 256, (12, 40, 50, 3), dtype=np.uint8)
    return Clip(frames, np.arange(12, dtype=np.float64), 12.0)


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_steps_of_the_chosen_layer(tmp_path: Path) -> None:
    model, config = saved(tmp_path)
    inputs = preprocess(clip(), config)
    assert list(inputs) == ["pixel_values"]
    pixels = inputs["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((8, 3, 32, 32), torch.float32)
    with torch.no_grad():
        states = model(pixel_values=pixels[None], output_hidden_states=True).hidden_states
    assert len(states) == 4
    for layer in (-2, -1, 0, 3):
        # Four steps of 2x2 patches, step by step.
        steps = states[layer].reshape(1, 4, 4, 32).mean(2)
        features = build({**config, "layer": layer})(pixel_values=pixels[None])
        assert features.shape == (1, *videomae_shape(config)) == (1, 4, 32)
        torch.testing.assert_close(features, steps)
    two = build({**config, "tokens": 2})(pixels[None])
    steps = states[-2].reshape(1, 4, 4, 32).mean(2)
    torch.testing.assert_close(two, steps.reshape(1, 2, 2, 32).mean(2))
    every = build({**config, "tokens": 16})(pixels[None])
    torch.testing.assert_close(every, states[-2])


def test_steps_are_in_order_of_time(tmp_path: Path) -> None:
    _, config = saved(tmp_path)
    encoder = build({**config, "layer": 0})
    pixels = noise(1)
    before = encoder(pixels)[0]
    pixels[:, 4:6] += 1
    changed = (encoder(pixels)[0] - before).norm(dim=1)
    assert changed[2] > 0
    assert changed[[0, 1, 3]].max() == 0


def test_frozen_in_float32_whatever_was_stored(tmp_path: Path) -> None:
    model, config = saved(tmp_path)
    model.bfloat16().save_pretrained(tmp_path)
    encoder = build(config).train()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())


def test_the_models_own_processor_is_used(tmp_path: Path) -> None:
    _, config = saved(tmp_path)
    own = processor()
    own.image_mean = [0.0, 0.0, 0.0]
    own.image_std = [2.0, 2.0, 2.0]
    own.save_pretrained(tmp_path)
    grey = Clip(np.full((1, 3, 50, 3), 51, np.uint8), np.zeros(1), 1.0)
    pixels = preprocess(grey, config)["pixel_values"]
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.1))


def test_a_whole_checkpoint_serves(tmp_path: Path) -> None:
    whole, config = saved(tmp_path, VideoMAEForPreTraining)
    with torch.no_grad():
        states = whole.videomae(noise(1), output_hidden_states=True).hidden_states
    features = build(config)(noise(1))
    torch.testing.assert_close(features, states[-2].reshape(1, 4, 4, 32).mean(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 5}, "4 steps in time of 4 patches each, so tokens must be 4 at most, or 16"),
        (
            {"features": 64, "image_size": 64},
            "has features 32, image_size 32; the configuration says features 64, image_size 64",
        ),
        ({"frames": 16}, "has frames 8; the configuration says frames 16"),
        ({"frames": 65}, "frames is 65, but a clip keeps 64"),
        ({"layer": 4}, "has 3 layers, so layer must be from -4 to 3; the configuration says 4"),
        ({"tokens": 0}, "must be positive, found {'tokens': 0}"),
        ({"trust_remote_code": True}, "trust_remote_code is not a known key"),
    ],
)
def test_configurations_that_do_not_fit(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, config = saved(tmp_path)
    with pytest.raises(SpecError, match=message) as caught:
        build({**config, **change})
    assert caught.value.subject == "encoder 'videomae'"


def test_another_familys_model_is_refused(tmp_path: Path) -> None:
    _, config = saved(tmp_path)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    other = VivitConfig(**{name: SHAPE[name] for name in sizes}, image_size=32, num_frames=8)
    VivitModel(other).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="is a model of type 'vivit', expected 'videomae'"):
        build(config)


def test_missing_tensors_are_not_made_up(tmp_path: Path) -> None:
    _, config = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in sorted(tensors) if "layer.1.output.dense.weight" in name)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"lack 1 tensors, .*layer\.1\.output\.dense\.weight' f"):
        build(config)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    model, config = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"no model.safetensors but 'pytorch_model.bin': pickles"):
        build(config)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    _, config = saved(tmp_path)
    config["model"] = where = str(tmp_path / "nothing")
    with pytest.raises(MissingComponentError, match=r"the model of .*nothing' cannot") as caught:
        build(config)
    assert caught.value.component == where
    with pytest.raises(MissingComponentError, match=r"the image processor of .*' at revision 'v1'"):
        preprocess(clip(), {**config, "revision": "v1"})


def test_a_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    _, config = saved(tmp_path)
    processor(side=24).save_pretrained(tmp_path)
    message = r"makes clips of shape \(8, 3, 24, 24\), the configuration expects \(8, 3, 32, 32\)"
    with pytest.raises(SpecError, match=message):
        preprocess(clip(), config)
