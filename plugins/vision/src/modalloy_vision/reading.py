"""Reading pictures: from whatever the caller has to an RGB picture, within limits.

No URL is ever fetched; a ``data:`` URL carries its own bytes. Sizes are checked before anything
is decoded, so that a small file that claims to be a huge picture costs nothing.
"""

import base64
import binascii
import io
import re
import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from modalloy.errors import InputError, LimitError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""File formats that are read; of an animation or a document, the first frame or page."""

_WHITE = (255, 255, 255, 255)
_CHANNELS = (1, 3, 4)
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;(?!base64,)[^;,]*)*;base64,", re.IGNORECASE)
# What Pillow's decoders raise on damaged files, beside OSError: they parse untrusted bytes with
# ordinary Python, and each of these was seen or is raised by name in one of the six formats.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read(source: Any, limits: Mapping[str, int]) -> Image.Image:
    """Read one picture.

    Args:
        source: The bytes of a file, a path, a PIL image, a numpy array or torch tensor of shape
            ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` with C of 1, 3 or 4 (uint8 0 to 255,
            uint16 0 to 65535, or floating 0 to 1), a ``data:image/...;base64,`` URL, or
            ``{"url": <such a URL>}``.
        limits: ``"bytes"`` of a file, ``"pixels"`` of a picture.

    Returns:
        RGB, upright according to EXIF, transparent parts on white.

    Raises:
        InputError: The source is not a picture, is damaged, or is of a format not read.
        LimitError: The file or the picture is larger than ``limits`` allow.
    """
    if isinstance(source, Image.Image):
        return _finish(source, "the PIL image", limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), "the picture's bytes", limits)
    if isinstance(source, Path):
        return _decode(_file_bytes(source, limits), str(source), limits)
    if isinstance(source, str | Mapping):
        return _decode(_url_bytes(source, limits), "the data: URL", limits)
    values, channels_first = _as_array(source)
    return _from_array(values, limits, channels_first=channels_first)


def _as_array(source: object) -> tuple[npt.NDArray[Any], bool]:
    """Return an array, and whether channels come first where both ends could be channels."""
    # Whoever hands over a tensor has imported torch; for others it need not be.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        values = source.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return values.numpy(), True
    if isinstance(source, np.ndarray):
        return source, False
    raise InputError(
        f"a picture cannot be read from {type(source).__name__}; give bytes, a pathlib.Path, a "
        "PIL image, a numpy array, a torch tensor or a data: URL"
    )


def _file_bytes(path: Path, limits: Mapping[str, int]) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such picture file")
        _check_limit("bytes", path.stat().st_size, limits, str(path))
        with path.open("rb") as handle:
            return handle.read(limits["bytes"] + 1)
    except OSError as error:
        raise InputError(f"{path}: the picture cannot be read ({error})") from error


def _url_bytes(source: str | Mapping[str, Any], limits: Mapping[str, int]) -> bytes:
    url = source.get("url") if isinstance(source, Mapping) else source
    if not isinstance(url, str):
        raise InputError(
            "image_url must be a data: URL or {'url': <data: URL>}; found a url of type "
            f"{type(url).__name__}"
        )
    match = _DATA_URL.match(url)
    if match is None:
        raise InputError(
            f"image URL {url[:40]!r}: only 'data:image/...;base64,...' URLs are read and nothing "
            "is ever fetched; download the picture and give its bytes, or its path as a "
            "pathlib.Path or under the part's key 'path'"
        )
    if not match["type"].lower().startswith("image/"):
        raise InputError(f"data: URL: expected type 'image/...', found {match['type']!r}")
    encoded = url[match.end() :]
    _check_limit("bytes", len(encoded.rstrip("=")) * 3 // 4, limits, "data: URL")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"data: URL: its content is not valid base64 ({error})") from error


def _decode(data: bytes, what: str, limits: Mapping[str, int]) -> Image.Image:
    if not data:
        raise InputError(f"{what}: empty, there is no picture in it")
    _check_limit("bytes", len(data), limits, what)
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMB as error:
        raise _too_many_pixels(error, what, limits) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{what}: not a picture of a format that is read ({', '.join(FORMATS)})"
        ) from error
    except _DAMAGED as error:
        raise InputError(f"{what}: the picture is damaged ({error})") from error
    with picture:
        return _finish(picture, what, limits)


def _finish(picture: Image.Image, what: str, limits: Mapping[str, int]) -> Image.Image:
    """Check the size of a picture that may not be decoded yet, then decode and convert it."""
    if not all(picture.size):
        raise InputError(f"{what}: empty, its size is {picture.width}x{picture.height}")
    _check_limit("pixels", picture.width * picture.height, limits, what)
    try:
        return _to_rgb(ImageOps.exif_transpose(picture))
    except InputError:
        raise
    except _BOMB as error:
        raise _too_many_pixels(error, what, limits) from error
    except _DAMAGED as error:
        raise InputError(f"{what}: the picture is damaged or cut off ({error})") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":
        return _grey_to_rgb(np.asarray(picture))
    if picture.has_transparency_data:
        # Icons and clip art are drawn for white paper; black would swallow their outlines.
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return picture.convert("RGB")


def _grey_to_rgb(values: npt.NDArray[Any]) -> Image.Image:
    """Convert deep grey pictures, which Pillow's own conversion would clip at 255."""
    if values.dtype.kind == "i":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > np.iinfo(np.uint16).max:
            raise InputError(
                f"the picture's integer values reach from {low} to {high}; expected 0 to 65535"
            )
        values = values.astype(np.uint16)
    return Image.fromarray(_to_bytes(values)).convert("RGB")


def _from_array(
    values: npt.NDArray[Any], limits: Mapping[str, int], *, channels_first: bool
) -> Image.Image:
    """Read ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``.

    Where both ends could be channels, ``channels_first`` decides: tensors by torch's habit,
    arrays by numpy's.
    """
    if values.ndim == 2:  # noqa: PLR2004 - rows and columns
        values = values[:, :, None]
        channels_first = False
    elif values.ndim != 3:  # noqa: PLR2004 - rows, columns, channels
        raise _bad_shape(values)
    first, last = values.shape[0] in _CHANNELS, values.shape[2] in _CHANNELS
    if not (first or last):
        raise _bad_shape(values)
    if (first and channels_first) or not last:
        values = values.transpose(1, 2, 0)
    if not values.size:
        raise InputError(f"the array is empty: its shape is {values.shape}")
    _check_limit("pixels", values.shape[0] * values.shape[1], limits, "the array")
    bytes_ = np.ascontiguousarray(_to_bytes(values))
    return _to_rgb(Image.fromarray(bytes_[:, :, 0] if bytes_.shape[2] == 1 else bytes_))


def _to_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # noqa: PLR2004 - 16 bits
        return np.round(values.astype(np.float32) / 257).astype(np.uint8)
    if values.dtype.kind != "f":
        raise InputError(
            f"an array of dtype {values.dtype} cannot be a picture; give uint8 (0 to 255), "
            "uint16 (0 to 65535) or floating values (0 to 1)"
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"floating picture values reach from {low:g} to {high:g}; expected 0 to 1 (give "
            "values of 0 to 255 as uint8, and undo any normalisation)"
        )
    return np.round(values.astype(np.float32) * 255).astype(np.uint8)


def _bad_shape(values: npt.NDArray[Any]) -> InputError:
    return InputError(
        f"an array of shape {values.shape} is not one picture; expected (H, W), (H, W, C) or "
        "(C, H, W) with C of 1, 3 or 4"
    )


def _check_limit(limit: str, found: int, limits: Mapping[str, int], what: str) -> None:
    if found > limits[limit]:
        raise LimitError(
            f"{what}: {found:,} {limit}, at most {limits[limit]:,} are allowed; make it smaller",
            limit=limit,
            allowed=limits[limit],
            found=found,
        )


def _too_many_pixels(error: Exception, what: str, limits: Mapping[str, int]) -> LimitError:
    """Turn Pillow's own guard, which acts on the largest pictures before ours can, into ours."""
    number = re.search(r"\((\d+) pixels\)", str(error))
    found = int(number[1]) if number else Image.MAX_IMAGE_PIXELS or 0
    return LimitError(
        f"{what}: {found:,} pixels, at most {limits['pixels']:,} are allowed; make it smaller",
        limit="pixels",
        allowed=limits["pixels"],
        found=found,
    )
