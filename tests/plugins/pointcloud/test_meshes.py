"""Meshes: points on their surface, colours of every kind, and files that lie."""

import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from modalloy.errors import InputError, LimitError, ModalloyWarning
from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.reading import read

LIMITS = {"bytes": 2_000_000, "points": 50_000, "faces": 60_000}
XYZ = "property float x\nproperty float y\nproperty float z"
CORNERS = b"0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
SQUARE = b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
RED, GREEN, BLUE, GREY = [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]


def ply(header: str, body: bytes, form: str = "ascii") -> bytes:
    return f"ply\nformat {form} 1.0\n{header}\nend_header\n".encode() + body


def colours(cloud: PointCloud) -> list[list[float]]:
    assert cloud.rgb is not None
    return np.unique(cloud.rgb, axis=0)[::-1].tolist()


@pytest.mark.parametrize("kind", ["ply", "off", "obj"])
def test_points_lie_on_the_surface_evenly_by_area(kind: str) -> None:
    # A long box of unequal sides, cut finely at one end only: triangles must not matter.
    box = trimesh.creation.box((4, 1, 1)).subdivide()
    near = np.flatnonzero(box.triangles_center[:, 0] < 0)
    data = box.subdivide(near).export(file_type=kind)
    cloud = read(data if isinstance(data, bytes) else data.encode(), LIMITS)
    assert len(cloud) == 8192
    half = np.array([2, 0.5, 0.5])
    on_side = np.isclose(np.abs(cloud.xyz), half, atol=1e-5)
    assert on_side.any(axis=1).all()
    assert (np.abs(cloud.xyz) <= half + 1e-5).all()
    assert (cloud.xyz[:, 0] < 0).mean() == pytest.approx(0.5, abs=0.01)
    assert on_side[:, 0].mean() == pytest.approx(2 / 18, abs=0.005)
    again = read(data if isinstance(data, bytes) else data.encode(), LIMITS)
    np.testing.assert_array_equal(cloud.xyz, again.xyz)


def test_points_are_even_within_a_triangle() -> None:
    cloud = read(b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", LIMITS)
    np.testing.assert_allclose(cloud.xyz.mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.01)
    assert (cloud.xyz[:, :2].sum(axis=1) < 0.5).mean() == pytest.approx(0.25, abs=0.015)


def test_formats_agree() -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    expected = read(ball.export(file_type="ply"), LIMITS).xyz
    for data in (
        ball.export(file_type="ply", encoding="ascii"),
        ball.export(file_type="off", digits=12).encode(),
        ball.export(file_type="obj", digits=12).encode(),
    ):
        np.testing.assert_allclose(read(data, LIMITS).xyz, expected, atol=1e-5)


def test_tabs_stand_between_words_as_blanks_do() -> None:
    plain = read(SQUARE + b"f 1 2 3\n", LIMITS)
    tabbed = read((SQUARE + b"f 1 2 3\n").replace(b" ", b"\t"), LIMITS)
    assert len(plain) == 8192
    np.testing.assert_array_equal(plain.xyz, tabbed.xyz)


def test_vertex_colours_run_between_the_corners() -> None:
    mesh = trimesh.creation.box()
    rgb = np.uint8(255) * (mesh.vertices > 0).astype(np.uint8)
    for data in (
        trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=rgb).export(file_type="ply"),
        trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=rgb).export(file_type="obj"),
    ):
        cloud = read(data if isinstance(data, bytes) else data.encode(), LIMITS)
        assert cloud.rgb is not None
        np.testing.assert_allclose(cloud.rgb, cloud.xyz + 0.5, atol=1e-5)


def test_face_colours_of_ply_and_off() -> None:
    faces = "element face 2\nproperty list uchar int vertex_indices\n"
    colour = "property uchar red\nproperty uchar green\nproperty uchar blue"
    header = f"element vertex 4\n{XYZ}\n{faces}{colour}"
    made = read(ply(header, CORNERS + b"3 0 1 2 255 0 0\n3 0 2 3 0 0 255\n"), LIMITS)
    assert colours(made) == [RED, BLUE]
    assert made.rgb is not None
    np.testing.assert_array_equal(made.rgb[:, 0] == 1, made.xyz[:, 0] > made.xyz[:, 1])
    off = b"OFF\n4 2 0\n" + CORNERS + b"3 0 1 2 255 0 0\n3 0 2 3  # no colour of its own\n"
    np.testing.assert_allclose(colours(read(off, LIMITS)), [RED, GREY], atol=1e-6)


def test_off_as_modelnet_writes_it_and_with_vertex_colours() -> None:
    assert len(read(b"OFF4 1 0\n" + CORNERS + b"4 0 1 2 3\n", LIMITS)) == 8192
    rows = b"".join(row + b" 0 255 0 255\n" for row in CORNERS.splitlines())
    assert colours(read(b"COFF\n4 1 0\n" + rows + b"4 0 1 2 3\n", LIMITS)) == [GREEN]


