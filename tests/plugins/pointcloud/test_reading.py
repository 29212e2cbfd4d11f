"""Reading point clouds: every format and kind of source, colours, and limits before decoding."""

import io
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from modalloy.errors import InputError, LimitError
from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.reading import read

LIMITS = {"bytes": 200_000, "points": 5_000, "faces": 6_000}
XYZ = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
RGB = (np.random.default_rng(1).integers(0, 256, size=(10, 3))).astype(np.uint8)
RGB[0] = 255
BOTH = np.concatenate([XYZ, RGB / np.float32(255)], axis=1)


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def npz(*, packed: bool = True, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def text(separator: str, values: Any) -> bytes:
    return "\n".join(separator.join(map(repr, row)) for row in values.tolist()).encode()


def exported(kind: str, **options: Any) -> bytes:
    made = trimesh.PointCloud(XYZ, colors=RGB).export(file_type=kind, **options)
    return made if isinstance(made, bytes) else made.encode()


def ply(header: str, body: bytes, form: str = "ascii") -> bytes:
    return f"ply\nformat {form} 1.0\n{header}\nend_header\n".encode() + body


VERTEX = "property float x\nproperty float y\nproperty float z"


def sources(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "cloud.with-any-name"
    path.write_bytes(npy(BOTH))
    mixed = np.concatenate([XYZ, RGB], axis=1, dtype=np.float64)
    return {
        "npy": npy(BOTH),
        "npy, Fortran order": npy(np.asfortranarray(BOTH)),
        "npy, big-endian doubles": npy(BOTH.astype(">f8")),
        "bytearray": bytearray(npy(BOTH)),
        "memoryview": memoryview(npy(BOTH)),
        "path": path,
        "npz, points": npz(points=BOTH, other=np.zeros(3)),
        "npz, xyz and rgb": npz(xyz=XYZ, rgb=RGB, packed=False),
        "npz, points and colors": npz(points=XYZ, colors=RGB / np.float32(255)),
        "npz, the only array": npz(whatever=BOTH),
        "PLY, binary": exported("ply"),
        "PLY, ASCII": exported("ply", encoding="ascii"),
        "text, spaces": text(" ", mixed),
        "text, commas": b"# x y z r g b\n" + text(", ", mixed) + b"\n\n",
        "text, tabs, colours to 1": text("\t", BOTH.astype(np.float64)).replace(b"\n", b"\r\n"),
        "array": BOTH,
        "array, 0 to 255": mixed,
        "tensor": torch.from_numpy(BOTH).requires_grad_(),
        "PointCloud": PointCloud(XYZ, (RGB / 255).astype(np.float32)),
    }


def test_every_kind_of_source_gives_the_same_cloud(tmp_path: Path) -> None:
    for name, source in sources(tmp_path).items():
        cloud = read(source, LIMITS)
        assert cloud.xyz.dtype == np.float32, name
        assert cloud.rgb is not None, name
        assert cloud.rgb.dtype == np.float32, name
        np.testing.assert_allclose(cloud.xyz, XYZ, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(cloud.rgb, RGB / 255, atol=1e-6, err_msg=name)


def test_clouds_without_colours() -> None:
    bare = trimesh.PointCloud(XYZ).export(file_type="ply", encoding="ascii")
    obj = b"".join(b"v %f %f %f\n" % tuple(row) for row in XYZ.tolist())
    for source in (XYZ, npy(XYZ), npz(xyz=XYZ), text(" ", XYZ), bare, obj):
        cloud = read(source, LIMITS)
        assert cloud.rgb is None
        np.testing.assert_allclose(cloud.xyz, XYZ, atol=1e-6)


def test_integer_coordinates_are_read() -> None:
    assert read(np.eye(3, dtype=np.int16), LIMITS).xyz.tolist() == np.eye(3).tolist()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "the point cloud's bytes: empty, there are no points in it"),
        (b" \n\n", "empty, there are no points in it"),
        (b"# nothing\n# but words\n", "empty, there are no points in it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "this is a PNG picture, not a point cloud"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "this is a JPEG picture, not a point cloud"),
        (b"\x80\x04\x95", "this is a Python pickle, which is never opened"),
        (b"\x01\x00\x02" * 9, "this is binary data, not a point cloud of a format that is read"),
        (b"hello, this is prose\n", "its lines do not hold the same number of numbers each"),
        (b"1 2 3\n4 5\n", "its lines do not hold the same number of numbers each"),
        (b"1 2\n3 4\n", "an array of shape (2, 2) is not one point cloud; expected (points, 3)"),
        (b"1 2 3 4\n" * 3, "an array of shape (3, 4) is not one point cloud"),
        (b"1 2 3\n", "a single point has no shape"),
        (b"1 2 3\n1 2 3\n", "2 points in a single place has no shape"),
        (b"1 2 3\nnan 5 6\n", "1 of 2 points have coordinates that are NaN, infinite or beyond"),
        (b"1 2 3\n4 -inf 6\n", "point 1 first; leave them out"),
        (b"1 2 3\n4 1e39 6\n", "point 1 first; leave them out"),
        (b"1 2 3 0 0 256\n4 5 6 0 0 0\n", "colours reach from 0 to 256"),
        (b"1 2 3 0 0 -1\n4 5 6 0 0 0\n", "colours reach from -1 to 0"),
        (b"1 2 3 0 0 nan\n4 5 6 0 0 0\n", "colours reach from nan to nan"),
        (np.zeros((0, 3)), "the array: empty, there are no points in it"),
        (np.zeros((2, 3, 3)), "an array of shape (2, 3, 3) is not one point cloud"),
        (np.array([["a", "b", "c"]]), "an array of dtype <U1 cannot be a point cloud"),
        (np.array([[None, 1, 2]]), "an array of dtype object cannot be a point cloud"),
        ([[0, 0, 0], [1, 1, 1]], "a point cloud cannot be read from list; give bytes"),
        ("cloud.ply", "a point cloud cannot be read from str; give bytes, a pathlib.Path"),
        (Path("no-such.ply"), "no-such.ply: there is no such point-cloud file"),
    ],
)
def test_what_is_no_cloud(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read(source, LIMITS)


def test_a_pickle_in_an_array_file_is_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    array = np.array([[Evil(), 1, 2]], dtype=object)
    for data in (npy(array), npz(points=array)):
        with pytest.raises(InputError, match="an array of dtype object cannot be a point cloud"):
            read(data, LIMITS)
    lying = npy(array).replace(b"'|O'", b"'<f8'")
    with pytest.raises(InputError):
        read(lying, LIMITS)
    assert not canary.exists()


def test_every_cut_of_a_file_is_an_error_and_never_a_crash() -> None:
    whole = {
        "npy": npy(BOTH),
        "npz": npz(points=BOTH),
        "npz, stored": npz(points=BOTH, packed=False),
        "PLY": exported("ply"),
        "mesh": trimesh.creation.box().export(file_type="ply"),
        "OFF": trimesh.creation.box().export(file_type="off").encode(),
    }
    for name, data in whole.items():
        read(data, LIMITS)
        # A text file may end in the middle of its last number and still be a text file.
        for length in range(len(data.rstrip()) - (20 if name == "OFF" else 1)):
            with pytest.raises(InputError):
                read(data[:length], LIMITS)


def test_random_damage_is_an_error_or_a_cloud() -> None:
    generator = np.random.default_rng(0)
    box = trimesh.creation.box()
    for data in (npy(BOTH), npz(points=BOTH), exported("ply"), box.export(file_type="ply")):
        for _ in range(300):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 3):
                damaged[place] = generator.integers(0, 256)
            try:
                cloud = read(bytes(damaged), LIMITS)
            except InputError:
                continue
            assert np.isfinite(cloud.xyz).all()


def limit(source: Any, **limits: int) -> LimitError:
    with pytest.raises(LimitError) as caught:
        read(source, LIMITS | limits)
    return caught.value


def test_limits_on_files_arrays_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "cloud.npy"
    path.write_bytes(npy(BOTH))
    error = limit(path, bytes=100)
    assert (error.limit, error.allowed, error.found) == ("bytes", 100, path.stat().st_size)
    assert "at most 100 are allowed; make it smaller" in str(error)
    assert limit(npy(BOTH), bytes=100).limit == "bytes"
    for source in (BOTH, npy(BOTH), npz(points=BOTH), text(" ", BOTH), exported("ply")):
        error = limit(source, points=9)
        assert (error.limit, error.allowed, error.found) == ("points", 9, 10)


def test_a_header_that_claims_a_huge_array_is_refused_unread() -> None:
    data = npy(BOTH).replace(b"(10, 6), }        ", b"(1000000000, 6), }")
    assert limit(data).found == 10**9


def test_a_zip_bomb_is_not_unpacked() -> None:
    bomb = npz(points=np.zeros((1_000_000, 6)))
    assert len(bomb) < 60_000
    error = limit(bomb, points=100)
    assert "'points.npy' unpacks to 48,000,128 bytes, at most" in str(error)
    assert (error.limit, error.found) == ("bytes", 48_000_128)


def test_a_zip_bomb_that_lies_about_its_size_is_not_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bomb = bytearray(npz(points=np.zeros((1_000_000, 6))))
    true = zipfile.ZipFile(io.BytesIO(bomb)).infolist()[0].file_size
    while (place := bomb.find(struct.pack("<I", true))) >= 0:
        bomb[place : place + 4] = struct.pack("<I", 500)
    taken: list[int] = []
    whole = zipfile.ZipExtFile.read

    def counted(file: zipfile.ZipExtFile, n: int = -1) -> bytes:
        data = whole(file, n)
        taken.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    with pytest.raises(InputError):
        read(bytes(bomb), LIMITS)
    assert sum(taken) < 2_000


def test_archives_of_other_packing_or_content() -> None:
    for method, name in ((zipfile.ZIP_LZMA, "14"), (zipfile.ZIP_BZIP2, "12")):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("points.npy", npy(BOTH))
        with pytest.raises(InputError, match=f"'points.npy' is packed by zip method {name}"):
            read(buffer.getvalue(), LIMITS)
    with pytest.raises(InputError, match=r"the .npz archive holds a, b; expected an array named"):
        read(npz(a=XYZ, b=XYZ), LIMITS)
    with pytest.raises(InputError, match=r"the .npz archive holds nothing"):
        read(npz(), LIMITS)
    with pytest.raises(InputError, match=r"colours of shape \(9, 3\).*do not go together"):
        read(npz(xyz=XYZ, rgb=RGB[:9]), LIMITS)
