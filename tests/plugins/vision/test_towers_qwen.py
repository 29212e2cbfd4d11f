"""Vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, against transformers' own on tiny models."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from modalloy.connectors import mlp
from modalloy.errors import MissingComponentError, SpecError
from modalloy_vision import qwen_encoder, tower_configuration

HIDDEN = 24
WIDTH = 32  # of a patch; four of them are a token
PIXELS: dict[str, Any] = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "image_size": 40}
COMMON: dict[str, Any] = {"depth": 3, "num_heads": 2, "patch_size": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2-vl": {**COMMON, "embed_dim": WIDTH, "mlp_ratio": 2},
    "qwen2.5-vl": {
        **COMMON,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "window_size": 16,  # two tokens a side, of five
        "fullatt_block_indexes": [1],
    },
    "qwen3-vl": {
        **COMMON,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_position_embeddings": 16,
    },
}
KINDS = sorted(ARCHITECTURES)
CONFIGS = {kind: {"architecture": ARCHITECTURES[kind], **PIXELS} for kind in KINDS}
BUILD: dict[str, Any] = {
    "qwen2-vl": qwen_encoder.build_qwen2_vl,
    "qwen2.5-vl": qwen_encoder.build_qwen2_5_vl,
    "qwen3-vl": qwen_encoder.build_qwen3_vl,
}
PREPROCESS: dict[str, Any] = {
    "qwen2-vl": qwen_encoder.preprocess_qwen2_vl,
    "qwen2.5-vl": qwen_encoder.preprocess_qwen2_5_vl,
    "qwen3-vl": qwen_encoder.preprocess_qwen3_vl,
}
SHAPES: dict[str, Any] = {
    "qwen2-vl": tower_configuration.qwen2_vl_shape,
    "qwen2.5-vl": tower_configuration.qwen2_5_vl_shape,
    "qwen3-vl": tower_configuration.qwen3_vl_shape,
}
MLPS = {
    "qwen2-vl": {"mlp.0": "0", "mlp.2": "2"},
    "qwen2.5-vl": {"mlp.0": "0", "mlp.2": "2"},
    "qwen3-vl": {"linear_fc1": "0", "linear_fc2": "2"},
}


def visual(kind: str, **change: Any) -> Any:
    """Make a tower as transformers has it, every tensor of it random, norms too."""
    settings = {**ARCHITECTURES[kind], **change}
    model: Any
    if kind == "qwen2-vl":
        model = Qwen2VisionTransformerPretrainedModel(
            Qwen2VLVisionConfig(**settings, hidden_size=HIDDEN)
        )
    elif kind == "qwen2.5-vl":
        model = Qwen2_5_VisionTransformerPretrainedModel(
            Qwen2_5_VLVisionConfig(**settings, out_hidden_size=HIDDEN)
        )
    else:
        model = Qwen3VLVisionModel(
            Qwen3VLVisionConfig(**settings, out_hidden_size=HIDDEN, deepstack_visual_indexes=[0, 2])
        )
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.named_parameters()):
        parameter.data.normal_(std=0.3, generator=generator)
    return model.eval()


def split(kind: str, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Share a tower's tensors out to ``encoder.safetensors`` and the connector, by new name."""
    encoder: dict[str, torch.Tensor] = {}
    connector: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("deepstack_merger_list."):
            continue
        inner = name.removeprefix("merger.")
        layer, _, last = inner.rpartition(".")
        if inner != name and layer in MLPS[kind]:
            connector[f"{MLPS[kind][layer]}.{last}"] = tensor
        else:
            encoder[f"model.{name}"] = tensor
    return encoder, connector


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def processor(side: int, patch: int = 4, **more: Any) -> Any:
    """Return Qwen's processor, held to one number of pixels."""
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": side**2, "longest_edge": side**2},
        image_mean=PIXELS["mean"],
        image_std=PIXELS["std"],
        patch_size=patch,
        **more,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [40, 16])
