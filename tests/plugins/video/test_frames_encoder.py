"""Encoder ``frames``: what the backbone sees, what it returns, and where its weights come from."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy_video import frames_encoder
from modalloy_video.clip import Clip
from modalloy_video.configuration import DEFAULT_FRAMES, frames_shape
from modalloy_video.frames_encoder import FramesEncoder, build, preprocess
from modalloy_video.pixels import fit_squares

SMALL: dict[str, Any] = {**DEFAULT_FRAMES, "image_size": 64}


@pytest.fixture(scope="module")
def encoder() -> FramesEncoder:
    return build(SMALL)


def clip_of(frames: Any) -> Clip:
    count = len(frames)
    return Clip(np.asarray(frames), np.arange(count, dtype=np.float64), float(count))


def noise(clips: int, frames: int = 8) -> torch.Tensor:
    return torch.randn(clips, frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_whole_frames_are_kept() -> None:
    frames = np.zeros((2, 25, 100, 3), np.uint8)
    frames[1] = (0, 0, 255)
    squares = fit_squares(frames, 40)
    assert squares.shape == (2, 40, 40, 3)
    assert (squares[:, :15] == 255).all()
    assert (squares[:, 25:] == 255).all()
    assert (squares[0, 15:25] == 0).all()
    assert (squares[1, 15:25] == (0, 0, 255)).all()
    for shape in ((1, 1, 640, 3), (1, 640, 1, 3), (1, 1, 1, 3)):
        assert fit_squares(np.zeros(shape, np.uint8), 64).shape == (1, 64, 64, 3)


def test_preprocess_takes_even_frames_in_order() -> None:
    frames = np.arange(16, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    config = {**SMALL, "mean": [0.0, 0.0, 0.0], "std": [1.0, 0.5, 0.25]}
    inputs = preprocess(clip_of(frames), config)
    assert list(inputs) == ["pixel_values"]
    pixels = inputs["pixel_values"]
    assert pixels.shape == (8, 3, 64, 64)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    taken = torch.arange(1, 16, 2) / 255
    torch.testing.assert_close(pixels[:, 0, 0, 0], taken)
    torch.testing.assert_close(pixels[:, 2, 9, 9], 4 * taken)
    assert torch.equal(pixels, preprocess(clip_of(frames), config)["pixel_values"])


def test_shape_and_dtype(encoder: FramesEncoder) -> None:
    features = encoder(pixel_values=noise(2))
    assert features.shape == (2, *frames_shape(SMALL)) == (2, 4, 1280)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_tokens_are_means_of_spans_in_order(encoder: FramesEncoder) -> None:
    pixels = noise(1)
    tokens = encoder(pixels)[0]
    # float32 through 50 layers in batches of 8 and 2: 1e-5 of the norm, as measured, with room.
    for index in range(4):
        maps: Any = encoder.backbone
        two = maps.forward_features(pixels[0, 2 * index : 2 * index + 2]).mean((0, 2, 3))
        assert (tokens[index] - two).norm() < 1e-4 * two.norm()
    assert (tokens[0] - tokens[1]).norm() > 0.05 * tokens[0].norm()
    backwards = encoder(pixels.flip(1))[0]
    assert (backwards.flip(0) - tokens).norm() < 1e-4 * tokens.norm()


def test_a_batch_gives_what_each_clip_gives_alone(encoder: FramesEncoder) -> None:
    # Even inside a model in training mode; 5 clips of 8 frames do not divide into chunks of 16.
    encoder.train()
    pixels = noise(5)
    together = encoder(pixels)
    alone = torch.cat([encoder(one[None]) for one in pixels])
    assert (together - alone).abs().max() < 1e-4 * alone.abs().max()
    assert not encoder.backbone.training


def test_frames_go_through_in_chunks(
    encoder: FramesEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def features(frames: torch.Tensor) -> torch.Tensor:
        sizes.append(len(frames))
        return frames.mean((2, 3))

    monkeypatch.setattr(encoder, "frame_features", features)
    assert encoder(noise(5)).shape == (5, 4, 3)
    assert sizes == [16, 16, 8]


def test_the_packaged_weights_are_the_vision_plugins() -> None:
    """Where both are at hand: one backbone, so that a frame and a picture look alike."""
    vision = pytest.importorskip("modalloy_vision.timm_encoder")
    file = "tf_efficientnet_lite0.safetensors"
    ours, theirs = (load_file(one.WEIGHTS / file) for one in (frames_encoder, vision))
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_packaged_weights_were_trained(encoder: FramesEncoder) -> None:
    """Random weights of this architecture map any two frames to almost the same features."""
    blank = preprocess(clip_of(np.full((1, 64, 64, 3), 128, np.uint8)), SMALL)["pixel_values"]
    rows, columns = np.mgrid[:64, :64]
    disc = (((rows - 32) ** 2 + (columns - 32) ** 2) < 400)[..., None] * np.uint8([200, 90, 20])
    shown = preprocess(clip_of(disc[None]), SMALL)["pixel_values"]
    first, second = encoder(torch.stack([blank, shown]))[:, 0]
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) < 0.5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 12, "depth": 1, "num_heads": 2}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 1, 1)},
        ),
    ],
)
def test_backbones_of_other_kinds(name: str, options: dict[str, Any]) -> None:
    backbone: Any = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    pixels = noise(2, frames=2)
    raw = backbone.forward_features(pixels.flatten(0, 1))
    if name.startswith("vit"):
        means = raw[:, 1:].mean(1)
    else:
        means = raw.mean((1, 2)) if name.startswith("swin") else raw.mean((2, 3))
    result = FramesEncoder(backbone, 2)(pixels)
    torch.testing.assert_close(result, means.unflatten(0, (2, 2)))


def test_unusable_features_are_refused() -> None:
    flat: Any = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    flat.forward_features = lambda pixels: pixels.mean((2, 3))
    with pytest.raises(SpecError, match=r"ResNet returns features of shape \(8, 3\), neither"):
        FramesEncoder(flat, 4)(noise(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tf_efficientnet_lite00"}, "has no model 'tf_efficientnet_lite00'"),
        ({"features": 320}, "has 1280 features, the configuration says 320; set features to 1280"),
        ({"tokens": 9}, "8 frames cannot be averaged to 9 tokens; set tokens to 8 or fewer"),
        ({"frames": 65}, "frames is 65, but a clip keeps 64 once it is read"),
        ({"image_size": 10**9}, "must be at most 65536, found {'image_size': 1000000000}"),
        ({"frames": 0}, "must be positive, found {'frames': 0}"),
        ({"std": [0.0, 1.0, 1.0]}, "must be positive, found {'std': 0.0}"),
        ({"image_size": "224"}, "image_size must be int, found '224'"),
        ({"weights": "hub"}, "weights"),
        ({"grid": [2, 2]}, "grid is not a known key"),
    ],
)
def test_bad_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        build({**SMALL, **change})
    assert caught.value.subject == "encoder 'frames'"


def test_weights_that_are_not_packaged() -> None:
    message = (
        r"no weights of 'resnet10t' are packaged \(packaged: tf_efficientnet_lite0\); "
        "set weights to 'timm'"
    )
    with pytest.raises(MissingComponentError, match=message) as caught:
        build({**SMALL, "model": "resnet10t", "features": 512})
    assert caught.value.component == "resnet10t"


def stored(folder: Path) -> Any:
    """Save a backbone as timm's own Hub repositories hold one, with its classifier."""
    torch.manual_seed(3)
    model: Any = timm.create_model("resnet10t", pretrained=False)
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def test_weights_from_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stored(tmp_path)
    asked = []

    def fetch(repository: str, **options: Any) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    config = {**SMALL, "model": "resnet10t", "features": 512, "weights": "timm"}
    encoder = build(config)
    assert asked == [("timm/resnet10t.c3_in1k", None, ["model.safetensors"])]
    assert encoder(noise(1)).shape == (1, 4, 512)
    own = encoder.backbone.state_dict()
    assert own
    assert all(torch.equal(own[name], model.state_dict()[name]) for name in own)


