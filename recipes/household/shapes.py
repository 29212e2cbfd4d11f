"""Point clouds: drawn from meshes, varied for training, damaged for noisy sets, as PLY files."""

from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

COUNT = 2048
"""Points of a stored cloud."""
_ROW = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
_HEADER = """\
ply
format binary_little_endian 1.0
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
"""


@attrs.frozen(eq=False)
class Cloud:
    """Coloured points, z up, in metres.

    Attributes:
        points: float32 (N, 3).
        colours: uint8 (N, 3), RGB.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.uint8]


def radius(points: NDArray[np.float32]) -> float:
    """Greatest distance from the mean of the points."""
    return float(np.linalg.norm(points - points.mean(0), axis=1).max())


def vary(cloud: Cloud, rng: np.random.Generator) -> Cloud:
    """Another take for training: turned about the upright, stretched, colours shifted, jittered."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    # Stretched along its own axes before it is turned.
    points = cloud.points * rng.uniform(0.85, 1.15, 3) @ turn
    points += rng.normal(0, rng.uniform(0.005, 0.01) * radius(cloud.points), points.shape)
    colours = cloud.colours * rng.uniform(0.75, 1.15, 3)
    return Cloud(points.astype(np.float32), colours.round().clip(0, 255).astype(np.uint8))


def damage(cloud: Cloud, rng: np.random.Generator, count: int, kept: float, jitter: float) -> Cloud:
    """Cuts a cloud through by a random plane, leaves few of its points and moves each of them.

    Args:
        cloud: The cloud.
        rng: Source of the plane, of the choice and of the jitter.
        count: Points that stay, at most.
        kept: Share of the points on the side of the plane that stays.
        jitter: Standard deviation of the jitter, in radii of the cloud.
    """
    normal = rng.normal(size=3)
    heights = cloud.points @ (normal / np.linalg.norm(normal))
    side = np.flatnonzero(heights >= np.quantile(heights, 1 - kept))
    chosen = np.sort(rng.permutation(side)[:count])
    points = cloud.points[chosen]
    points = points + rng.normal(0, jitter * radius(cloud.points), points.shape)
    return Cloud(points.astype(np.float32), cloud.colours[chosen])


def write_cloud(path: Path, cloud: Cloud) -> None:
    """Writes a binary little-endian PLY file, whole or not at all."""
    rows = np.empty(len(cloud.points), dtype=_ROW)
    rows["xyz"], rows["rgb"] = cloud.points, cloud.colours
    part = path.with_suffix(".part")
    part.write_bytes(_HEADER.format(count=len(rows)).encode() + rows.tobytes())
    part.rename(path)


def read_cloud(path: Path) -> Cloud:
    """Reads a file that :func:`write_cloud` wrote.

    Raises:
        ValueError: Another kind of file.
    """
    data = path.read_bytes()
    head, mark, body = data.partition(b"end_header\n")
    count = len(body) // _ROW.itemsize
    if (head + mark).decode("latin-1") != _HEADER.format(count=count):
        raise ValueError(
            f"{path.name}: expected a PLY file as this recipe writes it (x y z red green blue, "
            f"little-endian), found another header or {len(body)} bytes of points. Remove the "
            "file and build anew."
        )
    rows = np.frombuffer(body, dtype=_ROW)
    return Cloud(rows["xyz"].copy(), rows["rgb"].copy())
