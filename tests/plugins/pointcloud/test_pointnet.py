"""Encoder ``pointnet``: what it sees, what it leaves out of account, and its packaged weights."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modalloy.errors import MissingComponentError, SpecError
from modalloy_pointcloud import pointnet
from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.configuration import DEFAULT_POINTNET, pointnet_shape
from modalloy_pointcloud.pointnet import FrozenPointNet, PointNet, build, preprocess, squared

VECTORS = Path(__file__).parent / "data" / "pointnet_household.safetensors"
POINTS = int(str(DEFAULT_POINTNET["points"]))


@pytest.fixture(scope="module")
def encoder() -> FrozenPointNet:
    return build(DEFAULT_POINTNET)


def box(size: tuple[float, float, float], count: int = 3000, seed: int = 0) -> PointCloud:
    """Points on the six sides of a box, one side red."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-0.5, 0.5, (count, 3))
    rows = np.arange(count)
    xyz[rows, rows % 3] = np.where(rows % 2, 0.5, -0.5)
    rgb = np.full((count, 3), 0.6)
    rgb[rows % 6 == 0] = (0.9, 0.1, 0.1)
    return PointCloud((xyz * size).astype(np.float32), rgb.astype(np.float32))


def legs() -> PointCloud:
    """A table: no symmetry but those of a rectangle, and unequal above and below."""
    rng = np.random.default_rng(1)
    top = rng.uniform((-1, -0.5, 0.95), (1, 0.5, 1.0), (1500, 3))
    corners = np.array([[x, y, 0] for x in (-0.9, 0.9) for y in (-0.4, 0.4)])
    poles = corners[np.arange(1500) % 4] + rng.uniform(
        (-0.03, -0.03, 0), (0.03, 0.03, 1), (1500, 3)
    )
    return PointCloud(np.concatenate([top, poles]).astype(np.float32))


def turned(cloud: PointCloud, degrees: float) -> PointCloud:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=np.float32)
    return PointCloud(cloud.xyz @ turn, cloud.rgb)


def encode(encoder: FrozenPointNet, cloud: PointCloud, **change: Any) -> torch.Tensor:
    return encoder(preprocess(cloud, {**DEFAULT_POINTNET, **change})["points"][None])[0]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


def test_preprocess_values_and_determinism() -> None:
    cloud = box((2.0, 1.0, 4.0))
    first, second = (preprocess(cloud, DEFAULT_POINTNET) for _ in range(2))
    assert list(first) == ["points"]
    points = first["points"]
    assert torch.equal(points, second["points"])
    assert points.dtype == torch.float32
    assert points.shape == (POINTS, 6)
    assert points[:, :3].norm(dim=1).max() == pytest.approx(1, abs=1e-5)
    assert points[:, :3].mean(0).abs().max() < 1e-5
    assert sorted({round(float(v), 4) for v in points[:, 3]}) == [0.1, 0.4]


def test_clouds_without_colours_are_grey() -> None:
    cloud = box((2.0, 1.0, 4.0))
    plain = PointCloud(cloud.xyz)
    grey = PointCloud(cloud.xyz, np.full_like(cloud.xyz, 0.5))
    without = preprocess(plain, DEFAULT_POINTNET)["points"]
    assert torch.equal(without, preprocess(grey, DEFAULT_POINTNET)["points"])
    config = {**DEFAULT_POINTNET, "colours": False}
    assert torch.equal(preprocess(cloud, config)["points"], without[:, :3])


def test_colours_may_be_left_out_of_the_network_too(encoder: FrozenPointNet) -> None:
    cloud = PointCloud(legs().xyz)
    assert torch.equal(encode(encoder, cloud), encode(encoder, cloud, colours=False))


def test_shape_and_dtype(encoder: FrozenPointNet) -> None:
    points = torch.stack(
        [preprocess(box((1.0, 2.0, s)), DEFAULT_POINTNET)["points"] for s in (1, 3)]
    )
    features = encoder(points)
    assert features.shape == (2, *pointnet_shape(DEFAULT_POINTNET)) == (2, 4, 256)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_batch_gives_what_each_cloud_gives_alone(encoder: FrozenPointNet) -> None:
    # Even inside a model in training mode: batch statistics would mix the clouds.
    encoder.train()
    clouds = [box((1.0, 2.0, 3.0)), legs(), box((4.0, 1.0, 1.0), count=40), turned(legs(), 33)]
    points = torch.stack([preprocess(cloud, DEFAULT_POINTNET)["points"] for cloud in clouds])
    together = encoder(points)
    alone = torch.cat([encoder(one[None]) for one in points])
    # Float32 sums of up to 512 terms in another order, a dozen layers deep.
    assert (together - alone).abs().max() < 1e-4 * alone.abs().max()
    assert torch.equal(encoder(points), together)
    assert not encoder.network.training


def test_size_and_place_do_not_matter(encoder: FrozenPointNet) -> None:
    cloud = legs()
    other = PointCloud(cloud.xyz * 250 + np.array([40, -10, 7], dtype=np.float32))
    assert difference(encode(encoder, cloud), encode(encoder, other)) < 1e-2


