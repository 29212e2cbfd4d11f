"""Point-BERT: shapes, groups, weights loaded strictly, the same alone and in a batch."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.configuration import point_bert_config
from modalloy_pointcloud.point_bert import PointBert, build, preprocess

SIZES: dict[str, Any] = {
    "tokens": 9,
    "features": 12,
    "points": 64,
    "groups": 8,
    "group_size": 4,
    "patch_width": 16,
    "width": 12,
    "depth": 2,
    "heads": 3,
}


def cloud(seed: int, count: int = 100, *, colours: bool = True) -> PointCloud:
    generator = np.random.default_rng(seed)
    xyz = generator.normal(size=(count, 3)).astype(np.float32)
    return PointCloud(xyz, generator.random((count, 3)).astype(np.float32) if colours else None)


def random_tensors(**change: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = PointBert(point_bert_config({"model": "none"} | SIZES | change)).state_dict()
    return {
        name: torch.rand(tensor.shape, generator=generator) - (0 if "var" in name else 0.5)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    save_file(random_tensors(), tmp_path / "model.safetensors")
    return SIZES | {"model": str(tmp_path)}


def encode(config: dict[str, Any], *clouds: PointCloud) -> torch.Tensor:
    items = [preprocess(each, config) for each in clouds]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    return build(config)(**batch)


def test_a_directory_and_a_file_give_the_same(config: dict[str, Any]) -> None:
    features = encode(config, cloud(0))
    assert features.shape == (1, 9, 12)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    file = config | {"model": str(Path(config["model"]) / "model.safetensors")}
    torch.testing.assert_close(encode(file, cloud(0)), features, rtol=0, atol=0)


def test_a_link_into_the_hubs_cache_is_followed(config: dict[str, Any], tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "1234"
    blob.parent.mkdir()
    (tmp_path / "model.safetensors").rename(blob)
    link = tmp_path / "snapshots" / "abc" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../blobs/1234")
    assert encode(config | {"model": str(link)}, cloud(0)).shape == (1, 9, 12)


def test_a_batch_gives_what_each_cloud_gives_alone(config: dict[str, Any]) -> None:
    clouds = [cloud(0), cloud(1, 30), cloud(2, 500, colours=False)]
    together = encode(config, *clouds)
    for n, each in enumerate(clouds):
        torch.testing.assert_close(together[n], encode(config, each)[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2), "it looks at the cloud"


def test_pools_are_parts_of_all_tokens(config: dict[str, Any]) -> None:
    tokens = encode(config, cloud(0))
    for pool, expected in (
        ("cls", tokens[:, :1]),
        ("max", tokens[:, 1:].amax(1, keepdim=True)),
        ("cls+max", torch.cat([tokens[:, :1], tokens[:, 1:].amax(1, keepdim=True)], 1)),
    ):
        pooled = encode(config | {"pool": pool, "tokens": expected.shape[1]}, cloud(0))
        torch.testing.assert_close(pooled, expected, rtol=0, atol=0)


def test_places_matter_and_the_order_of_groups_does_not(config: dict[str, Any]) -> None:
    inputs = {name: tensor[None] for name, tensor in preprocess(cloud(0), config).items()}
    encoder = build(config)
    plain = encoder(**inputs)
    turned = encoder(**{name: tensor.flip(1) for name, tensor in inputs.items()})
    torch.testing.assert_close(turned[:, 1:].flip(1), plain[:, 1:], rtol=1e-4, atol=1e-4)
    swapped = encoder(inputs["patches"], inputs["centres"].flip(1))
    assert not torch.allclose(swapped, plain, atol=1e-2)


def test_groups_are_the_nearest_points_of_each_centre() -> None:
    made = cloud(3, 64)
    inputs = preprocess(made, SIZES | {"model": "none"})
    assert inputs["patches"].shape == (8, 4, 6)
    assert inputs["patches"].dtype == inputs["centres"].dtype == torch.float32
    offsets = inputs["patches"][..., :3]
    assert (offsets.norm(dim=2).amin(dim=1) < 1e-6).all(), "a centre is in its own group"
    xyz = made.xyz - made.xyz.mean(axis=0)
    xyz = torch.from_numpy(xyz / np.linalg.norm(xyz, axis=1).max())
    distances = (inputs["centres"][:, None] - xyz).norm(dim=2)
    expected = distances.sort(dim=1).values[:, :4]
    torch.testing.assert_close(offsets.norm(dim=2).sort(dim=1).values, expected, atol=1e-5, rtol=0)


def test_colours_belong_to_their_points_and_black_stands_for_none() -> None:
    plain = cloud(4, 64)
    painted = PointCloud(plain.xyz, np.repeat((plain.xyz[:, :1] > 0), 3, 1).astype(np.float32))
    inputs = preprocess(painted, SIZES | {"model": "none"})
    middle = torch.from_numpy(plain.xyz).mean(0)[0]
    radius = torch.from_numpy(plain.xyz - plain.xyz.mean(0)).norm(dim=1).max()
    x = (inputs["patches"][..., 0] + inputs["centres"][:, None, 0]) * radius + middle
    assert torch.equal(x > 0, inputs["patches"][..., 3] == 1)
    black = preprocess(PointCloud(plain.xyz), SIZES | {"model": "none"})["patches"][..., 3:]
    assert not black.any()


def test_without_colours(tmp_path: Path) -> None:
    save_file(random_tensors(colours=False), tmp_path / "model.safetensors")
    config = SIZES | {"model": str(tmp_path), "colours": False}
    assert preprocess(cloud(0), config)["patches"].shape == (8, 4, 3)
    torch.testing.assert_close(
        encode(config, cloud(0)), encode(config, cloud(0, colours=False)), rtol=0, atol=0
    )


def test_it_stays_in_evaluation_mode(config: dict[str, Any]) -> None:
    encoder = build(config)
    assert not encoder.train().training
    assert not any(module.training for module in encoder.modules())
    assert not any(tensor.requires_grad for tensor in encoder.parameters())


def test_the_default_sizes_are_those_of_the_description() -> None:
    encoder = PointBert(point_bert_config({"model": "none"}))
    state = encoder.state_dict()
    assert state["encoder.first_conv.0.weight"].shape == (128, 6, 1)
    assert state["reduce_dim.weight"].shape == (384, 256)
    assert state["blocks.blocks.11.attn.qkv.weight"].shape == (1152, 384)
    assert "blocks.blocks.11.attn.qkv.bias" not in state
    assert sum(tensor.numel() for tensor in encoder.parameters()) == 21_859_200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, "lacks 'norm.bias'"),
        ({"head.weight": torch.zeros(1)}, "has an unknown 'head.weight'"),
        ({"norm.bias": torch.zeros(13)}, "has 'norm.bias' of shape (13,), expected (12,)"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {k: v for k, v in (random_tensors() | change).items() if v is not None}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpecError, match=re.escape(message)):
        build(SIZES | {"model": str(tmp_path)})


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    for model in (tmp_path, tmp_path / "other.safetensors", "no-such-directory"):
        with pytest.raises(MissingComponentError, match="there are no weights at") as caught:
            build(SIZES | {"model": str(model)})
        assert caught.value.component == str(model)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingComponentError, match=r"model.safetensors of 'nobody/nothing' cannot"
    ):
        build(SIZES | {"model": "nobody/nothing"})


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="is not a safetensors file"):
        build(SIZES | {"model": str(tmp_path)})