def test_polygons_of_mixed_size_text_and_binary() -> None:
    header = f"element vertex 4\n{XYZ}\nelement edge 1\nproperty int a\n"
    header += "element face 2\nproperty uchar flag\nproperty list uchar int vertex_index"
    body = b"9\n" + b"7 4 0 1 2 3\n7 3 0 1 2\n"
    expected = read(ply(header, CORNERS + body), LIMITS)
    for form, order in (("binary_little_endian", "<"), ("binary_big_endian", ">")):
        packed = np.fromstring(CORNERS.decode(), sep=" ").astype(order + "f4").tobytes()
        packed += struct.pack(order + "i BB4i BB3i", 9, 7, 4, 0, 1, 2, 3, 7, 3, 0, 1, 2)
        np.testing.assert_array_equal(read(ply(header, packed, form), LIMITS).xyz, expected.xyz)
        for length in range(len(packed)):
            with pytest.raises(InputError, match="the data end before; the file is damaged"):
                read(ply(header, packed[:length], form), LIMITS)


def test_a_ply_of_many_mixed_polygons_is_fast() -> None:
    count = 50_000
    header = f"element vertex 4\n{XYZ}\nelement face {count}\n"
    header += "property list uchar int vertex_indices"
    body = np.fromstring(CORNERS.decode(), sep=" ").astype("<f4").tobytes()
    body += struct.pack("<B4iB3i", 4, 0, 1, 2, 3, 3, 0, 1, 2) * (count // 2)
    start = time.process_time()
    read(ply(header, body, "binary_little_endian"), LIMITS | {"faces": 10**6})
    assert time.process_time() - start < 1.5


def obj_folder(tmp_path: Path, mtllib: str) -> Path:
    folder = tmp_path / "models"
    (folder / "below").mkdir(parents=True)
    library = b"newmtl one\nKd 1 0 0\nmap_Kd ../secret.mtl\nnewmtl two\nKd 0 0 1\n"
    for place in (folder, folder / "below", tmp_path):
        (place / "secret.mtl").write_bytes(library)
    (folder / "link.mtl").symlink_to(tmp_path / "secret.mtl")
    (folder / "secret.txt").write_bytes(library)
    file = folder / "square.obj"
    faces = b"usemtl one\nf 1//5 2/7 3/8/9\nusemtl two\nf -4 -2 -1\n"
    file.write_bytes(f"mtllib {mtllib}\n".encode() + SQUARE + faces)
    return file


@pytest.mark.parametrize("name", ["secret.mtl", "below/secret.mtl", r"below\secret.mtl"])
def test_an_objs_material_colours(tmp_path: Path, name: str) -> None:
    file = obj_folder(tmp_path, name)
    cloud = read(file, LIMITS)
    assert colours(cloud) == [RED, BLUE]
    assert cloud.rgb is not None
    np.testing.assert_array_equal(cloud.rgb[:, 0] == 1, cloud.xyz[:, 0] > cloud.xyz[:, 1])
    assert read(file.read_bytes(), LIMITS).rgb is None, "bytes have no directory to look in"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../secret.mtl", "lies outside"),
        ("below/../../secret.mtl", "lies outside"),
        ("link.mtl", "lies outside"),
        ("{tmp}/secret.mtl", "lies outside"),
        (r"C:\secret.mtl", "lies outside"),
        (r"\\host\share\secret.mtl", "lies outside"),
        ("secret.txt", "is not a .mtl file that exists"),
        ("missing.mtl", "is not a .mtl file that exists"),
        ("m" * 300 + ".mtl", "cannot be read (File name too long)"),
        ("https://example.org/secret.mtl", "is not a .mtl file that exists"),
    ],
)
def test_an_obj_reaches_no_other_file(
    tmp_path: Path, name: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = obj_folder(tmp_path, name.replace("{tmp}", str(tmp_path)))
    opened: list[Path] = []
    plain = Path.open

    def watched(path: Path, *args: Any, **options: Any) -> Any:
        opened.append(path)
        return plain(path, *args, **options)

    monkeypatch.setattr(Path, "open", watched)
    with pytest.warns(
        ModalloyWarning, match=f"{re.escape(problem)}.*materials' colours are left out"
    ):
        assert read(file, LIMITS).rgb is None
    assert opened == [file]


def test_a_material_file_is_bounded_and_its_damage_reported(tmp_path: Path) -> None:
    file = obj_folder(tmp_path, "secret.mtl")
    material = file.parent / "secret.mtl"
    material.write_bytes(b"newmtl one\nKd 1 zero 0\n")
    with pytest.raises(InputError, match=r"line 1 of the OBJ file, 'mtllib secret.mtl'"):
        read(file, LIMITS)
    material.write_bytes(b"newmtl one\nKd 1 0 0\n" * 50_000)
    file.write_bytes(b"mtllib secret.mtl\n" * 500 + file.read_bytes())
    start = time.process_time()
    assert read(file, LIMITS).rgb is not None
    assert time.process_time() - start < 5, "one library is read once, however often it is named"
    material.write_bytes(bytes(2**20 + 1))
    with pytest.raises(LimitError, match=r"secret.mtl: 1,048,577 bytes, at most 1,048,576"):
        read(file, LIMITS)


FACE = "element face 1\nproperty list uchar int vertex_indices"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            SQUARE + b"f 1 2 5\n",
            "face 0 names vertices [0, 1, 4] (counted from 0), but there are 4",
        ),
        (b"v 0 0 0\nv 1 1 1\nf 1 2 -3\n", "it names vertex -3, 2 precede it"),
        (SQUARE + b"f 0 1 2\n", "it names vertex 0"),
        (SQUARE + b"f 1 2\n", "face 0 has 2 corners; a face needs at least three"),
        (SQUARE + b"f 1 x 2\n", "line 5 of the OBJ file, 'f 1 x 2', is damaged"),
        (b"v 0 0 zero\n", "line 1 of the OBJ file, 'v 0 0 zero', is damaged"),
        (b"v 0 0\nv 1 1\n", "vertices of the OBJ file have [2] numbers; expected x y z"),
        (b"o thing\n", "empty, there are no points in it"),
        (SQUARE + b"f 1 1 2\n", "its 1 faces have an area of 0"),
        (b"v nan 0 0\n" + SQUARE + b"f 2 3 4\n", "1 of 5 points have coordinates that are NaN"),
        (b"OFF\n4 1 0\n" + CORNERS + b"3 0 1 4\n", "face 0 names vertices [0, 1, 4]"),
        (b"OFF\n4 1 0\n" + CORNERS + b"3 0 1 -1\n", "face 0 names vertices [0, 1, -1]"),
        (b"OFF\n4 1 0\n" + CORNERS + b"4 0 1 2\n", "face 0 of the OFF file, b'4 0 1 2'"),
        (b"OFF\n4 2 0\n" + CORNERS + b"3 0 1 2\n", "promises 4 vertices and 2 faces, 5 lines"),
        (b"OFF\n", "an OFF file begins with its numbers of vertices and faces; found b''"),
        (b"OFF\nmany few\n", "found b'many few'"),
        (b"OFF\n2 0 0\n1 2 3 4\n1 2 3 4\n", "a vertex of an OFF file has 4 numbers"),
        (b"ply\nformat ascii 1.0\n", "the PLY header has no end; the file is damaged or cut off"),
        (b"ply\nelement vertex 1\nend_header\n", "the PLY header states no format"),
        (ply(f"element vertex 2\n{XYZ}\nfoo", b""), "line 7 of the PLY header, 'foo'"),
        (ply("property float x", b""), "line 3 of the PLY header, 'property float x'"),
        (ply("element vertex 1", b""), "gives element 'vertex' no properties"),
        (ply(f"element vertex 1\n{XYZ}\nproperty int x", b"1 2 3 4\n"), "a property twice"),
        (ply(f"element vertex 2\n{XYZ}", b"0 0 0\n1 1 1e99\n"), "1 of 2 points have coordinates"),
        (
            ply(f"element vertex 2\n{XYZ}\nproperty uchar red", b"0 0 0 0\n1 1 1 256\n"),
            "PLY property 'red' is declared as uint8, and its values reach from 0 to 256",
        ),
        (ply("element vertex 2\nproperty float x", b"1\n2\n"), "found only ['x']"),
        (ply(FACE, b"3 0 1 2\n"), "needs vertices with x, y and z; found no element 'vertex'"),
        (ply(f"element vertex 3\n{XYZ}", b"0 0 0\n1 1 1\n"), "promises 3 of 'vertex'"),
        (ply(f"element vertex 2\n{XYZ}", b"0 0\n1 1\n"), "row 0 of PLY element 'vertex'"),
        (ply(f"element vertex 4\n{XYZ}\n{FACE}", CORNERS + b"3 0 1\n"), "row 0 of PLY element"),
        (ply(f"element vertex 4\n{XYZ}\n{FACE}", CORNERS + b"3 0 1 9\n"), "names vertices [0, 1,"),
        (ply(f"element vertex 4\n{XYZ}\n{FACE}", CORNERS + b"2 0 1\n"), "face 0 has 2 corners"),
    ],
)
def test_damaged_meshes(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read(data, LIMITS)


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (ply(f"element vertex 50001\n{XYZ}", b""), "points"),
        (ply(f"element vertex 4\n{XYZ}\n{FACE.replace('1', '60001')}", b""), "faces"),
        (ply(f"element cell 50001\nproperty int a\nelement vertex 4\n{XYZ}", b""), "points"),
        (b"OFF\n50001 0 0\n", "points"),
        (b"OFF\n3 60001 0\n", "faces"),
        (b"OFF\n4 1 0\n" + CORNERS + b"60003" + b" 0" * 60003 + b"\n", "faces"),
        (b"v 0 0 0\n" * 50001, "points"),
        (SQUARE + b"f 1 2 3\n" * 60001, "faces"),
    ],
)
def test_limits_of_meshes(data: bytes, limit: str) -> None:
    with pytest.raises(LimitError, match=f"{limit}, at most") as caught:
        read(data, LIMITS)
    assert caught.value.limit == limit
    assert caught.value.allowed == LIMITS[limit]