def test_features_are_what_the_mergers_mlp_takes(kind: str, side: int) -> None:
    model = visual(kind)
    config = {**CONFIGS[kind], "image_size": side}
    encoder, connector = BUILD[kind](config), mlp.build({"depth": 2, "width": 128}, 128, HIDDEN)
    weights, projector = split(kind, model)
    encoder.load_state_dict(weights, strict=True)
    connector.load_state_dict(projector, strict=True)
    inputs = [PREPROCESS[kind](picture(side, n), config)["pixel_values"] for n in (side, 70, 33)]
    grids = torch.tensor([[1, side // 4, side // 4]] * 3)
    with torch.no_grad():
        expected = model(torch.cat(inputs), grid_thw=grids).pooler_output
        features = encoder(pixel_values=torch.stack(inputs))
        found = connector(features)
    tokens = (side // 8) ** 2
    assert features.shape == (3, tokens, 128) == (3, *SHAPES[kind](config))
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_the_merger_is_the_encoders(kind: str) -> None:
    model = visual(kind)
    encoder = BUILD[kind](CONFIGS[kind])
    weights, _ = split(kind, model)
    names = {"qwen2-vl": "ln_q", "qwen2.5-vl": "ln_q", "qwen3-vl": "norm"}
    assert f"model.merger.{names[kind]}.weight" in weights
    encoder.load_state_dict(weights)
    inputs = torch.stack([PREPROCESS[kind](picture(40, 40), CONFIGS[kind])["pixel_values"]])
    first = encoder(inputs)
    weights[f"model.merger.{names[kind]}.weight"] *= 3
    encoder.load_state_dict(weights)
    assert not torch.allclose(encoder(inputs), first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [40, 57, 23, 400])
def test_a_square_picture_is_cut_as_qwens_own_processor_cuts_it(kind: str, side: int) -> None:
    one = picture(side, side)
    processed = processor(40)(images=one, return_tensors="pt")
    assert processed["image_grid_thw"].tolist() == [[1, 10, 10]]
    inputs = PREPROCESS[kind](one, CONFIGS[kind])
    assert list(inputs) == ["pixel_values"]
    assert inputs["pixel_values"].dtype == torch.float32
    expected = processed["pixel_values"].float()
    torch.testing.assert_close(inputs["pixel_values"], expected, rtol=1e-5, atol=1e-5)


def test_other_sizes_of_patches_and_tokens() -> None:
    change = {"patch_size": 6, "spatial_merge_size": 3, "temporal_patch_size": 1}
    architecture = {**ARCHITECTURES["qwen2-vl"], **change}
    config = {"architecture": architecture, **PIXELS, "image_size": 36}
    one = picture(36, 36)
    processed = processor(36, 6, merge_size=3, temporal_patch_size=1)(
        images=one, return_tensors="pt"
    )
    rows = PREPROCESS["qwen2-vl"](one, config)["pixel_values"]
    torch.testing.assert_close(rows, processed["pixel_values"].float(), rtol=1e-5, atol=1e-5)
    model = visual("qwen2-vl", **change)
    encoder = BUILD["qwen2-vl"](config)
    encoder.load_state_dict(split("qwen2-vl", model)[0], strict=True)
    assert encoder(rows[None]).shape == (1, 4, 9 * WIDTH) == (1, *SHAPES["qwen2-vl"](config))


@pytest.mark.parametrize(("fit", "equal"), [("pad", False), ("crop", False), ("stretch", True)])
def test_a_picture_that_is_no_square(fit: str, equal: bool) -> None:  # noqa: FBT001
    one = picture(80, 40)
    config = {**CONFIGS["qwen2-vl"], "fit": fit}
    found = PREPROCESS["qwen2-vl"](one, config)["pixel_values"]
    assert found.shape == (100, 96)
    stretched = one.resize((40, 40), Image.Resampling.BICUBIC)
    expected = PREPROCESS["qwen2-vl"](stretched, config)["pixel_values"]
    assert torch.equal(found, expected) is equal
    top, bottom = found[:4], found[-4:]  # the first and the last token
    grey = (top.abs() < 1 / 255 / 0.25).all() and (bottom.abs() < 1 / 255 / 0.25).all()
    assert bool(grey) is (fit == "pad")


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_without_random_numbers_and_empty_until_loaded(kind: str) -> None:
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    encoder = BUILD[kind](CONFIGS[kind]).train()
    assert torch.equal(torch.get_rng_state(), expected)
    inputs = torch.zeros(1, 100, 96)
    with pytest.raises(MissingComponentError, match=rf"encoder '{kind}': its configuration holds"):
        encoder(pixel_values=inputs)
    weights = split(kind, visual(kind).bfloat16())[0]
    encoder.load_state_dict(weights)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert set(encoder.state_dict()) == set(weights)
    assert torch.isfinite(encoder(pixel_values=inputs)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 44}, "image_size must be a multiple of the 8 pixels of one token .* 44"),
        ({"image_size": 0}, "image_size must be a multiple of the 8 pixels"),
        ({"image_size": 8000}, "makes 1000000 tokens a picture, at most 16384 are taken"),
        ({"image_size": "40"}, "image_size must be int, found '40'"),
        ({"fit": "shrink"}, "fit"),
        ({"std": [0, 1, 1]}, "std must be positive"),
        ({"layer": -2}, "layer is not a known key"),
        ({"architecture": {}}, "architecture.depth is missing"),
    ],
)
def test_configurations_that_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    for target in (BUILD[kind], SHAPES[kind]):
        with pytest.raises(SpecError, match=message) as caught:
            target({**CONFIGS[kind], **change})
        assert caught.value.subject == f"encoder {kind!r}"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("qwen2-vl", {"auto_map": {}}, "architecture.auto_map is not a known key"),
        ("qwen2-vl", {"_attn_implementation": "a/b"}, "_attn_implementation is not a known key"),
        ("qwen2-vl", {"hidden_size": 24}, "architecture.hidden_size is not a known key"),
        ("qwen2-vl", {"num_heads": 16}, "32 features, which do not divide into 16 heads of a mul"),
        ("qwen2-vl", {"mlp_ratio": -1}, "architecture.mlp_ratio must be positive"),
        ("qwen2-vl", {"depth": 300}, "architecture makes 300 layers, at most 256"),
        ("qwen2.5-vl", {"window_size": 7}, "window_size 7 is smaller than a token, 8 pixels"),
        ("qwen2.5-vl", {"fullatt_block_indexes": [1, 3]}, "names layer 3, but there are 3 from 0"),
        ("qwen2.5-vl", {"fullatt_block_indexes": ["1"]}, "fullatt_block_indexes"),
        ("qwen3-vl", {"num_position_embeddings": 15}, "must be the square of a whole number, f"),
        ("qwen3-vl", {"deepstack_visual_indexes": [1]}, "deepstack_visual_indexes is not a known"),
        ("qwen3-vl", {"hidden_act": "exec"}, "architecture.hidden_act"),
    ],
)
def test_architectures_that_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    config = {**CONFIGS[kind], "architecture": {**ARCHITECTURES[kind], **change}}
    with pytest.raises(SpecError, match=message):
        SHAPES[kind](config)


