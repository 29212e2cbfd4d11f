"""Meshes: OBJ models with their colours and textures, and points drawn from their surface."""

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import PurePosixPath

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from recipes.household.furniture import Entry

_GREY = (204, 204, 204)
_GLASS = 0.05
"""Opacity below which a face cannot be seen at all and is left out."""
_SKIN = 256
"""Longest side in pixels that textures are kept at: clips are smaller than that."""
_ROUNDS = 40
_EVEN = np.array([0.7548776662466927, 0.5698402909980532])
"""Steps of the additive sequence that fills a square most evenly."""


@attrs.frozen(eq=False)
class Mesh:
    """A coloured triangle mesh, z up, in metres, the middle of its bounding box at the origin.

    Attributes:
        vertices: float32 (V, 3).
        faces: int64 (F, 3), rows of ``vertices``.
        colours: uint8 (F, 3), RGB of each face; of a textured one, its texture's mean.
        corners: float32 (F, 3, 2), texture coordinates, 0 where there is no texture.
        skin: int64 (F,), place in ``skins``, -1 where there is no texture.
        skins: Textures, each uint8 (height, width, 4), RGBA, top row first.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    colours: NDArray[np.uint8]
    corners: NDArray[np.float32]
    skin: NDArray[np.int64]
    skins: tuple[NDArray[np.uint8], ...]

    @property
    def normals(self) -> NDArray[np.float64]:
        """Normals of the faces, float64 (F, 3), twice as long as each face's area."""
        first, second, third = (self.vertices[self.faces[:, i]].astype(float) for i in range(3))
        return np.cross(second - first, third - first)

    @property
    def area(self) -> float:
        """Square metres of all faces."""
        return float(np.linalg.norm(self.normals, axis=1).sum()) / 2


@attrs.define
class Material:
    """What an MTL file says of one material: RGB, opacity 0 to 1, texture member or empty."""

    colour: tuple[int, int, int] = _GREY
    opacity: float = 1.0
    texture: str = ""


@attrs.define
class _Parsed:
    """An OBJ file as it stands: positions, texture coordinates, triangles of places in both."""

    points: list[tuple[float, ...]] = attrs.field(factory=list)
    places: list[tuple[float, float]] = attrs.field(factory=list)
    faces: list[tuple[int, ...]] = attrs.field(factory=list)
    corners: list[tuple[int, ...]] = attrs.field(factory=list)
    materials: list[str] = attrs.field(factory=list)
    libraries: list[str] = attrs.field(factory=list)


def read_mesh(archive: zipfile.ZipFile, entry: Entry) -> Mesh:
    """Reads the model of a catalogue entry, turned upright and scaled to the size it lists.

    Args:
        archive: The catalogue's ``.sh3f``.
        entry: What the catalogue lists.

    Raises:
        ValueError: The model has no visible face, or is no OBJ file.
    """
    parsed = _parse(_text(archive, entry.model), entry.model)
    folder = PurePosixPath(entry.model).parent
    materials: dict[str, Material] = {}
    for library in parsed.libraries:
        member = _find(archive, folder, library)
        if member:
            materials |= read_materials(archive, member)
    shown = [materials.get(name, Material()) for name in parsed.materials]
    keep = np.array([m.opacity >= _GLASS for m in shown], dtype=bool)
    if not keep.any():
        raise ValueError(
            f"Model {entry.model}: expected triangles that can be seen, found {len(keep)} faces "
            "and none of them. Take the object out of the list, or look at its OBJ and MTL files."
        )
    names = sorted({m.texture for m in shown if m.texture})
    skins = {name: skin for name in names if (skin := _skin(archive, name)) is not None}
    means = {name: _mean(skin) for name, skin in skins.items()}
    numbers = {name: number for number, name in enumerate(skins)}
    places = np.array([*parsed.places, (0.0, 0.0)], dtype=np.float32)
    return Mesh(
        vertices=_upright(np.array(parsed.points, dtype=np.float64), entry, parsed.faces),
        faces=np.array(parsed.faces, dtype=np.int64)[keep],
        colours=np.array([means.get(m.texture, m.colour) for m in shown], dtype=np.uint8)[keep],
        corners=places[np.array(parsed.corners, dtype=np.int64)][keep],
        skin=np.array([numbers.get(m.texture, -1) for m in shown], dtype=np.int64)[keep],
        skins=tuple(skins.values()),
    )


