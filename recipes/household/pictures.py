"""Pictures: one form for all sources, near-duplicates, training views and degraded views."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

SIDE = 160
"""Side in pixels of every stored picture; encoders resize to their own."""
VIEWS = 4
"""Training pictures of one object: the stored one and three altered ones."""
_HASH = 16
_NEAR = 14


def normalise(image: Image.Image) -> Image.Image:
    """Crops to the content and centres it on a white square, RGB, ``SIDE`` x ``SIDE``."""
    rgba = image.convert("RGBA")
    flat = Image.new("RGBA", rgba.size, "white")
    flat.alpha_composite(rgba)
    rgb = flat.convert("RGB")
    # Alpha would do for most, but some icons have an opaque white ground.
    box = ImageChops.difference(rgb, Image.new("RGB", rgb.size, "white")).point(_far).getbbox()
    rgb = rgb.crop(box or (0, 0, *rgb.size))
    scale = SIDE * 0.92 / max(rgb.size)
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(
        rgb.resize(size, Image.Resampling.LANCZOS), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2)
    )
    return square


def _far(value: int) -> int:
    """Counts as content what differs from white by more than JPEG-like noise."""
    return 255 if value > 12 else 0  # noqa: PLR2004 - a shade that no eye sees


def fingerprint(image: Image.Image) -> NDArray[np.bool_]:
    """Difference hash: bool (2 * 16 * 16), whether brightness rises rightwards and downwards."""
    grey = np.asarray(
        image.convert("L").resize((_HASH + 1, _HASH + 1), Image.Resampling.LANCZOS), dtype=np.int16
    )
    # A margin of 2 keeps flat white ground from flipping bits.
    across = grey[:-1, 1:] > grey[:-1, :-1] + 2
    down = grey[1:, :-1] > grey[:-1, :-1] + 2
    return np.concatenate([across.ravel(), down.ravel()])


def near_duplicates(images: Mapping[str, Image.Image]) -> list[tuple[str, str, int]]:
    """Pairs of ids whose fingerprints differ in at most ``_NEAR`` of 512 bits, with that number."""
    marks = {id_: fingerprint(image) for id_, image in sorted(images.items())}
    return [
        (one, other, distance)
        for one, other in combinations(marks, 2)
        if (distance := int((marks[one] != marks[other]).sum())) <= _NEAR
    ]


def view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An altered training view: mirrored or not, shifted, scaled, turned a little, recoloured."""
    if rng.random() < 0.5:  # noqa: PLR2004 - a coin
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ground = tuple(int(v) for v in rng.integers(225, 256, 3))
    angle = float(rng.uniform(-8, 8))
    image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")
    side = round(SIDE * float(rng.uniform(0.7, 1.0)))
    small = image.resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    left, top = (int(v) for v in rng.integers(0, SIDE - side + 1, 2))
    canvas.paste(small, (left, top))
    # Multiplying tints the white ground and leaves dark parts as they are.
    canvas = ImageChops.multiply(canvas, Image.new("RGB", canvas.size, ground))
    canvas = ImageEnhance.Color(canvas).enhance(float(rng.uniform(0.5, 1.4)))
    return ImageEnhance.Brightness(canvas).enhance(float(rng.uniform(0.8, 1.1)))


def degrade(
    image: Image.Image, rng: np.random.Generator, side: int, blur: float, noise: float
) -> Image.Image:
    """Shrinks to ``side`` pixels, blurs and adds noise, and enlarges to the size it had.

    Args:
        image: RGB picture.
        rng: Source of the noise.
        side: Pixels of a side that survive.
        blur: Standard deviation of the blur, in pixels of the shrunken picture.
        noise: Standard deviation of the noise, in grey levels of 0 to 255.
    """
    small = image.resize((side, side), Image.Resampling.LANCZOS)
    small = small.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(small, dtype=np.float64) + rng.normal(0, noise, (side, side, 3))
    small = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return small.resize(image.size, Image.Resampling.BILINEAR)
