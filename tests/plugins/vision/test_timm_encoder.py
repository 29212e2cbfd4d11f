"""Encoder ``timm``: what the backbone sees, what it returns, and where its weights come from."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy_vision import timm_encoder
from modalloy_vision.configuration import DEFAULT_TIMM, timm_shape
from modalloy_vision.pixels import fit_square
from modalloy_vision.timm_encoder import TimmEncoder, build, preprocess

PARITY = Path(__file__).parent / "data" / "efficientnet_lite0.safetensors"


@pytest.fixture(scope="module")
def encoder() -> TimmEncoder:
    return build(DEFAULT_TIMM)


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_the_whole_picture_is_kept() -> None:
    framed = Image.new("RGB", (400, 100), (255, 0, 0))
    framed.paste((0, 0, 255), (8, 8, 392, 92))
    square = np.asarray(fit_square(framed, 200)).astype(int)
    assert square.shape == (200, 200, 3)
    assert (square[:75] == 255).all()
    assert (square[125:] == 255).all()
    for row, column in ((76, 100), (123, 100), (100, 1), (100, 198)):
        assert np.abs(square[row, column] - (255, 0, 0)).max() < 10, (row, column)
    assert np.abs(square[100, 100] - (0, 0, 255)).max() < 10


def test_extreme_shapes_cost_little() -> None:
    for size in ((1, 100_000), (100_000, 1), (1, 1)):
        assert fit_square(Image.new("RGB", size), 224).size == (224, 224)


def test_scaling_down_averages() -> None:
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = np.asarray(fit_square(Image.fromarray(stripes), 100))[10:90, 10:90]
    assert middle.min() > 115
    assert middle.max() < 140


def test_preprocess_values_and_determinism() -> None:
    white = preprocess(Image.new("RGB", (30, 20), (255, 255, 255)), DEFAULT_TIMM)
    assert list(white) == ["pixel_values"]
    pixels = white["pixel_values"]
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 224, 224)
    assert pixels.is_contiguous()
    torch.testing.assert_close(pixels, torch.ones_like(pixels))
    config = {**DEFAULT_TIMM, "mean": [0.0, 0.25, 0.5], "std": [1.0, 0.5, 0.25]}
    colour = preprocess(Image.new("RGB", (8, 8), (51, 102, 204)), config)["pixel_values"]
    torch.testing.assert_close(colour[:, 0, 0], torch.tensor([0.2, 0.3, 1.2]))
    values = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    first, second = (preprocess(Image.fromarray(values), DEFAULT_TIMM) for _ in range(2))
    assert torch.equal(first["pixel_values"], second["pixel_values"])


def test_shape_and_dtype(encoder: TimmEncoder) -> None:
    features = encoder(pixel_values=noise(2))
    assert features.shape == (2, *timm_shape(DEFAULT_TIMM)) == (2, 4, 1280)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_batch_gives_what_each_picture_gives_alone(encoder: TimmEncoder) -> None:
    # Even inside a model in training mode: batch statistics would mix the pictures.
    encoder.train()
    pixels = noise(3)
    together = encoder(pixels)
    alone = torch.cat([encoder(one[None]) for one in pixels])
    # Float32 sums of up to 1,152 terms, 50 layers deep, in another order: 1e-7 * 50 * a margin.
    assert (together - alone).abs().max() < 1e-4 * alone.abs().max()
    assert not encoder.backbone.training


def test_the_packaged_weights_are_the_checkpoints(encoder: TimmEncoder) -> None:
    """The features that the recipe took from the unrounded checkpoint, apart from this code."""
    stored = load_file(PARITY)
    picture = Image.fromarray(stored["picture"].numpy())
    features = encoder(preprocess(picture, DEFAULT_TIMM)["pixel_values"][None])[0]
    error = (features - stored["features"]).norm() / stored["features"].norm()
    # Weights are rounded to float16, 3e-4 each; 50 layers make 0.5 % of it.
    assert error < 0.01, f"relative error {error:.4f}"


def test_cells_are_row_by_row(encoder: TimmEncoder) -> None:
    pixels = torch.ones(1, 3, 224, 224)
    blank = encoder(pixels)[0]
    pixels[:, :, :80, 144:] = noise(1)[:, :, :80, 144:]
    changed = (encoder(pixels)[0] - blank).norm(dim=1)
    assert int(changed.argmax()) == 1, "the top right is the second of four cells"


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
    """Maps with channels first or last and sequences of patches, all to the same layout."""
    backbone: Any = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    pixels = noise(2)[:, :, :64, :64]
    raw = backbone.forward_features(pixels)
    if name.startswith("vit"):
        rows = raw[:, 1:].reshape(2, 4, 4, -1)
    else:
        rows = raw if name.startswith("swin") else raw.permute(0, 2, 3, 1)
    half = rows.shape[1] // 2
    top_right = rows[:, :half, half:].mean((1, 2))
    result = TimmEncoder(backbone, (2, 2))(pixels)
    assert result.shape == (2, 4, rows.shape[-1])
    torch.testing.assert_close(result[:, 1], top_right)


def test_unusable_features_are_refused() -> None:
    flat: Any = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    flat.forward_features = lambda pixels: pixels.mean((2, 3))
    with pytest.raises(SpecError, match=r"ResNet returns features of shape \(1, 3\), neither"):
        TimmEncoder(flat, (2, 2))(noise(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tf_efficientnet_lite00"}, "has no model 'tf_efficientnet_lite00'"),
        ({"features": 320}, "has 1280 features, the configuration says 320; set features to 1280"),
        ({"tokens": 5}, r"grid \[2, 2\] makes 4 tokens, but tokens is 5"),
        ({"grid": [8, 8], "tokens": 64}, "finer than the 7x7 feature map"),
        ({"grid": [0, 2], "tokens": 0}, "must be positive, found"),
        ({"std": [0.0, 1.0, 1.0]}, "must be positive, found {'std': 0.0}"),
        ({"image_size": "224"}, "image_size must be int, found '224'"),
        ({"weights": "hub"}, "weights"),
        ({"sizes": 1}, "sizes is not a known key"),
    ],
)
def test_bad_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        build({**DEFAULT_TIMM, **change})
    assert caught.value.subject == "encoder 'timm'"


def test_weights_that_are_not_packaged() -> None:
    message = (
        r"no weights of 'resnet10t' are packaged \(packaged: tf_efficientnet_lite0\); "
        "set weights to 'timm'"
    )
    with pytest.raises(MissingComponentError, match=message) as caught:
        build({**DEFAULT_TIMM, "model": "resnet10t", "features": 512})
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
    config = {**DEFAULT_TIMM, "model": "resnet10t", "features": 512, "weights": "timm"}
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
    config = {**DEFAULT_TIMM, "model": "resnet10t", "features": 512, "weights": "timm"}
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
    config = {**DEFAULT_TIMM, "model": "resnet10t", "features": 512, "weights": "timm"}
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(FormatError, match="is not a safetensors file, or was cut short"):
        build(config)
    save_file({"conv1.0.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(FormatError, match=r"(?s)model.safetensors does not fit timm .*'resnet10t'"):
        build(config)


def test_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "tf_efficientnet_lite0.safetensors"
    tensors = load_file(timm_encoder.WEIGHTS / file)
    del tensors["conv_head.weight"]
    save_file(tensors, tmp_path / file)
    monkeypatch.setattr(timm_encoder, "WEIGHTS", tmp_path)
    with pytest.raises(SpecError, match=r"(?s)lite0.safetensors does not fit .*conv_head.weight"):
        build(DEFAULT_TIMM)