def _upright(
    points: NDArray[np.float64], entry: Entry, faces: list[tuple[int, ...]]
) -> NDArray[np.float32]:
    """Turned, scaled to the listed size, centred, and z up: float32 (V, 3), metres."""
    points = points @ np.array(entry.rotation).reshape(3, 3).T
    # Models hold stray points that no face uses; they do not count for the size.
    used = points[np.unique(np.array(faces))]
    low, high = used.min(0), used.max(0)
    width, depth, height = entry.size
    scale = np.array([width, height, depth]) / 100 / np.maximum(high - low, 1e-9)
    x, y, z = ((points - (low + high) / 2) * scale).T
    return np.stack([x, -z, y], axis=1).astype(np.float32)


def _text(archive: zipfile.ZipFile, member: str) -> str:
    # Comments in any encoding; what matters is ASCII.
    return archive.read(member).decode("latin-1").replace("\\\n", " ").replace("\\\r\n", " ")


def _parse(text: str, name: str) -> _Parsed:
    """Reads the lines of an OBJ file that matter here; polygons become fans of triangles."""
    parsed = _Parsed()
    material = ""
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "v":
            parsed.points.append(tuple(map(float, rest.split()[:3])))
        elif word == "vt":
            place = [*map(float, rest.split()[:2]), 0.0]
            parsed.places.append((place[0], place[1]))
        elif word == "usemtl":
            material = rest.strip()
        elif word == "mtllib":
            parsed.libraries.append(rest.strip())
        elif word == "f":
            for face, corners in _fan(rest.split(), parsed):
                parsed.faces.append(face)
                parsed.corners.append(corners)
                parsed.materials.append(material)
    if not parsed.faces:
        raise ValueError(
            f"Model {name}: expected an OBJ file with faces, found {len(parsed.points)} vertices "
            "and no face. Take the object out of the list."
        )
    return parsed


