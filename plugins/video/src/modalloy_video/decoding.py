"""From the content of a video file to a clip, through PyAV (FFmpeg).

FFmpeg guesses the format of what it is given, and some formats (playlists, concat scripts, image
sequences) are lists of other files, which it would open. So only containers that hold their
own frames are allowed, by name, and every further file or connection is refused.

A file is gone through twice: its packets are counted and timed first, then decoded one by one,
and only the frames that the clip keeps are converted. Memory does not grow with the length.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

import attrs
import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from modalloy.errors import InputError
from modalloy_video.clip import Clip, centres, check_limit, shrink
from modalloy_video.configuration import KEPT

FORMATS = "MP4, MOV, WebM, MKV, AVI, GIF and MPEG-TS"
"""Containers that are read, in words."""

_DEMUXERS = "mov,matroska,avi,gif,mpegts"
_TOLERATED = 0.5  # seconds that a header may promise in excess: writers round, players do not mind
_MICROSECOND = 1e-6
_RIGHT_ANGLE = 90


@attrs.frozen
class _Survey:
    """What the packets of a file tell before anything is decoded, times in seconds.

    Attributes:
        start: When the first frame comes on.
        end: When the last one goes off.
    """

    start: float
    end: float


def decode(handle: BinaryIO, name: str, limits: Mapping[str, int]) -> Clip:
    """Decode a video file; all limits are checked before the first frame is decoded.

    Args:
        handle: The file, seekable, at its beginning.
        name: What to call it in messages.
        limits: ``"seconds"``, ``"pixels"`` of one frame and ``"frames"``.

    Raises:
        InputError: The file is no video that is read, holds no moving picture, is damaged, or
            is cut off, as far as its header tells how long it should be.
        LimitError: The video is longer or larger than ``limits``.
    """
    try:
        with _open(handle, limits) as container:
            survey = _survey(container, _stream(container, name, limits), name, limits)
        handle.seek(0)
        with _open(handle, limits) as container:
            stream = _stream(container, name, limits)
            stream.thread_type = "AUTO"
            stream.codec_context.options = _guard(limits)  # frames may grow on the way
            return _keep(container.decode(stream), survey, name)
    except av.FFmpegError as error:
        raise InputError(
            f"video: {name} cannot be decoded ({error.strerror}): it is no video, damaged or cut "
            f"off; {FORMATS} are read"
        ) from error


def _guard(limits: Mapping[str, int]) -> dict[str, str]:
    """Return FFmpeg's own limit, which is to stop bombs and leave what is near ours to us.

    It counts pixels as they are coded, sides rounded up to whole blocks of 64 at most, and what it
    stops looks damaged.
    """
    return {"max_pixels": str(4 * limits["pixels"] + 2**16)}


def _open(handle: BinaryIO, limits: Mapping[str, int]) -> InputContainer:
    return av.open(
        _Nameless(handle),
        "r",
        options=_guard(limits),
        container_options={"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"},
        metadata_errors="replace",
        io_open=_refuse,
    )


@attrs.frozen
class _Nameless:
    """A file without its name, from which FFmpeg would guess the format."""

    handle: BinaryIO

    def read(self, size: int) -> bytes:
        return self.handle.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.handle.seek(offset, whence)

    def tell(self) -> int:
        return self.handle.tell()


def _refuse(url: str, *_: Any) -> NoReturn:
    raise InputError(
        f"video: the file refers to {url[:80]!r}, and nothing beside a file itself is opened; "
        "give a file that holds its own frames"
    )


def _stream(container: InputContainer, name: str, limits: Mapping[str, int]) -> VideoStream:
    """Return the first moving picture of a container, its size checked."""
    covers = av.stream.Disposition.attached_pic
    found = [one for one in container.streams.video if not one.disposition & covers]
    if not found:
        kinds = sorted({one.type for one in container.streams})
        raise InputError(
            f"video: {name} holds no moving picture (it holds: {', '.join(kinds) or 'nothing'}); "
            "give audio to an audio modality, and fetch a file that is cut off again"
        )
    stream = found[0]
    if stream.codec_context is None:
        raise InputError(
            f"video: {name} is in a coding that this FFmpeg cannot decode; convert it to H.264"
        )
    pixels = stream.codec_context.width * stream.codec_context.height
    check_limit("pixels", pixels, limits, name)
    if not pixels:
        raise InputError(
            f"video: {name} is damaged, or has far more pixels a frame than the "
            f"{limits['pixels']:,} that are read; scale it down or fetch it again"
        )
    return stream


def _survey(
    container: InputContainer, stream: VideoStream, name: str, limits: Mapping[str, int]
) -> _Survey:
    """Go through the packets: limits, and whether all that the header promises is there."""
    promised = (container.duration or 0) * _MICROSECOND
    check_limit("seconds", math.ceil(promised - _TOLERATED), limits, name)
    begins: list[float] = []
    ends = {stream.index: -math.inf}  # by stream: sound may go on when the picture has ended
    for index, begin, end in _packets(container, name):
        ends[index] = max(end, ends.get(index, end))
        if index == stream.index:
            begins.append(begin)
            check_limit("frames", len(begins), limits, name)
    if not begins:
        raise InputError(f"video: {name} holds no frames; it is empty, damaged or cut off")
    start, last = min(begins), max(begins)
    interval = (last - start) / max(1, len(begins) - 1)
    # Some containers do not say how long a frame is on: then the last is as long as the others.
    end = ends[stream.index] if ends[stream.index] > last else last + interval
    check_limit("seconds", math.ceil(end - start - _TOLERATED), limits, name)
    begun = (container.start_time or 0) * _MICROSECOND
    missing = promised - (max(end, *ends.values()) - begun)
    if missing > max(_TOLERATED, 2 * interval):
        raise _cut_off(
            name, f"it should last {promised:.1f} seconds and ends {missing:.1f} seconds early"
        )
    return _Survey(start, end)


def _packets(container: InputContainer, name: str) -> Iterator[tuple[int, float, float]]:
    """Yield stream, begin and end (seconds) of every packet that is to be shown or heard."""
    for packet in container.demux():
        if packet.is_corrupt:
            raise _cut_off(name, f"a piece at byte {packet.pos} is incomplete")
        at = packet.dts if packet.pts is None else packet.pts
        if packet.size and at is not None and not packet.is_discard:
            begin = float(at * packet.time_base)
            yield (
                packet.stream_index,
                begin,
                begin + float(packet.duration or 0) * float(packet.time_base),
            )


def _cut_off(name: str, how: str) -> InputError:
    return InputError(f"video: {name} is damaged or cut off: {how}; fetch it again")


def _keep(frames: Iterator[VideoFrame], survey: _Survey, name: str) -> Clip:
    """Keep every frame that is on in the middle of one of ``KEPT`` equal spans of time."""
    duration = survey.end - survey.start
    wanted = centres(duration, KEPT)
    kept: list[tuple[NDArray[np.uint8], float]] = []
    pending: tuple[VideoFrame, float] | None = None
    for frame in frames:
        if frame.pts is None:
            raise InputError(
                f"video: {name} does not say when its frames are shown; convert it to MP4"
            )
        at = frame.time - survey.start
        if pending is not None and wanted.size and wanted[0] < at:
            kept.append((_picture(pending[0]), pending[1]))
            wanted = wanted[wanted >= at]
        pending = (frame, at)
    if pending is None:
        raise InputError(f"video: {name} holds no frame that can be decoded")
    if wanted.size:
        kept.append((_picture(pending[0]), pending[1]))
    if len({picture.shape for picture, _ in kept}) > 1:
        raise InputError(f"video: {name} changes its size on the way; convert it to one size")
    times = np.maximum.accumulate(np.array([at for _, at in kept], dtype=np.float64))
    return Clip(np.stack([picture for picture, _ in kept]), times, duration)


def _picture(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return a frame as ``(height, width, 3)``, RGB, upright, transparent parts on white."""
    if any(component.is_alpha for component in frame.format.components):
        layers = np.asarray(frame.to_ndarray(format="rgba", threads=1)).astype(np.uint16)
        alpha = layers[:, :, 3:]
        mixed = (layers[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
        picture = mixed.astype(np.uint8)
    else:
        picture = np.asarray(frame.to_ndarray(format="rgb24", threads=1), dtype=np.uint8)
    turns = round(frame.rotation / _RIGHT_ANGLE)
    return np.ascontiguousarray(np.rot90(shrink(picture), turns))
