"""Reading point clouds: from whatever the caller has to points, within limits.

Formats are told by content, never by a name's ending. Nothing is fetched, nothing is unpickled,
and no file is opened but the one that is given, and the material file of an OBJ that lies beside
or below it.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from modalloy.errors import InputError, ModalloyWarning
from modalloy_pointcloud.arrays import from_array, read_npy, read_npz, read_text
from modalloy_pointcloud.checks import check_limit
from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.obj import WORDS, Library, read_obj
from modalloy_pointcloud.off import read_off
from modalloy_pointcloud.ply import read_ply
from modalloy_pointcloud.surface import to_cloud

__all__ = ["FORMATS", "PointCloud", "read"]

FORMATS = ("npy", "npz", "PLY", "OBJ", "OFF", "text of 3 or 6 columns")
"""What is read, as messages say it."""

_OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"RIFF": "a RIFF file (WEBP, WAV or AVI)",
    b"%PDF": "a PDF document",
    b"glTF": "a binary glTF model",
    b"\x80": "a Python pickle, which is never opened",
}
_SNIFFED = 1 << 12  # bytes looked at to tell text from what is none
_MATERIALS = 1 << 20  # bytes of a material file; they are a few lines a material


def read(source: Any, limits: Mapping[str, int]) -> PointCloud:
    """Read one point cloud, or a mesh as points on its surface.

    Coordinates are kept as they are; clouds are taken as upright, with z up.

    Args:
        source: The bytes of a file or its path (npy, npz, PLY, OBJ, OFF, text), a numpy array or
            torch tensor of shape ``(n, 3)`` or ``(n, 6)`` (x, y, z, and red, green, blue of 0 to
            1 or 0 to 255), or a :class:`PointCloud`.
        limits: ``"bytes"`` of a file, ``"points"`` (or vertices) and ``"faces"``.

    Returns:
        The points; of a mesh, :data:`~modalloy_pointcloud.surface.SURFACE_POINTS` of them.

    Raises:
        InputError: The source is not a point cloud, is damaged, or is of a format not read.
        LimitError: The source is larger than ``limits`` allow.
    """
    if isinstance(source, PointCloud):
        rgb = [] if source.rgb is None else [source.rgb]
        return from_array(np.concatenate([source.xyz, *rgb], axis=1), limits, "the PointCloud")
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), limits, "the point cloud's bytes", _no_library)
    if isinstance(source, Path):
        data = _file_bytes(source, limits)
        return _decode(data, limits, str(source), lambda name: _material_file(source, name, limits))
    if isinstance(source, np.ndarray):
        return from_array(source, limits, "the array")
    # Whoever hands over a tensor has imported torch; for others it need not be.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        values = source.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return from_array(values.numpy(), limits, "the tensor")
    raise InputError(
        f"a point cloud cannot be read from {type(source).__name__}; give bytes, a pathlib.Path, "
        "a numpy array or a torch tensor"
    )


def _file_bytes(path: Path, limits: Mapping[str, int]) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such point-cloud file")
        check_limit("bytes", path.stat().st_size, limits, str(path))
        with path.open("rb") as handle:
            return handle.read(limits["bytes"] + 1)
    except OSError as error:
        raise InputError(f"{path}: the point cloud cannot be read ({error})") from error


def _decode(data: bytes, limits: Mapping[str, int], what: str, library: Library) -> PointCloud:
    if not data.strip():
        raise InputError(f"{what}: empty, there are no points in it")
    check_limit("bytes", len(data), limits, what)
    if data.startswith(b"\x93NUMPY"):
        return read_npy(data, limits, what)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return read_npz(data, limits, what)
    if data.startswith((b"ply\n", b"ply\r")):
        return to_cloud(read_ply(data, limits, what), what)
    other = next((name for magic, name in _OTHERS.items() if data.startswith(magic)), None)
    if other or b"\0" in data[:_SNIFFED]:
        raise InputError(
            f"{what}: this is {other or 'binary data'}, not a point cloud of a format that is "
            f"read ({', '.join(FORMATS)})"
        )
    first = _first_line(data)
    if first.startswith((b"OFF", b"COFF")):
        return to_cloud(read_off(data, limits, what), what)
    if first.split()[:1] and first.split()[0].decode("latin-1") in WORDS:
        return to_cloud(read_obj(data, limits, what, library), what)
    return read_text(data, limits, what)


def _first_line(data: bytes) -> bytes:
    """Return the first line that is neither blank nor a comment."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        line = data[start:end].strip()
        if line and not line.startswith(b"#"):
            return line
        start = end + 1
    return b""


def _no_library(_: str) -> None:
    """Refuse to look up materials: bytes have no directory to look in."""


def _material_file(model: Path, name: str, limits: Mapping[str, int]) -> bytes | None:
    """Return a material file that lies in the model's directory or below; else warn.

    Raises:
        LimitError: It is too large.
    """
    windows = PureWindowsPath(name)  # it understands both kinds of slashes
    directory = model.parent.resolve()
    try:
        file = directory.joinpath(*windows.parts).resolve() if not windows.anchor else None
        if file is None or not file.is_relative_to(directory):
            problem = f"lies outside {model.parent} and is not opened"
        elif file.suffix.lower() != ".mtl" or not file.is_file():
            problem = "is not a .mtl file that exists"
        else:
            allowed = min(_MATERIALS, limits["bytes"])
            check_limit("bytes", file.stat().st_size, {"bytes": allowed}, str(file))
            with file.open("rb") as handle:
                return handle.read(allowed)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    message = f"{model}: its material file {name!r} {problem}; materials' colours are left out"
    warnings.warn(message, ModalloyWarning, stacklevel=2)
    return None
