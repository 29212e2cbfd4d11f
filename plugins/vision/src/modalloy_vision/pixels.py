"""From a picture to the square of numbers that an encoder sees."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from modalloy_vision.tower_configuration import Picturing

WHITE = (255, 255, 255)
BICUBIC = Image.Resampling.BICUBIC
_FILTERS = {"bicubic": BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LONGEST = 64  # times the short side


def picture_square(picture: Image.Image, size: int, how: Picturing) -> torch.Tensor:
    """Return a picture as a tower sees it: fitted into a square and normalised.

    Args:
        picture: RGB.
        size: Side of the square in pixels.
        how: How it is fitted, and the mean and standard deviation.

    Returns:
        float32 ``(3, size, size)``.
    """
    resample = _FILTERS[how.resample]
    if how.fit == "crop":
        square = crop_square(picture, size, resample)
    elif how.fit == "stretch":
        square = picture.resize((size, size), resample)
    else:
        fill = (int(how.mean[0] * 255), int(how.mean[1] * 255), int(how.mean[2] * 255))
        square = fit_square(picture, size, fill, resample)
    return normalise(square, how.mean, how.std)


def fit_square(
    picture: Image.Image,
    size: int,
    fill: tuple[int, int, int] = WHITE,
    resample: Image.Resampling = BICUBIC,
) -> Image.Image:
    """Scale a whole picture into a square of one colour, nothing cropped away.

    The long side becomes ``size``; antialiased. Scaling comes before padding, so that a very long
    and thin picture never makes a huge square.

    Args:
        picture: RGB.
        size: Side of the square in pixels.
        fill: Colour of the square.
        resample: Filter of the scaling.

    Returns:
        RGB, ``size`` by ``size``, the picture in the middle.
    """
    scale = size / max(picture.size)
    width, height = (min(size, max(1, round(side * scale))) for side in picture.size)
    scaled = picture.resize((width, height), resample)
    square = Image.new("RGB", (size, size), fill)
    square.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return square


def crop_square(
    picture: Image.Image, size: int, resample: Image.Resampling = BICUBIC
) -> Image.Image:
    """Scale the short side of a picture to ``size`` and take the square in its middle.

    It is what transformers' CLIP image processor does. Of a very long and thin picture, what would
    be cropped away is not scaled, so that it never makes a huge one; there Pillow may scale rows
    before columns or after, and values differ slightly from the processor's.

    Args:
        picture: RGB.
        size: Side of the square in pixels.
        resample: Filter of the scaling.

    Returns:
        RGB, ``size`` by ``size``.
    """
    short = min(picture.size)
    width, height = (int(size * side / short) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    if max(width, height) <= _LONGEST * size:
        scaled = picture.resize((width, height), resample)
        return scaled.crop((left, top, left + size, top + size))
    columns, rows = picture.width / width, picture.height / height
    right = min((left + size) * columns, picture.width)
    bottom = min((top + size) * rows, picture.height)
    box = (left * columns, top * rows, right, bottom)
    return picture.resize((size, size), resample, box=box)


def normalise(picture: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return an RGB picture as float32 ``(3, height, width)``, ``(value / 255 - mean) / std``."""
    values = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).float() / 255
    centre, scale = (torch.tensor(three).view(3, 1, 1) for three in (mean, std))
    return ((values - centre) / scale).contiguous()


def patch_rows(pixels: torch.Tensor, patch: int, merged: int, frames: int) -> torch.Tensor:
    """Cut a square into patches as the towers of Qwen-VL take them.

    Those of one token come one after another, ``merged`` by ``merged`` of them.

    Args:
        pixels: ``(C, S, S)``, S a multiple of ``patch * merged``.
        patch: Side of a patch.
        merged: Side, in patches, of the square that becomes one token.
        frames: How often a patch is repeated, as if it were that many frames.

    Returns:
        ``((S / patch) ** 2, C * frames * patch * patch)``.
    """
    sides = (pixels.shape[1] // (patch * merged), merged, patch)
    cut = pixels.unflatten(2, sides).unflatten(1, sides)  # C, rows, merged, patch, columns, ...
    patches = cut.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
    repeated = patches.expand(-1, -1, -1, -1, -1, frames, -1, -1)
    return repeated.flatten(4).flatten(0, 3)