def _fan(words: list[str], parsed: _Parsed) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Triangles of one face line, as places in the lists (-1: the place that stands for none)."""
    face, corners = [], []
    for word in words:
        point, place, *_ = [*word.split("/"), ""]
        number = int(point)
        # OBJ counts from 1, or backwards from the last one read.
        face.append(number - 1 if number > 0 else len(parsed.points) + number)
        number = int(place or 0)
        corners.append(number - 1 if number >= 0 else len(parsed.places) + number)
    for last in range(2, len(face)):
        yield (
            (face[0], face[last - 1], face[last]),
            (corners[0], corners[last - 1], corners[last]),
        )


def read_materials(archive: zipfile.ZipFile, member: str) -> dict[str, Material]:
    """Materials of an MTL file, by name."""
    materials: dict[str, Material] = {}
    material = Material()
    for line in _text(archive, member).splitlines():
        word, _, rest = line.strip().partition(" ")
        match word:
            case "newmtl":
                material = materials.setdefault(rest.strip(), Material())
            case "Kd":
                red, green, blue = (round(255 * min(1.0, float(v))) for v in rest.split()[:3])
                material.colour = (red, green, blue)
            case "d":
                material.opacity = float(rest.split()[-1])
            case "map_Kd":
                # Options (-s 1 1 1, -o ...) stand before the name, which may hold spaces.
                file = rest.strip() if not rest.startswith("-") else rest.split()[-1]
                material.texture = _find(archive, PurePosixPath(member).parent, file)
    return materials


def _find(archive: zipfile.ZipFile, folder: PurePosixPath, file: str) -> str:
    """The member that ``file`` means, whatever its case and slashes, or an empty string."""
    wanted = str(folder / file.replace("\\", "/").removeprefix("./")).lower()
    return next((name for name in archive.namelist() if name.lower() == wanted), "")


def _skin(archive: zipfile.ZipFile, member: str) -> NDArray[np.uint8] | None:
    """A texture, uint8 (height, width, 4), or None for a picture that is wholly transparent."""
    with Image.open(BytesIO(archive.read(member))) as image:
        image.draft("RGB", (_SKIN, _SKIN))
        small = image.convert("RGBA")
    small.thumbnail((_SKIN, _SKIN))
    pixels = np.asarray(small)
    return pixels if pixels[..., 3].any() else None


def _mean(skin: NDArray[np.uint8]) -> tuple[int, ...]:
    """Mean RGB of what can be seen of a texture."""
    weight = skin[..., 3:].astype(np.float64)
    return tuple(int(v) for v in (skin[..., :3] * weight).sum((0, 1)) / weight.sum())


def surface(
    mesh: Mesh, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """Draws points from the surface, uniformly by area.

    Where a texture is transparent (between leaves), there is no surface.

    Args:
        mesh: The mesh.
        count: Number of points N.
        rng: Source of the draws.

    Returns:
        Positions float32 (N, 3), colours uint8 (N, 3), unit normals float32 (N, 3), either side.

    Raises:
        ValueError: Nothing of the mesh is visible, or it has no area.
    """
    normals = mesh.normals
    area = np.linalg.norm(normals, axis=1)
    total = float(area.sum())
    kept: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.uint8]]] = []
    missing = count
    for _ in range(_ROUNDS if total > 0 else 0):
        # Even steps through the area and a sequence that fills the triangle evenly leave neither
        # clumps nor the holes that independent draws would.
        steps = (np.arange(count) + rng.random()) / count
        chosen = np.searchsorted(area.cumsum() / total, steps, side="right").clip(max=len(area) - 1)
        weights = _barycentric((np.arange(count)[:, None] * _EVEN + rng.random(2)) % 1.0)
        colours, seen = _paint(mesh, chosen, weights)
        rows = rng.permutation(np.flatnonzero(seen))[:missing]
        kept.append((chosen[rows], weights[rows], colours[rows]))
        missing -= len(rows)
        if not missing:
            break
    if missing:
        raise ValueError(
            f"A mesh of {len(area)} faces, {total / 2:.3g} square metres: expected {count} points "
            f"on its surface, found {count - missing}. Its faces have no area or are transparent."
        )
    chosen, weights, colours = (np.concatenate(part) for part in zip(*kept, strict=True))
    points = np.einsum("nk,nkd->nd", weights, mesh.vertices[mesh.faces[chosen]])
    unit = normals[chosen] / area[chosen, None]
    return points.astype(np.float32), colours, unit.astype(np.float32)


def _barycentric(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places in the unit square (N, 2) to weights of a triangle's corners (N, 3), evenly."""
    # The half beyond the diagonal is turned onto the other; nothing is stretched.
    folded = np.where(draws.sum(1, keepdims=True) > 1, 1 - draws, draws)
    return np.column_stack([1 - folded.sum(1), folded])


def _paint(
    mesh: Mesh, chosen: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Colours uint8 (N, 3) of points on faces ``chosen``, and whether each can be seen."""
    colours = mesh.colours[chosen]
    seen = np.ones(len(chosen), dtype=bool)
    for number, skin in enumerate(mesh.skins):
        here = np.flatnonzero(mesh.skin[chosen] == number)
        place = np.einsum("nk,nkd->nd", weights[here], mesh.corners[chosen[here]]) % 1.0
        height, width = skin.shape[:2]
        column = (place[:, 0] * width).astype(np.int64).clip(max=width - 1)
        row = ((1 - place[:, 1]) * height).astype(np.int64).clip(max=height - 1)
        colours[here] = skin[row, column, :3]
        seen[here] = skin[row, column, 3] > 127  # noqa: PLR2004 - half transparent
    return colours, seen
