"""From a mesh to points on its surface."""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from modalloy.errors import InputError
from modalloy_pointcloud.checks import check_finite, check_limit, finish, unit_colours
from modalloy_pointcloud.cloud import PointCloud

SURFACE_POINTS = 8192
"""Points that a mesh is turned into, as many as the largest encoder sees."""

GREY = 0.5
"""Red, green and blue of a face without a colour, where other faces have one."""

_SEED = 0
_CORNERS = 3


@attrs.frozen(eq=False)
class Mesh:
    """Triangles, or bare vertices where there are none.

    Attributes:
        vertices: ``(v, 3)``, real.
        faces: ``(f, 3)`` int64, indices of vertices.
        vertex_rgb: ``(v, 3)``, see :func:`~modalloy_pointcloud.checks.unit_colours`, or ``None``.
        face_rgb: ``(f, 3)``, the same; it goes before the vertices' colours.
    """

    vertices: NDArray[Any]
    faces: NDArray[np.int64]
    vertex_rgb: NDArray[Any] | None = None
    face_rgb: NDArray[Any] | None = None


def triangulate(
    corners: NDArray[np.int64], sizes: NDArray[np.int64], limits: Mapping[str, int], what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut polygons into fans of triangles.

    Args:
        corners: ``(sizes.sum(),)``, the vertices of all polygons, one polygon after the other.
        sizes: ``(p,)``, corners of each polygon.
        limits: ``"faces"`` bounds the triangles.
        what: The input, for messages.

    Returns:
        Triangles ``(f, 3)``, and the polygon that each comes from ``(f,)``.

    Raises:
        InputError: A polygon has fewer than three corners.
        LimitError: There are too many triangles.
    """
    bad = np.flatnonzero(sizes < _CORNERS)
    if len(bad):
        raise InputError(
            f"{what}: face {bad[0]} has {sizes[bad[0]]} corners; a face needs at least three"
        )
    fans = sizes - 2
    check_limit("faces", int(fans.sum()), limits, what)
    polygon = np.repeat(np.arange(len(sizes)), fans)
    first = (np.cumsum(sizes) - sizes)[polygon]
    step = np.arange(len(polygon)) - (np.cumsum(fans) - fans)[polygon]
    triangles = np.stack([first, first + step + 1, first + step + 2], axis=1)
    return corners[triangles], polygon


def to_cloud(mesh: Mesh, what: str, count: int = SURFACE_POINTS) -> PointCloud:
    """Return a mesh as points: spread evenly over its faces by area, or its bare vertices.

    Each point stands for the same area, at a place in it that a generator of fixed seed chooses:
    the same mesh gives the same points.

    Args:
        mesh: Any mesh.
        what: The input, for messages.
        count: Points on the faces.

    Raises:
        InputError: The mesh is empty, a face names a vertex that is not there, a coordinate is
            not finite, or the faces have no area.
    """
    if not len(mesh.faces):
        rgb = None if mesh.vertex_rgb is None else unit_colours(mesh.vertex_rgb, what)
        return finish(mesh.vertices, rgb, what)
    _check_faces(mesh, what)
    check_finite(np.asarray(mesh.vertices, dtype=np.float64), what)
    corners = np.asarray(mesh.vertices, dtype=np.float64)[mesh.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.cumsum(np.sqrt(np.square(cross).sum(axis=1)))
    if not 0 < areas[-1] < np.inf:
        raise InputError(
            f"{what}: its {len(mesh.faces):,} faces have an area of {areas[-1]:g}; expected a "
            "surface to take points from"
        )
    draws = np.random.Generator(np.random.PCG64(_SEED)).random((count, 3))
    face = np.searchsorted(areas, (np.arange(count) + draws[:, 0]) / count * areas[-1], "right")
    face = np.minimum(face, len(areas) - 1)
    # The square root makes places even in a triangle, of which one corner is drawn to a point.
    root, along = np.sqrt(draws[:, 1]), draws[:, 2]
    weights = np.stack([1 - root, root * (1 - along), root * along], axis=1)
    points = np.einsum("pc,pcd->pd", weights, corners[face])
    return finish(points, _colours(mesh, face, weights, what), what)


def _check_faces(mesh: Mesh, what: str) -> None:
    bad = np.flatnonzero(((mesh.faces < 0) | (mesh.faces >= len(mesh.vertices))).any(axis=1))
    if len(bad):
        raise InputError(
            f"{what}: face {bad[0]} names vertices {mesh.faces[bad[0]].tolist()} (counted from 0),"
            f" but there are {len(mesh.vertices):,}; the file is damaged or cut off"
        )


def _colours(
    mesh: Mesh, face: NDArray[np.int64], weights: NDArray[np.float64], what: str
) -> NDArray[np.float32] | None:
    if mesh.face_rgb is not None:
        return unit_colours(mesh.face_rgb, what)[face]
    if mesh.vertex_rgb is not None:
        corners = unit_colours(mesh.vertex_rgb, what)[mesh.faces[face]]
        mixed = np.einsum("pc,pcd->pd", weights, corners).astype(np.float32)
        return np.minimum(mixed, 1)  # the weights' sum is 1 but for rounding
    return None