def test_the_inner_width_of_an_mlp() -> None:
    deep = mlp.build({"depth": 3, "width": 5, "norm": True}, 7, 11)
    linears = [layer for layer in deep.modules() if isinstance(layer, nn.Linear)]
    assert [(one.in_features, one.out_features) for one in linears] == [(7, 5), (5, 5), (5, 11)]
    assert [type(layer) for layer in deep.children()] == [
        nn.LayerNorm,
        *[nn.Linear, nn.GELU] * 2,
        nn.Linear,
    ]
    plain = mlp.build({"depth": 3}, 7, 11)
    same = mlp.build({"depth": 3, "width": 0}, 7, 11)
    assert [one.shape for one in plain.parameters()] == [one.shape for one in same.parameters()]
    assert list(plain.state_dict()) == [
        f"{n}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")
    ]
    assert plain(torch.zeros(1, 2, 7)).shape == (1, 2, 11)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"width": -1},
            "width must be from 1 to 131072, or 0 for the base's hidden size, found -1",
        ),
        ({"width": 1 << 40}, "width must be from 1 to 131072"),
        ({"width": 5.0}, "option 'width' must be int, found 5.0"),
        ({"depth": 1, "width": 5}, "of depth 1 it has no inner layer, so width 5 has no place"),
        ({"depth": 0}, "depth must be at least 1, found 0"),
    ],
)
def test_mlps_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        mlp.build(config, 7, 11)
