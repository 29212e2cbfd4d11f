"""Wavefront OBJ files, and of their materials the diffuse colours; textures are never opened."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from modalloy.errors import InputError
from modalloy_pointcloud.checks import check_limit
from modalloy_pointcloud.surface import GREY, Mesh, triangulate

Library = Callable[[str], bytes | None]
"""Given the name of a material file, its content, or ``None`` where it is not to be had."""

WORDS = frozenset(["v", "vn", "vt", "vp", "f", "l", "p", "o", "g", "s", "mtllib", "usemtl"])
"""First words of the lines by which an OBJ file is known."""

_RGB = 3


@attrs.define(eq=False)
class _Content:
    vertices: list[list[float]] = attrs.Factory(list)
    corners: list[int] = attrs.Factory(list)
    sizes: list[int] = attrs.Factory(list)
    materials: list[str] = attrs.Factory(list)
    colours: dict[str, list[float]] = attrs.Factory(dict)


def read_obj(data: bytes, limits: Mapping[str, int], what: str, library: Library) -> Mesh:
    """Read vertices, faces, and the diffuse colours (``Kd``) of the faces' materials.

    Args:
        data: The whole file.
        limits: ``"points"`` bounds the vertices, ``"faces"`` the faces and triangles.
        what: The input, for messages.
        library: Where the text of ``mtllib`` files comes from; nothing else is ever looked up.

    Raises:
        InputError: A line of vertices or faces is damaged.
        LimitError: There are too many vertices or faces.
    """
    content = _Content()
    material, libraries = "", set[str]()
    text = data.decode("utf-8", errors="replace").replace("\\\r\n", " ").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), start=1):
        word, rest = _split(line)
        try:
            if word == "v":
                content.vertices.append([float(value) for value in rest.split()])
            elif word == "f":
                _add_face(content, rest.split(), material)
            elif word == "usemtl":
                material = rest.strip()
            elif word == "mtllib" and rest not in libraries:
                libraries.add(rest)  # naming one again must not cost reading it again
                content.colours |= _diffuse(library(rest) or b"")
        except InputError:
            raise
        except ValueError as error:
            raise InputError(
                f"{what}: line {number} of the OBJ file, {line[:60]!r}, is damaged ({error})"
            ) from error
        if word == "v":
            check_limit("points", len(content.vertices), limits, what)
        check_limit("faces", len(content.sizes), limits, what)
    return _mesh(content, limits, what)


def _split(line: str) -> tuple[str, str]:
    """Return a line's first word and the rest; blanks and tabs alike stand between words."""
    word, *rest = line.split(maxsplit=1) or [""]
    return word, rest[0].strip() if rest else ""


def _add_face(content: _Content, references: list[str], material: str) -> None:
    for reference in references:
        index = int(reference.partition("/")[0])
        if not -len(content.vertices) <= index < 2**63 or index == 0:
            raise ValueError(f"it names vertex {index}, {len(content.vertices)} precede it")
        # Counted from 1, or backwards from the vertex read last.
        content.corners.append(index - 1 if index > 0 else len(content.vertices) + index)
    content.sizes.append(len(references))
    content.materials.append(material)


def _diffuse(data: bytes) -> dict[str, list[float]]:
    """Return the ``Kd`` of each material of an MTL file, cut to 0..1."""
    colours: dict[str, list[float]] = {}
    material = ""
    for line in data.decode("utf-8", errors="replace").splitlines():
        word, rest = _split(line)
        if word == "newmtl":
            material = rest.strip()
        elif word == "Kd":
            values = rest.split()
            if values[:1] in (["spectral"], ["xyz"]):
                continue  # spectra and CIE colours, which hardly any file has
            numbers = [float(value) for value in values]
            numbers = numbers * _RGB if len(numbers) == 1 else numbers
            if len(numbers) < _RGB or not all(map(math.isfinite, numbers)):
                raise ValueError(f"Kd of material {material!r} is {rest.strip()[:40]!r}")
            colours[material] = [min(max(number, 0.0), 1.0) for number in numbers[:_RGB]]
    return colours


def _mesh(content: _Content, limits: Mapping[str, int], what: str) -> Mesh:
    lengths = {len(vertex) for vertex in content.vertices}
    if not lengths <= {3, 4, 6, 7}:
        raise InputError(
            f"{what}: vertices of the OBJ file have {sorted(lengths)} numbers; expected x y z, "
            "perhaps a weight, and perhaps red, green and blue"
        )
    vertices = np.array([vertex[:3] for vertex in content.vertices]).reshape(-1, 3)
    vertex_rgb = None
    if lengths and min(lengths) >= 2 * _RGB:
        vertex_rgb = np.array([vertex[-_RGB:] for vertex in content.vertices])
    faces, polygon = triangulate(
        np.array(content.corners, dtype=np.int64),
        np.array(content.sizes, dtype=np.int64),
        limits,
        what,
    )
    return Mesh(vertices, faces, vertex_rgb, _face_rgb(content, polygon))


def _face_rgb(content: _Content, polygon: NDArray[np.int64]) -> NDArray[Any] | None:
    if not any(material in content.colours for material in set(content.materials)):
        return None
    grey = [GREY] * _RGB
    return np.array([content.colours.get(name, grey) for name in content.materials])[polygon]
