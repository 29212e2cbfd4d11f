"""From the frames of a clip to the squares of numbers that an encoder sees."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

WHITE = (255, 255, 255)


def fit_squares(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale whole frames into white squares, nothing cropped away.

    The long side becomes ``size``; bicubic with antialiasing.

    Args:
        frames: ``(n, height, width, 3)``.
        size: Side of the squares in pixels.

    Returns:
        ``(n, size, size, 3)``, each frame in the middle of its square.
    """
    height, width = frames.shape[1:3]
    scale = size / max(height, width)
    rows, columns = (min(size, max(1, round(side * scale))) for side in (height, width))
    top, left = (size - rows) // 2, (size - columns) // 2
    squares = np.full((len(frames), size, size, 3), WHITE, dtype=np.uint8)
    for square, frame in zip(squares, frames, strict=True):
        scaled = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC)
        square[top : top + rows, left : left + columns] = np.asarray(scaled)
    return squares


def crop_square(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale the short side of a frame to ``size`` and take the square in its middle.

    Bicubic with antialiasing, as transformers' CLIP image processor does.

    Args:
        frame: ``(height, width, 3)``.
        size: Side of the square in pixels.

    Returns:
        ``(size, size, 3)``.
    """
    height, width = frame.shape[:2]
    short = min(height, width)
    rows, columns = int(size * height / short), int(size * width / short)
    scaled = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC)
    left, top = (columns - size) // 2, (rows - size) // 2
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def normalise(
    frames: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Return frames as float32 ``(n, 3, height, width)``, ``(value / 255 - mean) / std``."""
    values = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    centre, scale = (torch.tensor(three).view(1, 3, 1, 1) for three in (mean, std))
    return ((values - centre) / scale).contiguous()
