"""From files, bytes and arrays to waveforms."""

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import soundfile
from numpy.typing import NDArray

from modalloy.errors import InputError, LimitError

_RATES = (1_000, 384_000)
_BLOCK = 1 << 16  # samples decoded at a time
_UNKNOWN = 1 << 62  # libsndfile's length of a stream that does not state one
_TOLERATED = 0.1  # seconds that an mp3's header may promise in excess: its padding is a guess
_URL = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]+://")


@attrs.frozen(eq=False)
class Waveform:
    """One recording, mixed down to one channel.

    Attributes:
        samples: Shape ``(n,)``, float32, n > 0, all finite, full scale at -1 and 1.
        sampling_rate: Samples a second.
    """

    samples: NDArray[np.float32]
    sampling_rate: int


def read(source: Any, limits: Mapping[str, int]) -> Waveform:
    """Decode one recording; size and length are checked before anything is decoded.

    Args:
        source: Any of

            - the bytes of a file (wav, flac, ogg, mp3, and whatever else libsndfile reads), or
              its path, or a ``data:`` URL that carries it; no other URL is fetched;
            - OpenAI's ``input_audio``: ``{"data": base64, "format": "wav"}``;
            - ``(array, sampling_rate)`` or ``{"array": ..., "sampling_rate": ...}``, the array
              a numpy array or a torch tensor of shape ``(n,)`` or with its channels on the
              shorter axis, floating-point in -1 to 1 or integers at full scale;
            - a :class:`Waveform`.
        limits: ``"bytes"`` of an encoded file, and ``"seconds"``.

    Raises:
        InputError: The source is of no such kind, empty, corrupt, or holds NaN or infinity.
        LimitError: The source is larger or longer than ``limits``.
    """
    if isinstance(source, Waveform):
        return _from_array(source.samples, source.sampling_rate, limits)
    if isinstance(source, Mapping):
        return _from_mapping(source, limits)
    if isinstance(source, tuple) and len(source) == 2:  # noqa: PLR2004 - array and rate
        return _from_array(source[0], source[1], limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), limits)
    if isinstance(source, str) and _URL.match(source):
        return _from_url(source, limits)
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source), limits)
    missing = ", which does not tell its sampling rate" if hasattr(source, "shape") else ""
    raise InputError(
        f"audio: cannot read {_kind(source)}{missing}; give the bytes or the path of a file, "
        "(array, sampling_rate), or {'array': ..., 'sampling_rate': ...}"
    )


def _from_mapping(source: Mapping[str, Any], limits: Mapping[str, int]) -> Waveform:
    if "array" in source and "sampling_rate" in source:
        return _from_array(source["array"], source["sampling_rate"], limits)
    if isinstance(source.get("data"), str):
        return _from_base64(source["data"], limits)
    raise InputError(
        "audio: expected {'array': ..., 'sampling_rate': ...} or {'data': base64, 'format': "
        f"...}}, found the keys {', '.join(sorted(map(str, source))) or 'none'}"
    )


def _from_url(url: str, limits: Mapping[str, int]) -> Waveform:
    head, comma, data = url.partition(",")
    if head.startswith("data:") and head.endswith(";base64") and comma:
        return _from_base64(data, limits)
    raise InputError(
        f"audio: {url[:60]!r} is not a 'data:...;base64,' URL, and no other URL is fetched; "
        "download the file and give its path or bytes"
    )


