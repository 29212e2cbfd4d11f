"""Reading videos: from whatever the caller has to a clip, within limits.

No URL is ever fetched, and no file but the given one is opened.
"""

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modalloy.errors import InputError
from modalloy_video.clip import Clip, centres, check_limit, shrink
from modalloy_video.configuration import KEPT
from modalloy_video.decoding import decode

_URL = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]+://")
_GIVE = (
    "give the bytes or the path of a file, a uint8 array of shape (T, H, W, 3), or a list of PIL "
    "images or (H, W, 3) arrays of one size"
)


def read(source: Any, limits: Mapping[str, int]) -> Clip:
    """Read one video.

    Args:
        source: Any of

            - the bytes of a file (MP4, MOV, WebM, MKV, AVI, animated GIF, MPEG-TS) or its path;
            - frames at equal distances in time: a numpy array or torch tensor ``(T, H, W, 3)``,
              uint8, or a list of PIL images or of arrays ``(H, W, 3)``, all of one size;
            - a :class:`~modalloy_video.clip.Clip`.
        limits: ``"bytes"`` of a file, ``"seconds"``, ``"pixels"`` of one frame, and ``"frames"``,
            the most that are decoded to find those that are kept.

    Returns:
        At most ``KEPT`` frames, evenly spaced in time.

    Raises:
        InputError: The source is no video, empty, damaged or cut off.
        LimitError: The source is larger or longer than ``limits``.
    """
    if isinstance(source, Clip):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), limits)
    if isinstance(source, str) and _URL.match(source):
        raise InputError(
            f"video: {source[:60]!r} is a URL, and nothing is fetched; download the file and give "
            "its path or bytes"
        )
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source), limits)
    if isinstance(source, Sequence):
        return _from_list(source, limits)
    return _from_array(_as_array(source), limits)


def _from_bytes(data: bytes, limits: Mapping[str, int]) -> Clip:
    check_limit("bytes", len(data), limits, "the file")
    if not data:
        raise InputError("video: the file is empty (0 bytes)")
    return decode(io.BytesIO(data), "the given file", limits)


def _from_path(path: Path, limits: Mapping[str, int]) -> Clip:
    try:
        if not path.exists():  # which a name with a null byte does not either
            raise InputError(f"video: {path} cannot be read: No such file or directory")
        if not path.is_file():
            raise InputError(f"video: {path} is not a file")
        size = path.stat().st_size
        check_limit("bytes", size, limits, str(path))
        if size == 0:
            raise InputError(f"video: the file {path} is empty (0 bytes)")
        with path.open("rb") as handle:
            return decode(handle, str(path), limits)
    except OSError as error:
        raise InputError(f"video: {path} cannot be read: {error.strerror or error}") from error


def _from_list(source: Sequence[Any], limits: Mapping[str, int]) -> Clip:
    if not source:
        raise InputError("video: the list of frames is empty")
    check_limit("frames", len(source), limits, "the list")
    first = _shape(source[0])
    for index, one in enumerate(source):
        if _shape(one) != first:
            raise InputError(
                f"video: frame {index} is of the shape {_shape(one)}, frame 0 of {first}; give "
                "frames of one size"
            )
    check_limit("pixels", first[0] * first[1], limits, "the list")
    return _kept(source, first)


def _from_array(frames: NDArray[Any], limits: Mapping[str, int]) -> Clip:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:  # noqa: PLR2004 - THWC
        raise InputError(
            "video: an array of frames must be uint8 of shape (T, H, W, 3), found "
            f"{frames.dtype} of shape {frames.shape}"
        )
    check_limit("frames", len(frames), limits, "the array")
    check_limit("pixels", frames.shape[1] * frames.shape[2], limits, "the array")
    return _kept(frames, frames.shape[1:3])


def _kept(frames: Any, shape: tuple[int, ...]) -> Clip:
    """Keep ``KEPT`` of the frames at most; each is on for a unit of time."""
    if not len(frames) or not all(shape):
        raise InputError(f"video: {len(frames)} frames of {shape[0]}x{shape[1]} pixels are empty")
    count = len(frames)
    at = centres(count, min(count, KEPT)).astype(np.int64)
    pictures = [shrink(_pixels(frames[index])) for index in at.tolist()]
    return Clip(np.stack(pictures), at.astype(np.float64), float(count))


def _shape(frame: Any) -> tuple[int, ...]:
    """Return the height and width of a listed frame."""
    if isinstance(frame, Image.Image):
        return (frame.height, frame.width)
    array = _as_array(frame)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:  # noqa: PLR2004 - HWC
        raise InputError(
            f"video: a frame must be uint8 of shape (H, W, 3), found {array.dtype} of shape "
            f"{array.shape}"
        )
    return array.shape[:2]


def _pixels(frame: Any) -> NDArray[np.uint8]:
    if isinstance(frame, Image.Image):
        return np.array(frame.convert("RGB"), dtype=np.uint8)
    return np.ascontiguousarray(_as_array(frame), dtype=np.uint8)


def _as_array(source: Any) -> NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    # Whoever hands over a tensor has imported torch; for others it need not be.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return np.asarray(source.detach().cpu().numpy())
    raise InputError(
        f"video: cannot read {type(source).__module__}.{type(source).__qualname__}; {_GIVE}"
    )
