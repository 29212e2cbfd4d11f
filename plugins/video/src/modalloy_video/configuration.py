"""What ``parent.json`` may say about a video encoder, checked without torch."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import attrs

from modalloy.errors import FormatError, SpecError
from modalloy.structured import structure

KEPT = 64
"""Frames that a clip keeps at most once it is read, and so the most that an encoder can see."""

MOST = 1 << 16
"""The largest number that a size of an encoder may be."""

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class FramesConfig:
    """A timm backbone that looks at single frames, averaged over equal spans of time.

    Attributes:
        model: Architecture, a name that ``timm.create_model`` knows.
        features: Channels of the last feature map, F.
        weights: ``"packaged"`` for the file that comes with this plugin, ``"timm"`` for timm's
            own pretrained weights, fetched from the Hub.
        frames: Frames that are taken of a clip, one from the middle of each of as many spans.
        tokens: Spans of time that the frames are averaged to, in order, K; at most ``frames``.
        image_size: Height and width, in pixels, of the square that the backbone sees.
        mean: Subtracted from each channel, on the scale where white is 1.
        std: Each channel is divided by it, same scale.
    """

    model: str
    features: int
    weights: Literal["packaged", "timm"] = "packaged"
    frames: int = 8
    tokens: int = 4
    image_size: int = 224
    mean: tuple[float, float, float] = (0.498, 0.498, 0.498)
    std: tuple[float, float, float] = (0.502, 0.502, 0.502)


@attrs.frozen(kw_only=True)
class VideoMAEConfig:
    """A VideoMAE model opened through transformers.

    Attributes:
        model: Hub id, or a directory with ``config.json``, weights and image processor.
        tokens: Tokens of one clip, K: either the model's steps in time or fewer, averaged over
            the picture and over equal spans of time, or every patch of every step.
        features: Hidden size, F.
        frames: Frames that the model sees.
        image_size: Height and width, in pixels, of the square that the model sees.
        revision: Branch, tag or commit of the Hub repository.
        layer: Which hidden state: 0 is the embeddings, -1 the last layer's output, -2 the one
            before it.
    """

    model: str
    tokens: int
    features: int
    frames: int = 16
    image_size: int = 224
    revision: str | None = None
    layer: int = -2


DEFAULT_FRAMES = {
    "model": "tf_efficientnet_lite0",
    "weights": "packaged",
    "frames": 8,
    "tokens": 4,
    "features": 1280,
    "image_size": 224,
    "mean": [0.498, 0.498, 0.498],
    "std": [0.502, 0.502, 0.502],
}
"""Configuration of the packaged encoder, as the packaged parents' ``parent.json`` holds it."""


def frames_config(config: Mapping[str, Any]) -> FramesConfig:
    """Check the configuration of encoder ``frames``.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    subject = "encoder 'frames'"
    parsed = _parse(config, FramesConfig, subject)
    _check_positive(
        subject,
        tokens=parsed.tokens,
        features=parsed.features,
        frames=parsed.frames,
        image_size=parsed.image_size,
        std=min(parsed.std),
    )
    _check_frames(subject, parsed.frames)
    if parsed.tokens > parsed.frames:
        raise SpecError(
            f"{subject}: {parsed.frames} frames cannot be averaged to {parsed.tokens} tokens; set "
            f"tokens to {parsed.frames} or fewer, or take more frames",
            subject=subject,
        )
    return parsed


def videomae_config(config: Mapping[str, Any]) -> VideoMAEConfig:
    """Check the configuration of encoder ``videomae``.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    subject = "encoder 'videomae'"
    parsed = _parse(config, VideoMAEConfig, subject)
    _check_positive(
        subject,
        tokens=parsed.tokens,
        features=parsed.features,
        frames=parsed.frames,
        image_size=parsed.image_size,
    )
    _check_frames(subject, parsed.frames)
    return parsed


def frames_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``frames``.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = frames_config(config)
    return parsed.tokens, parsed.features


def videomae_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``videomae``.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = videomae_config(config)
    return parsed.tokens, parsed.features


def _parse(config: Mapping[str, Any], kind: type[C], subject: str) -> C:
    try:
        return structure(dict(config), kind, subject)
    except FormatError as error:
        raise SpecError(str(error), subject=subject) from error


def _check_positive(subject: str, **values: float) -> None:
    bad = {name: value for name, value in values.items() if value <= 0}
    if bad:
        raise SpecError(f"{subject}: must be positive, found {bad}", subject=subject)
    # A damaged or hostile number must not become an allocation.
    huge = {name: value for name, value in values.items() if value > MOST}
    if huge:
        raise SpecError(f"{subject}: must be at most {MOST}, found {huge}", subject=subject)


def _check_frames(subject: str, frames: int) -> None:
    if frames > KEPT:
        raise SpecError(
            f"{subject}: frames is {frames}, but a clip keeps {KEPT} once it is read; set frames "
            f"to {KEPT} or fewer",
            subject=subject,
        )
