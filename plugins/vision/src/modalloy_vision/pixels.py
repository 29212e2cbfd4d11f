"""From a picture to the square of numbers that an encoder sees."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

WHITE = (255, 255, 255)


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """Scale a whole picture into a white square, nothing cropped away.

    The long side becomes ``size``; bicubic with antialiasing. Scaling comes before padding, so
    that a very long and thin picture never makes a huge square.

    Args:
        picture: RGB.
        size: Side of the square in pixels.

    Returns:
        RGB, ``size`` by ``size``, the picture in the middle.
    """
    scale = size / max(picture.size)
    width, height = (min(size, max(1, round(side * scale))) for side in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return square


def normalise(picture: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return an RGB picture as float32 ``(3, height, width)``, ``(value / 255 - mean) / std``."""
    values = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).float() / 255
    centre, scale = (torch.tensor(three).view(3, 1, 1) for three in (mean, std))
    return ((values - centre) / scale).contiguous()