def _from_base64(data: str, limits: Mapping[str, int]) -> Waveform:
    # Checked on the text: four characters carry three bytes, so nothing large is decoded.
    _check_bytes(len(data) // 4 * 3 - data[-2:].count("="), limits)
    try:
        return _from_bytes(base64.b64decode(data, validate=True), limits)
    except binascii.Error as error:
        raise InputError(f"audio: 'data' is not valid base64 ({error})") from error


def _from_bytes(data: bytes, limits: Mapping[str, int]) -> Waveform:
    _check_bytes(len(data), limits)
    if not data:
        raise InputError("audio: the file is empty (0 bytes)")
    return _decode(io.BytesIO(data), "the given bytes", limits)


def _from_path(path: Path, limits: Mapping[str, int]) -> Waveform:
    try:
        if not path.exists():  # which a name with a null byte does not either
            raise InputError(f"audio: {path} cannot be opened: No such file or directory")
        if not path.is_file():
            raise InputError(f"audio: {path} is not a file")
        size = path.stat().st_size
        _check_bytes(size, limits)
        if size == 0:
            raise InputError(f"audio: the file {path} is empty (0 bytes)")
        with path.open("rb") as handle:
            return _decode(handle, str(path), limits)
    except OSError as error:
        raise InputError(f"audio: {path} cannot be opened: {error.strerror or error}") from error


def _decode(handle: Any, name: str, limits: Mapping[str, int]) -> Waveform:
    """Decode with libsndfile, block by block: memory holds one channel, whatever the file."""
    try:
        with soundfile.SoundFile(handle) as file:
            rate, length = file.samplerate, file.frames
            _check_rate(rate)
            if length >= _UNKNOWN:
                raise InputError(
                    f"audio: {name} does not say how long it is, as live streams do; save it to "
                    "a file with a length first"
                )
            _check_seconds(length, rate, limits)
            samples = np.empty(length, dtype=np.float32)
            found = 0
            # Not file.blocks(): past the end of a damaged file it repeats what it read last.
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                samples[found : found + len(block)] = block.mean(axis=1)
                found += len(block)
    except soundfile.SoundFileError as error:
        raise InputError(
            f"audio: {name} cannot be decoded ({error}); wav, flac, ogg and mp3 are read"
        ) from error
    if length - found > _TOLERATED * rate:
        raise InputError(
            f"audio: {name} is damaged or cut off: it should hold {length} samples and ends "
            f"after {found}"
        )
    return _finish(samples[:found], rate)


def _from_array(array: Any, rate: Any, limits: Mapping[str, int]) -> Waveform:
    if isinstance(rate, bool | float) or not hasattr(rate, "__index__"):
        raise InputError(
            f"audio: the sampling rate must be a whole number of samples a second, found {rate!r}"
        )
    rate = int(rate)
    _check_rate(rate)
    array = _as_numpy(array)
    if array.ndim not in (1, 2):
        raise InputError(
            "audio: an array must have the shape (samples,) or (channels, samples), found "
            f"{array.shape}"
        )
    _check_seconds(max(array.shape), rate, limits)
    samples = _full_scale(array)
    if samples.ndim > 1 and samples.size:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    return _finish(samples, rate)


def _finish(samples: NDArray[np.float32], rate: int) -> Waveform:
    if samples.size == 0:
        raise InputError("audio: the recording has no samples")
    bad = int(np.count_nonzero(~np.isfinite(samples)))
    if bad:
        raise InputError(
            f"audio: {bad} of {len(samples)} samples are NaN or infinite; samples must be finite"
        )
    return Waveform(np.ascontiguousarray(samples), rate)


def _as_numpy(array: Any) -> NDArray[Any]:
    """Return a torch tensor, or anything else with a buffer of numbers, as a numpy array."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        return np.asarray(array.numpy())
    if isinstance(array, list):
        try:
            return np.asarray(array)
        except ValueError as error:
            raise InputError(f"audio: the list of samples is ragged ({error})") from error
    raise InputError(
        f"audio: the samples must be a numpy array, a torch tensor or a list, found {_kind(array)}"
    )


def _full_scale(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return the array as float32, integers divided by their full scale."""
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.signedinteger):
        return (array / float(np.iinfo(array.dtype).max + 1)).astype(np.float32)
    raise InputError(
        f"audio: samples must be floating-point numbers or signed integers, found {array.dtype}"
    )


def _check_rate(rate: int) -> None:
    low, high = _RATES
    if not low <= rate <= high:
        raise InputError(f"audio: a sampling rate of {rate} Hz is outside {low} to {high} Hz")


def _check_bytes(found: int, limits: Mapping[str, int]) -> None:
    allowed = limits["bytes"]
    if found > allowed:
        raise LimitError(
            f"audio: the recording has {found} bytes, at most {allowed} are read; shorten or "
            "compress it, or raise the modality's limit",
            limit="bytes",
            allowed=allowed,
            found=found,
        )


def _check_seconds(samples: int, rate: int, limits: Mapping[str, int]) -> None:
    allowed = limits["seconds"]
    if samples > allowed * rate:
        found = -(-samples // rate)
        raise LimitError(
            f"audio: the recording lasts {found} seconds, at most {allowed} are read; cut it, "
            "or raise the modality's limit",
            limit="seconds",
            allowed=allowed,
            found=found,
        )


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