def test_weights_of_timms_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    config = {**SMALL, "model": "resnet10t", "features": 512, "weights": "timm"}
    message = r"'resnet10t' cannot be fetched: 'timm/resnet10t.c3_in1k' is .*\(no network\)"
    with pytest.raises(MissingComponentError, match=message) as caught:
        build(config)
    assert caught.value.component == "timm/resnet10t.c3_in1k"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingComponentError, match=r"holds no model.safetensors, and pickles are"):
        build(config)
    monkeypatch.setattr(timm, "create_model", offline)
    for name in ("gcvit_base", "beit3_giant_patch14_224"):  # by URL alone, and not at all
        with pytest.raises(MissingComponentError, match="knows no Hub repository of them, and we"):
            build({**config, "model": name})


def test_weights_of_timms_that_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    config = {**SMALL, "model": "resnet10t", "features": 512, "weights": "timm"}
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(FormatError, match="is not a safetensors file, or was cut short"):
        build(config)
    save_file({"conv1.0.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(FormatError, match=r"(?s)model.safetensors does not fit timm .*'resnet10t'"):
        build(config)


def test_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "tf_efficientnet_lite0.safetensors"
    tensors = load_file(frames_encoder.WEIGHTS / file)
    del tensors["conv_head.weight"]
    save_file(tensors, tmp_path / file)
    monkeypatch.setattr(frames_encoder, "WEIGHTS", tmp_path)
    with pytest.raises(SpecError, match=r"(?s)lite0.safetensors does not fit .*conv_head.weight"):
        build(SMALL)
