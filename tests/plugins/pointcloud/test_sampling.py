"""Sampling: an even cover, the same one always, whatever the order of the points."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.sampling import farthest_points, normalise, resample, thin


def random_cloud(seed: int, count: int) -> PointCloud:
    generator = np.random.default_rng(seed)
    xyz = generator.normal(size=(count, 3)).astype(np.float32)
    return PointCloud(xyz, generator.random((count, 3)).astype(np.float32))


def test_farthest_points_of_a_line() -> None:
    xyz = np.array([[x, 0, 0] for x in (0, 1, 2, 3, 4, 10)], dtype=np.float32)
    # The centroid is 3.33; then the far end, then the near end, then the widest gap.
    assert farthest_points(xyz, 6).tolist() == [3, 5, 0, 1, 2, 4]


def test_ties_go_to_the_lowest_index() -> None:
    square = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]], dtype=np.float32)
    assert farthest_points(square, 4).tolist() == [0, 2, 1, 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 60), st.data())
def test_the_order_of_points_does_not_matter(seed: int, count: int, data: st.DataObject) -> None:
    xyz = random_cloud(seed, count).xyz  # normal draws: no two distances are equal
    wanted = data.draw(st.integers(1, count))
    order = np.random.default_rng(seed + 1).permutation(count)
    plain, shuffled = farthest_points(xyz, wanted), farthest_points(xyz[order], wanted)
    np.testing.assert_array_equal(order[shuffled], plain)
    assert len(set(plain.tolist())) == wanted


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_step_takes_a_farthest_point(seed: int) -> None:
    xyz = random_cloud(seed, 40).xyz.astype(np.float64)
    chosen = farthest_points(xyz.astype(np.float32), 12)
    for step in range(1, 12):
        gaps = np.linalg.norm(xyz[:, None] - xyz[chosen[:step]], axis=2).min(axis=1)
        assert gaps[chosen[step]] == pytest.approx(gaps.max(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    xyz = random_cloud(0, 50).xyz
    scaled = (xyz * scale).astype(np.float32)
    np.testing.assert_array_equal(farthest_points(scaled, 20), farthest_points(xyz, 20))


def test_coinciding_points_are_taken_once_each() -> None:
    assert sorted(farthest_points(np.ones((5, 3), dtype=np.float32), 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_that_cannot_be(count: int) -> None:
    with pytest.raises(
        ValueError, match=rf"count must be 1 to the number of points, 5; got {count}"
    ):
        farthest_points(np.zeros((5, 3), dtype=np.float32), count)


def test_resample_is_deterministic_and_keeps_colours_with_their_points() -> None:
    cloud = random_cloud(3, 5_000)
    first, second = resample(cloud, 64), resample(cloud, 64)
    np.testing.assert_array_equal(first.xyz, second.xyz)
    place = {tuple(point): n for n, point in enumerate(cloud.xyz.tolist())}
    chosen = [place[tuple(point)] for point in first.xyz.tolist()]
    assert len(set(chosen)) == 64
    assert cloud.rgb is not None
    np.testing.assert_array_equal(first.rgb, cloud.rgb[chosen])


def test_resample_repeats_all_points_in_turn_where_there_are_too_few() -> None:
    cloud = random_cloud(4, 5)
    padded = resample(cloud, 12)
    np.testing.assert_array_equal(padded.xyz[:5], cloud.xyz[farthest_points(cloud.xyz, 5)])
    np.testing.assert_array_equal(padded.xyz[5:10], padded.xyz[:5])
    np.testing.assert_array_equal(padded.xyz[10:], padded.xyz[:2])


def test_resample_of_no_points_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        resample(random_cloud(0, 5), 0)


def test_thinning_keeps_no_pattern_of_a_grid() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(16.0)] * 3), axis=-1).reshape(-1, 3)
    kept = thin(PointCloud(grid.astype(np.float32)), 256)
    assert len(kept) == 256
    assert all(len(np.unique(kept.xyz[:, axis])) == 16 for axis in range(3))


def test_two_thousand_of_a_hundred_thousand_points_take_well_below_a_second() -> None:
    cloud = random_cloud(5, 100_000)
    start = time.process_time()
    assert len(resample(cloud, 2048)) == 2048
    assert time.process_time() - start < 0.8


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_normalise(scale: float, shift: float) -> None:
    cloud = random_cloud(6, 100)
    moved = PointCloud((cloud.xyz * scale + shift).astype(np.float32), cloud.rgb)
    done = normalise(moved)
    assert done.xyz.dtype == np.float32
    np.testing.assert_allclose(done.xyz.mean(axis=0), 0, atol=1e-5)
    assert np.linalg.norm(done.xyz, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert done.rgb is cloud.rgb


def test_normalise_keeps_up_up_and_proportions() -> None:
    xyz = np.array([[0, 0, 0], [0, 0, 8], [2, 0, 4], [-2, 0, 4]], dtype=np.float32)
    expected = [[0, 0, -1], [0, 0, 1], [0.5, 0, 0], [-0.5, 0, 0]]
    np.testing.assert_allclose(normalise(PointCloud(xyz)).xyz, expected)


def test_normalise_of_a_single_place_only_moves_it() -> None:
    np.testing.assert_array_equal(normalise(PointCloud(np.full((3, 3), 7, np.float32))).xyz, 0)
