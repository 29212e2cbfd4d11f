"""Fewer points, or more, always the same ones: thinning, farthest points, normalisation."""

import numpy as np
from numpy.typing import NDArray

from modalloy_pointcloud.cloud import PointCloud

_THIN = 8  # candidates for each farthest point; more costs time and hardly changes the cover


def farthest_points(xyz: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Choose points that cover a cloud evenly.

    The first is the point nearest to the centroid, each further one the point farthest from all
    before it; of equals the one with the lowest index. The choice depends on the set of points
    only, not on their order, but for equals and for rounding of the centroid.

    Args:
        xyz: ``(n, 3)``, finite.
        count: How many, 1 to n.

    Returns:
        ``(count,)`` int64, in the order of choice, no index twice.

    Raises:
        ValueError: ``count`` is below 1 or above n.
    """
    if not 1 <= count <= len(xyz):
        raise ValueError(f"count must be 1 to the number of points, {len(xyz)}; got {count}")
    # Scaled so that squares neither overflow nor vanish, by a power of two so that equals stay
    # equal; one row per axis, so that the steps below run over contiguous memory.
    _, exponent = np.frexp(np.abs(xyz).max())
    axes = np.ascontiguousarray(np.ldexp(xyz, -exponent).T)
    centroid = axes.mean(axis=1, dtype=np.float64)
    chosen = np.empty(count, dtype=np.int64)
    chosen[0] = np.argmin(np.square(axes - centroid[:, None]).sum(axis=0))
    nearest = np.full(len(xyz), np.inf, dtype=np.float32)
    for step in range(1, count):
        latest = chosen[step - 1]
        np.minimum(nearest, _squared(axes, axes[:, latest]), out=nearest)
        nearest[latest] = -1  # so that no point is taken twice, not even where all coincide
        chosen[step] = np.argmax(nearest)
    return chosen


def thin(cloud: PointCloud, count: int) -> PointCloud:
    """Return at most ``count`` points of a cloud, by a fixed random choice, in their order.

    Not every k-th point: scans and grids are ordered, and a stride would keep a pattern.
    """
    if len(cloud) <= count:
        return cloud
    generator = np.random.Generator(np.random.PCG64(len(cloud)))
    return cloud.select(np.sort(generator.permutation(len(cloud))[:count]))


def resample(cloud: PointCloud, count: int) -> PointCloud:
    """Return ``count`` points of a cloud.

    Too many are thinned to eight candidates a point by a fixed random choice, from which the
    farthest points are taken; too few are all kept, farthest first, and repeated in turn.

    Args:
        cloud: Any cloud.
        count: How many points, at least 1.

    Returns:
        A cloud of ``count`` points, the evenest cover first: any first m of them cover the cloud.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    cloud = thin(cloud, _THIN * count)
    chosen = farthest_points(cloud.xyz, min(count, len(cloud)))
    return cloud.select(chosen[np.arange(count) % len(chosen)])


def normalise(cloud: PointCloud) -> PointCloud:
    """Move a cloud's centroid to 0 and scale its farthest point to radius 1.

    The axes are kept: clouds are taken as upright, z up. A cloud whose points all coincide is
    moved and not scaled.
    """
    centred = cloud.xyz - cloud.xyz.mean(axis=0, dtype=np.float64)
    radius = np.sqrt(np.square(centred).sum(axis=1).max())
    scaled = centred / radius if radius > 0 else centred
    return PointCloud(scaled.astype(np.float32), cloud.rgb)


def _squared(axes: NDArray[np.float32], point: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the squared distances of ``(3, n)`` to one point, ``(n,)``."""
    x, y, z = axes - point[:, None]
    x *= x
    x += y * y
    x += z * z
    return x
