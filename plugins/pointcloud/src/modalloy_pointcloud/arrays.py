"""Points as arrays: in memory, in .npy and .npz files, and as text."""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from modalloy.errors import InputError, LimitError
from modalloy_pointcloud.checks import check_limit, finish, unit_colours
from modalloy_pointcloud.cloud import PointCloud

_XYZ, _XYZRGB = 3, 6
_NAMES = ("xyz", "points")
_COLOUR_NAMES = ("rgb", "colors", "colours")
_HEADER = 1 << 16  # more than numpy itself takes for an array's header
_NUMBER = 16  # bytes of the widest real number
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises on a damaged archive, encrypted entries (RuntimeError) and newer kinds.
_DAMAGED_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
)
# What numpy raises on a damaged header, which it reads as Python's tokens and literals.
_DAMAGED = (
    ValueError,
    EOFError,
    SyntaxError,
    TypeError,
    OverflowError,
    RecursionError,
    tokenize.TokenError,
)


def from_array(values: NDArray[Any], limits: Mapping[str, int], what: str) -> PointCloud:
    """Make a cloud of an array.

    Args:
        values: ``(n, 3)`` or ``(n, 6)``, real numbers: x, y, z, and perhaps red, green, blue, of
            0 to 1 or 0 to 255.
        limits: ``"points"`` bounds n.
        what: The input, for messages.

    Raises:
        InputError: The shape, the dtype or the values are not those of a cloud.
        LimitError: There are too many points.
    """
    _check_shape(values.shape, values.dtype, limits, what)
    if values.shape[1] == _XYZ:
        return finish(values, None, what)
    return finish(values[:, :_XYZ], unit_colours(values[:, _XYZ:], what), what)


def read_npy(data: bytes, limits: Mapping[str, int], what: str) -> PointCloud:
    """Read a ``.npy`` file; pickled objects are refused, and nothing is read before its header.

    Raises:
        InputError: The file is damaged, cut off, or holds no cloud.
        LimitError: There are too many points.
    """
    return from_array(_load(io.BytesIO(data), limits, what), limits, what)


def read_npz(data: bytes, limits: Mapping[str, int], what: str) -> PointCloud:
    """Read a ``.npz`` file: its array ``xyz`` or ``points``, or the only one it holds.

    Colours may stand in the same array or in another, ``rgb`` or ``colors``. No more is ever
    unpacked than ``limits`` allow, whatever sizes the archive states.

    Raises:
        InputError: The archive is damaged or holds no cloud.
        LimitError: The array is too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            points = _load_member(archive, members[_points_name(members, what)], limits, what)
            colours = next((members[name] for name in _COLOUR_NAMES if name in members), None)
            if colours is None:
                return from_array(points, limits, what)
            rgb = _load_member(archive, colours, limits, what)
    except InputError:
        raise
    except _DAMAGED_ARCHIVE as error:
        raise InputError(f"{what}: the .npz archive is damaged ({error})") from error
    if points.shape[1:] != (_XYZ,) or points.shape != rgb.shape:
        raise InputError(
            f"{what}: points of shape {points.shape} and colours of shape {rgb.shape} "
            f"({rgb.dtype}) do not go together; expected (n, 3) numbers for both"
        )
    return finish(points, unit_colours(rgb, what), what)


def read_text(data: bytes, limits: Mapping[str, int], what: str) -> PointCloud:
    """Read lines of 3 or 6 numbers, with spaces or commas between; ``#`` begins a comment.

    Raises:
        InputError: It is not text, or a line does not hold what the others do.
        LimitError: There are too many lines.
    """
    lines = data.replace(b",", b" ").splitlines()
    rows = [row for line in lines if (row := line.partition(b"#")[0].strip())]
    if not rows:
        raise InputError(f"{what}: empty, there are no points in it")
    check_limit("points", len(rows), limits, what)
    return from_array(read_rows(rows, what), limits, what)


def read_rows(rows: list[bytes], what: str) -> NDArray[np.float64]:
    """Read lines of as many numbers each, ``(n, columns)``.

    Raises:
        InputError: A line is not made of numbers, or of another number of them.
    """
    try:
        return np.loadtxt(rows, dtype=np.float64, comments=None, ndmin=2, encoding="latin-1")
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{what}: its lines do not hold the same number of numbers each ({error}); expected "
            "x y z, or x y z and a colour"
        ) from error


def _points_name(members: Mapping[str, object], what: str) -> str:
    named = [name for name in _NAMES if name in members]
    if named or len(members) == 1:
        return named[0] if named else next(iter(members))
    raise InputError(
        f"{what}: the .npz archive holds {', '.join(sorted(members)[:8]) or 'nothing'}; expected "
        f"an array named {' or '.join(_NAMES)}, or a single array"
    )


def _load_member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limits: Mapping[str, int], what: str
) -> NDArray[Any]:
    # bz2 and lzma members are unpacked whole at the first touch, so their size cannot be bounded.
    if entry.compress_type not in _METHODS:
        raise InputError(
            f"{what}: {entry.filename!r} is packed by zip method {entry.compress_type}; expected "
            "what numpy.savez or numpy.savez_compressed write"
        )
    allowed = limits["points"] * _XYZRGB * _NUMBER + _HEADER
    if entry.file_size > allowed:
        raise LimitError(
            f"{what}: {entry.filename!r} unpacks to {entry.file_size:,} bytes, at most {allowed:,} "
            "are allowed; make it smaller",
            limit="bytes",
            allowed=allowed,
            found=entry.file_size,
        )
    with archive.open(entry) as packed:
        # The size given bounds what is unpacked even where the archive lies about it.
        content = io.BytesIO(packed.read(entry.file_size))
    return _load(content, limits, what)


def _load(file: IO[bytes], limits: Mapping[str, int], what: str) -> NDArray[Any]:
    """Load an array once its header is found to announce a cloud."""
    try:
        version = npy.read_magic(file)
        read_header = {
            (1, 0): npy.read_array_header_1_0,
            (2, 0): npy.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
        shape, _, dtype = read_header(file)
        _check_shape(shape, dtype, limits, what)
        file.seek(0)
        return np.asarray(np.load(file, allow_pickle=False))
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"{what}: the array is damaged or cut off ({error})") from error


def _check_shape(
    shape: tuple[int, ...], dtype: np.dtype[Any], limits: Mapping[str, int], what: str
) -> None:
    if dtype.kind not in "fiu":
        raise InputError(
            f"{what}: an array of dtype {dtype} cannot be a point cloud; expected real numbers"
        )
    if len(shape) != 2 or shape[1] not in (_XYZ, _XYZRGB):  # noqa: PLR2004 - points and columns
        raise InputError(
            f"{what}: an array of shape {shape} is not one point cloud; expected (points, 3) or "
            "(points, 6): x, y, z and perhaps red, green, blue"
        )
    check_limit("points", shape[0], limits, what)
