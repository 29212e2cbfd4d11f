"""Turntable clips: a mesh drawn from all sides as dense points with a depth buffer, as H.264."""

import math
from fractions import Fraction
from pathlib import Path

import attrs
import av
import numpy as np
from numpy.typing import NDArray
from recipes.household.meshes import Mesh, surface

SIDE = 160
"""Side of a frame in pixels."""
FRAMES = 12
RATE = 6
"""Frames a second."""
CRF = 23
"""H.264's constant rate factor."""
_STEADY = "threads=1:mbtree=0:bframes=0"
"""Without these, about one encoding in twenty of the same frames differs in some bytes."""
_FINE = 2
"""Pixels drawn for each pixel of a frame, along a side."""
_POINTS = (40_000, 180_000)
_DENSITY = 0.5
"""Points for each drawn pixel that the surface would cover, seen flat; within ``_POINTS``."""
_SPLAT = 3
"""Side of a point in drawn pixels: wide enough that no hole shows between neighbours."""
_EYE = 3.2
"""Distance of the eye from the middle, in radii of the object."""
_FILL = 0.49
"""Radius of the object in the frame, in sides."""


@attrs.frozen
class Shot:
    """How a clip is taken.

    Attributes:
        heading: Turn of the object in the first frame, in degrees.
        elevation: Height of the eye above the horizon, in degrees.
        turn: Degrees from the first frame to where one after the last would stand.
        zoom: Size of the object, 1 where it just fits.
        light: Direction to the light, as seen from the eye: right, up, towards the eye.
        ground: Grey of the background.
    """

    heading: float = 0.0
    elevation: float = 20.0
    turn: float = 360.0
    zoom: float = 1.0
    light: tuple[float, float, float] = (0.4, 0.6, 0.7)
    ground: int = 235


def draw_shot(rng: np.random.Generator, *, varied: bool) -> Shot:
    """A shot with another heading, and where ``varied`` another way to take it in all else too."""
    heading = float(rng.uniform(0, 360))
    if not varied:
        return Shot(heading=heading)
    return Shot(
        heading=heading,
        elevation=float(rng.uniform(8, 38)),
        turn=360.0 if rng.random() < 0.5 else -360.0,  # noqa: PLR2004 - a coin
        zoom=float(rng.uniform(0.75, 1.0)),
        light=(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.2, 0.9)), 0.7),
        ground=int(rng.integers(210, 256)),
    )


def render(mesh: Mesh, shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws a turntable clip.

    Args:
        mesh: The object.
        shot: How to take it.
        rng: Source of the surface points.

    Returns:
        uint8 (FRAMES, SIDE, SIDE, 3), RGB.
    """
    radius = float(np.linalg.norm(mesh.vertices[mesh.faces], axis=-1).max())
    pixels = mesh.area / radius**2 * (SIDE * _FINE * _FILL) ** 2
    # What is hidden takes its share of the points too: models with much inside need more.
    count = min(max(_POINTS[0], round(_DENSITY * pixels)), _POINTS[1])
    points, colours, normals = surface(mesh, count, rng)
    scale = np.float32(1 / radius)
    turns = np.radians(shot.heading + np.arange(FRAMES) * shot.turn / FRAMES)
    light = np.array(shot.light, dtype=np.float32)
    light /= np.linalg.norm(light)
    frames = [
        _frame(
            points @ (view := _camera(turn, shot.elevation)) * scale,
            colours,
            normals @ view,
            light,
            shot,
        )
        for turn in turns
    ]
    return np.stack(frames)


def _camera(turn: float, elevation: float) -> NDArray[np.float32]:
    """World to eye, for rows: (right, up, towards the eye) of a point; turn in radians."""
    cos, sin = np.cos(turn), np.sin(turn)
    about = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    tilt = np.radians(elevation)
    down, level = np.sin(tilt), np.cos(tilt)
    # The eye stands at -y before it is raised.
    look = np.array([[1, 0, 0], [0, down, -level], [0, level, down]])
    return (about @ look).astype(np.float32)


def _frame(
    points: NDArray[np.float32],
    colours: NDArray[np.uint8],
    normals: NDArray[np.float32],
    light: NDArray[np.float32],
    shot: Shot,
) -> NDArray[np.uint8]:
    """One frame, uint8 (SIDE, SIDE, 3), of points and normals as the eye sees them."""
    side = SIDE * _FINE
    near = _EYE - points[:, 2]
    reach = side * _FILL * shot.zoom * math.sqrt(_EYE**2 - 1) / near
    across = side / 2 + points[:, 0] * reach
    down = side / 2 - points[:, 1] * reach
    # Whole numbers of two bytes sort several times as fast; 1 / 16,000 of the depth is fine enough.
    depth = ((_EYE + 1 - near) / 2 * 32_000).astype(np.uint16)
    order = np.argsort(depth, kind="stable")
    rows, columns = (np.stack([down, across])[:, order] - (_SPLAT - 1) / 2).round().astype(np.int32)
    corner = rows.clip(0, side) * (side + _SPLAT) + columns.clip(0, side)
    square = np.arange(_SPLAT, dtype=np.int32)
    cells = corner[:, None] + (square[:, None] * (side + _SPLAT) + square).ravel()
    canvas = np.full((side + _SPLAT) ** 2, -1, dtype=np.int32)
    # Nearer points come later, and the last write stays: that is the depth buffer.
    canvas[cells.ravel()] = np.repeat(order.astype(np.int32), _SPLAT**2)
    seen = canvas.reshape(side + _SPLAT, -1)[:side, :side]
    picture = np.full((side, side, 3), shot.ground, dtype=np.float32)
    drawn = seen >= 0
    picture[drawn] = _shade(points, colours, normals, light)[seen[drawn]]
    steps = range(_FINE)
    mean = sum(picture[i::_FINE, j::_FINE] for i in steps for j in steps) / np.float32(_FINE**2)
    return np.asarray(mean).round().astype(np.uint8)


def _shade(
    points: NDArray[np.float32],
    colours: NDArray[np.uint8],
    normals: NDArray[np.float32],
    light: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Lambert's law: float32 (N, 3), 0 to 255."""
    # Models wind their faces either way; a face is lit on the side that the eye sees.
    facing = np.sign(_EYE * normals[:, 2] - (normals * points).sum(1))
    lit = 0.55 + 0.55 * np.maximum(0, normals @ light * facing)
    return np.minimum(255, colours * lit[:, None])


def write_clip(path: Path, frames: NDArray[np.uint8]) -> None:
    """Writes an MP4 file, whole or not at all; one thread and no date, so the same bytes.

    Args:
        path: Ends in ``.mp4``.
        frames: uint8 (T, height, width, 3), RGB, even sides.
    """
    part = path.with_suffix(".part")
    options = {"fflags": "+bitexact"}
    with av.open(str(part), "w", format="mp4", container_options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(CRF), "preset": "veryfast", "x264-params": _STEADY}
        stream.codec_context.thread_count = 1
        for pixels in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    part.rename(path)


def read_clip(path: Path) -> NDArray[np.uint8]:
    """All frames of a clip, uint8 (T, height, width, 3), RGB."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
