"""OFF files (the format of ModelNet): vertices, faces and their colours."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalloy.errors import InputError
from modalloy_pointcloud.arrays import read_rows
from modalloy_pointcloud.checks import check_limit
from modalloy_pointcloud.surface import GREY, Mesh, triangulate

_KINDS = (b"COFF", b"OFF")
_RGB = 3


def read_off(data: bytes, limits: Mapping[str, int], what: str) -> Mesh:
    """Read an OFF or COFF file in text form.

    Args:
        data: The whole file.
        limits: ``"points"`` bounds the vertices, ``"faces"`` the faces and triangles.
        what: The input, for messages.

    Raises:
        InputError: The file is damaged or cut off.
        LimitError: There are too many vertices or faces.
    """
    lines = [row for line in data.splitlines() if (row := line.partition(b"#")[0].strip())]
    kind = next((kind for kind in _KINDS if lines and lines[0].startswith(kind)), None)
    if kind is None:
        raise InputError(f"{what}: no line of the file begins with OFF before its numbers do")
    # ModelNet's own files have the counts glued to the word: "OFF490 518 0".
    rest = lines[0][len(kind) :].strip()
    lines = ([rest] if rest else []) + lines[1:]
    vertex_count, face_count = _counts(lines, what)
    check_limit("points", vertex_count, limits, what)
    check_limit("faces", face_count, limits, what)
    if len(lines) < 1 + vertex_count + face_count:
        raise InputError(
            f"{what}: the OFF header promises {vertex_count:,} vertices and {face_count:,} faces, "
            f"{len(lines) - 1:,} lines follow; the file is damaged or cut off"
        )
    vertices = np.zeros((0, 3))
    if vertex_count:
        vertices = read_rows(lines[1 : vertex_count + 1], what)
    colours = vertices.shape[1] - _RGB
    if colours < 0 or (kind == b"OFF" and colours) or (kind == b"COFF" and colours < _RGB):
        raise InputError(f"{what}: a vertex of an {kind.decode()} file has {3 + colours} numbers")
    vertex_rgb = vertices[:, _RGB : 2 * _RGB] if colours else None
    rows = lines[vertex_count + 1 : vertex_count + face_count + 1]
    faces, face_rgb = _faces(rows, limits, what)
    return Mesh(vertices[:, :_RGB], faces, vertex_rgb, face_rgb)


def _counts(lines: list[bytes], what: str) -> tuple[int, int]:
    try:
        vertices, faces = (int(word) for word in lines[0].split()[:2])
        if min(vertices, faces) < 0:
            raise ValueError("negative")  # noqa: TRY301
    except (ValueError, LookupError) as error:
        raise InputError(
            f"{what}: an OFF file begins with its numbers of vertices and faces; found "
            f"{lines[0][:40] if lines else b''!r}"
        ) from error
    return vertices, faces


def _faces(
    rows: list[bytes], limits: Mapping[str, int], what: str
) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
    corners, sizes, colours = list[int](), list[int](), list[list[float]]()
    for number, row in enumerate(rows):
        words = row.split()
        try:
            size = int(words[0])
            named = [int(word) for word in words[1 : size + 1]]
            colour = [float(word) for word in words[size + 1 :]]
        except ValueError as error:
            raise _bad_face(number, row, what) from error
        if size < 0 or len(named) != size or max(map(abs, named), default=0) >= 2**63:
            raise _bad_face(number, row, what)
        corners += named
        sizes.append(size)
        # One number alone is an index into a colour map that the file does not hold.
        colours.append(colour[:_RGB] if len(colour) >= _RGB else [])
    faces, polygon = triangulate(
        np.array(corners, dtype=np.int64), np.array(sizes, dtype=np.int64), limits, what
    )
    if not any(colours):
        return faces, None
    full = max(max(colour, default=0) for colour in colours)
    grey = [GREY * (255 if full > 1 else 1)] * _RGB
    return faces, np.array([colour or grey for colour in colours])[polygon]


def _bad_face(number: int, row: bytes, what: str) -> InputError:
    return InputError(
        f"{what}: face {number} of the OFF file, {row[:60]!r}, is not a number of corners and "
        "their vertices; the file is damaged"
    )
