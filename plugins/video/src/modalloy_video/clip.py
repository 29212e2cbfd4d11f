"""A clip: a bounded, evenly spaced sample of a video's frames."""

from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modalloy.errors import LimitError

SIDE = 640
"""Longest side of a kept frame in pixels: more than encoders see, and memory stays bounded."""

_MIDDLE = 0.5 + 1e-6


@attrs.frozen(eq=False)
class Clip:
    """One video, in as many frames as are kept of it.

    Attributes:
        frames: Shape ``(n, height, width, 3)``, uint8, RGB, upright, 0 < n <= ``KEPT``, neither
            side longer than :data:`SIDE`.
        times: Shape ``(n,)``, float64, not decreasing: when each frame comes on, counted from
            the first; in seconds, or in frames where the source tells no times.
        duration: When the last frame goes off, in the same unit.
    """

    frames: NDArray[np.uint8]
    times: NDArray[np.float64]
    duration: float


def centres(duration: float, count: int) -> NDArray[np.float64]:
    """Return the middles of ``count`` equal spans of ``duration``, shape ``(count,)``."""
    # Just past the middle: a frame that comes on in the very middle, as every other does where
    # two share a span, must not be taken or left by how its time was rounded.
    return (np.arange(count, dtype=np.float64) + _MIDDLE) * np.float64(duration / count)


def sample(clip: Clip, count: int) -> NDArray[np.uint8]:
    """Return the frames seen in the middles of ``count`` equal spans of time.

    A frame that is on in several of them is repeated, so that any clip, however short, gives
    ``count`` frames.

    Returns:
        ``(count, height, width, 3)``, uint8.
    """
    on = np.searchsorted(clip.times, centres(clip.duration, count), side="right") - 1
    return clip.frames[on.clip(min=0)]


def shrink(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``(height, width, 3)`` with its longer side at most :data:`SIDE`."""
    height, width = frame.shape[:2]
    longest = max(height, width)
    if longest <= SIDE:
        return frame
    size = (max(1, round(width * SIDE / longest)), max(1, round(height * SIDE / longest)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def check_limit(limit: str, found: int, limits: Mapping[str, int], what: str) -> None:
    """Refuse what is larger than its modality allows.

    Raises:
        LimitError: ``found`` is more than ``limits[limit]``.
    """
    allowed = limits[limit]
    if found > allowed:
        raise LimitError(
            f"video: {what} has {found:,} {_MEANING[limit]}, at most {allowed:,} are read; "
            f"{_REMEDY[limit]}, or raise the modality's limit",
            limit=limit,
            allowed=allowed,
            found=found,
        )


_MEANING = {
    "bytes": "bytes",
    "seconds": "seconds",
    "pixels": "pixels a frame",
    "frames": "frames",
}
_REMEDY = {
    "bytes": "cut or compress it",
    "seconds": "cut it",
    "pixels": "scale it down",
    "frames": "cut it or lower its frame rate",
}