def test_quarter_turns_do_not_matter(encoder: FrozenPointNet) -> None:
    """Turned by any multiple of 90 degrees, a cloud fills the same box, one of four ways round."""
    cloud = legs()
    plain = encode(encoder, cloud)
    for degrees in (90, 180, 270):
        assert difference(plain, encode(encoder, turned(cloud, degrees))) < 1e-2, degrees


def test_headings_hardly_matter(encoder: FrozenPointNet) -> None:
    """Far less than tipping the object over does; headings are told to 2 degrees."""
    cloud = legs()
    plain = encode(encoder, cloud)
    tipped = encode(encoder, PointCloud(cloud.xyz[:, [2, 1, 0]]))
    for degrees in (17, 45, 71, 200):
        moved = difference(plain, encode(encoder, turned(cloud, degrees)))
        assert moved < 0.4 * difference(plain, tipped), degrees


def test_the_long_side_comes_to_lie_along_x() -> None:
    for degrees in (0, 30, 90, 141):
        points = torch.from_numpy(turned(legs(), degrees).xyz)[None]
        square = squared(points)[0]
        length, width, height = (square.amax(0) - square.amin(0)).tolist()
        assert (length, width, height) == pytest.approx((2, 1, 1), abs=0.08), degrees
        # Turned, not mirrored or stretched: distances stay, and so does the order of turning.
        torch.testing.assert_close(square[:, :2].norm(dim=1), points[0, :, :2].norm(dim=1))
        areas = [a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0] for a in (points[0], square)]
        assert areas[0] == pytest.approx(float(areas[1]), abs=1e-5)


def test_few_points_and_flat_clouds_stay_finite(encoder: FrozenPointNet) -> None:
    line = np.zeros((2, 3), dtype=np.float32)
    line[1, 0] = 1
    for xyz in (line, np.zeros((5, 3), dtype=np.float32), legs().xyz * [1, 1, 0]):
        assert encode(encoder, PointCloud(np.asarray(xyz, dtype=np.float32))).isfinite().all()


def test_the_packaged_weights_are_the_trained_ones(encoder: FrozenPointNet) -> None:
    """The features that the recipe got for three objects when it wrote the weights."""
    stored = load_file(VECTORS)
    assert stored["points"].shape == (3, POINTS, 6)
    features = encoder(stored["points"])
    for number, (found, expected) in enumerate(zip(features, stored["features"], strict=True)):
        assert difference(expected, found) < 1e-3, number
    # They tell a bed from a bottle: what sets objects apart is not drowned by what they share.
    assert difference(stored["features"][0], stored["features"][1]) > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 128}, "4 tokens of 256 features, the configuration says 4 of 128; set tok"),
        ({"tokens": 8}, "makes 4 tokens of 256 features, the configuration says 8 of 256"),
        ({"points": 100}, "points is 100, fewer than the 128 points that neighbourhoods"),
        ({"points": 0}, "must be positive, found {'points': 0}"),
        ({"colours": 1}, "colours must be bool, found 1"),
        ({"heads": 4}, "heads is not a known key"),
    ],
)
def test_bad_configurations(change: dict[str, Any], message: str) -> None:
    for use in (build, lambda config: preprocess(legs(), config)):
        with pytest.raises(SpecError, match=message) as caught:
            use({**DEFAULT_POINTNET, **change})
        assert caught.value.subject == "encoder 'pointnet'"


def test_weights_that_are_not_packaged() -> None:
    message = r"no weights 'outdoor' are packaged \(packaged: household\); set model to one of"
    with pytest.raises(MissingComponentError, match=message) as caught:
        build({**DEFAULT_POINTNET, "model": "outdoor"})
    assert caught.value.component == "outdoor"


def test_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "pointnet_household.safetensors"
    tensors = load_file(pointnet.WEIGHTS / file)
    del tensors["near.places.weight"]
    save_file(tensors, tmp_path / file)
    monkeypatch.setattr(pointnet, "WEIGHTS", tmp_path)
    with pytest.raises(SpecError, match=r"(?s)household.safetensors does not fit .*near.places"):
        build(DEFAULT_POINTNET)


def test_the_weights_are_small() -> None:
    assert (pointnet.WEIGHTS / "pointnet_household.safetensors").stat().st_size < 4_000_000
    assert sum(parameter.numel() for parameter in PointNet().parameters()) < 2_000_000


def test_every_centre_sees_its_own_neighbourhood() -> None:
    """Against the definition, without bags: the maximum over the nearest points of each centre."""
    torch.manual_seed(0)
    xyz, values = torch.randn(2, 60, 3), torch.randn(2, 60, 5)
    pooled = pointnet._neighbours_max(values, xyz, 7)
    for cloud in range(2):
        for centre in range(7):
            near = (xyz[cloud] - xyz[cloud, centre]).norm(dim=1).argsort()[: pointnet.NEIGHBOURS]
            torch.testing.assert_close(pooled[cloud, centre], values[cloud, near].amax(0))
