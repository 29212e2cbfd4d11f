"""Reading pictures: every kind of source, colours as seen, limits before decoding."""

import base64
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modalloy.errors import InputError, LimitError
from modalloy_vision.reading import FORMATS, read

LIMITS = {"bytes": 100_000, "pixels": 10_000}
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


def picture() -> Image.Image:
    """Return 6x5 pixels: left half red, right half blue, one green pixel in the top left corner."""
    made = Image.new("RGB", (6, 5), RED)
    made.paste(BLUE, (3, 0, 6, 5))
    made.putpixel((0, 0), GREEN)
    return made


def encoded(made: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and carries almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def sources(tmp_path: Path) -> dict[str, Any]:
    data = encoded(picture())
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    array = np.asarray(picture())
    tensor = torch.from_numpy(array.copy())
    return {
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "path": path,
        "lazily opened": Image.open(path),
        "PIL": picture(),
        "array": array,
        "array, channels first": array.transpose(2, 0, 1),
        "array, 16 bits": array.astype(np.uint16) * 257,
        "array, floats": array.astype(np.float64) / 255,
        "tensor": tensor,
        "tensor, channels first": tensor.permute(2, 0, 1),
        "tensor, half": tensor.permute(2, 0, 1).half() / 255,
        "tensor, needs grad": (tensor.float() / 255).requires_grad_(),
        "data URL": data_url(data),
        "data URL with parameter": data_url(data, "image/png;charset=utf-8"),
        "image_url": {"url": data_url(data), "detail": "low"},
    }


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    expected = np.asarray(picture())
    for kind, source in sources(tmp_path).items():
        result = read(source, LIMITS)
        assert result.mode == "RGB", kind
        np.testing.assert_array_equal(np.asarray(result), expected, err_msg=kind)


def test_bfloat16_tensors_are_read() -> None:
    result = read(torch.ones(3, 2, 5, dtype=torch.bfloat16), LIMITS)
    assert result.size == (5, 2)
    assert result.getpixel((4, 1)) == WHITE


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str) -> None:
    flat = Image.new("RGB", (16, 12), (200, 100, 50))
    pixels = np.asarray(read(encoded(flat, kind), LIMITS)).astype(int)
    # Lossy formats may be a few steps off on a flat colour, GIF's palette by as much.
    assert np.abs(pixels - (200, 100, 50)).max() <= 4


def test_other_formats_are_refused() -> None:
    for kind in ("PPM", "ICO", "PDF"):
        with pytest.raises(InputError, match=r"a format that is read \(PNG, JPEG,"):
            read(encoded(picture(), kind), LIMITS)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(kind: str) -> None:
    made = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    made.putpixel((1, 0), (0, 0, 0, 0))
    if kind == "P":
        made = Image.new("P", (2, 1), 0)
        made.putpalette([0, 0, 0, 10, 20, 30])
        made.putpixel((1, 0), 1)
        data = encoded(made, transparency=1)
    else:
        data = encoded(made.convert(kind))
    result = read(data, LIMITS)
    assert result.getpixel((0, 0)) == (0, 0, 0)
    assert result.getpixel((1, 0)) == WHITE


def test_half_transparent_is_mixed_with_white() -> None:
    array = np.zeros((1, 1, 4), np.uint8)
    array[..., 3] = 128
    assert read(array, LIMITS).getpixel((0, 0)) == (127, 127, 127)


def test_a_colour_declared_transparent_becomes_white() -> None:
    data = encoded(picture(), transparency=RED)
    result = read(data, LIMITS)
    assert result.getpixel((1, 1)) == WHITE
    assert result.getpixel((4, 1)) == BLUE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    turned = Image.new("RGB", (32, 16), RED)
    turned.paste(BLUE, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must turn clockwise
    data = encoded(turned, kind, exif=exif)
    for source in (data, Image.open(io.BytesIO(data))):
        result = read(source, LIMITS)
        assert result.size == (16, 32)
        top, bottom = result.getpixel((8, 4)), result.getpixel((8, 28))
        assert isinstance(top, tuple)
        assert isinstance(bottom, tuple)
        assert (top[0] > 200, top[2] < 50) == (True, True)
        assert (bottom[2] > 200, bottom[0] < 50) == (True, True)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        result = np.asarray(read(encoded(Image.fromarray(values), kind), LIMITS))
        assert result[0, :, 0].tolist() == [0, 100, 255], kind
    wide = Image.fromarray(values.astype(np.int32))
    assert np.asarray(read(encoded(wide, "TIFF"), LIMITS))[0, :, 0].tolist() == [0, 100, 255]


def test_deep_grey_out_of_range_is_refused() -> None:
    made = Image.fromarray(np.array([[0, 70000]], np.int32))
    with pytest.raises(InputError, match="reach from 0 to 70000; expected 0 to 65535"):
        read(encoded(made, "TIFF"), LIMITS)


def test_cmyk_is_seen_in_its_colours() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        red, green, blue = np.asarray(read(encoded(cmyk, kind), LIMITS))[8, 8].tolist()
        assert (red > 220, green < 40, blue < 40) == (True, True, True), kind


def test_grey_and_one_bit_and_palette() -> None:
    assert read(encoded(Image.new("L", (2, 2), 77)), LIMITS).getpixel((1, 1)) == (77, 77, 77)
    assert read(encoded(Image.new("1", (2, 2), 1)), LIMITS).getpixel((1, 1)) == WHITE
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    assert read(encoded(palette), LIMITS).getpixel((5, 3)) == BLUE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read(data, LIMITS).getpixel((4, 4)) == RED


def test_arrays_where_both_ends_could_be_channels() -> None:
    tall = np.zeros((3, 5, 4), np.uint8)
    assert read(tall, LIMITS).size == (5, 3)
    assert read(torch.from_numpy(tall), LIMITS).size == (4, 5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), r"shape \(2, 3, 4, 3\) is not one picture"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\) is not one picture"),
        (np.zeros(7, np.uint8), r"shape \(7,\) is not one picture"),
        (np.zeros((0, 5, 3), np.uint8), r"empty: its shape is \(0, 5, 3\)"),
        (np.zeros((2, 2), np.int64), "dtype int64 cannot be a picture; give uint8"),
        (np.full((2, 2), 255.0), "reach from 255 to 255; expected 0 to 1"),
        (np.full((2, 2), -0.5), "reach from -0.5 to -0.5; expected 0 to 1"),
        (np.full((2, 2), np.nan), "reach from nan to nan; expected 0 to 1"),
    ],
)
def test_arrays_that_are_no_pictures(array: Any, message: str) -> None:
    for source in (array, torch.from_numpy(array)):
        with pytest.raises(InputError, match=message):
            read(source, LIMITS)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_input_errors(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for cut in (len(data) // 2, 30, 3, 1):
        with pytest.raises(InputError, match=r"damaged|not a picture of a format"):
            read(data[:cut], LIMITS)


def test_a_cut_off_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path.write_bytes(encoded(Image.fromarray(noise))[:2000])
    with pytest.raises(InputError, match=r"half\.png: the picture is damaged or cut off \(.+\)"):
        read(path, LIMITS)


def test_empty_and_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty, there is no picture in it"):
        read(b"", LIMITS)
    with pytest.raises(InputError, match="its size is 0x4"):
        read(Image.new("RGB", (0, 4)), LIMITS)
    for missing in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(InputError, match="there is no such picture file"):
            read(missing, LIMITS)
    with pytest.raises(InputError, match=r"cannot be read from int; give bytes, a pathlib\.Path"):
        read(7, LIMITS)


def test_a_closed_picture_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture().save(path)
    closed = Image.open(path)
    closed.close()
    with pytest.raises(InputError, match="the PIL image: the picture is damaged or cut off"):
        read(closed, LIMITS)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/cat.png",
        "http://169.254.169.254/latest",
        "file:///etc/hostname",
        "/etc/hostname",
        "cat.png",
        "data:image/svg+xml,%3Csvg/%3E",
        "",
    ],
)
def test_only_data_urls_are_read(url: str) -> None:
    for source in (url, {"url": url}):
        with pytest.raises(InputError, match="nothing is ever fetched; download the picture"):
            read(source, LIMITS)


def test_bad_data_urls() -> None:
    with pytest.raises(InputError, match=r"expected type 'image/\.\.\.', found 'audio/wav'"):
        read(data_url(b"RIFF", "audio/wav"), LIMITS)
    with pytest.raises(InputError, match="not valid base64"):
        read("data:image/png;base64,%%%", LIMITS)
    with pytest.raises(InputError, match="empty, there is no picture"):
        read("data:image/png;base64,", LIMITS)
    with pytest.raises(InputError, match="found a url of type NoneType"):
        read({"href": "x"}, LIMITS)


def test_too_many_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise))
    path = tmp_path / "big.png"
    path.write_bytes(data)
    limits = {"bytes": len(data) - 1, "pixels": 10_000}
    for source in (data, path, data_url(data), {"url": data_url(data)}):
        with pytest.raises(LimitError, match=f"{len(data):,} bytes, at most {len(data) - 1:,} are"):
            read(source, limits)
    assert read(data_url(data), {**limits, "bytes": len(data)}).size == (30, 30)


def test_too_many_bytes_are_neither_loaded_nor_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(*args: Any, **options: Any) -> Any:
        raise AssertionError("the content was touched before its size was checked")

    path = tmp_path / "big.png"
    path.write_bytes(bytes(300_000))
    url = data_url(bytes(300_000))
    monkeypatch.setattr(Path, "open", touch)
    monkeypatch.setattr(base64, "b64decode", touch)
    for source in (path, url):
        with pytest.raises(LimitError, match="300,000 bytes, at most 100,000 are allowed"):
            read(source, LIMITS)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="there is no such picture file"):
        read(pipe, LIMITS)


def test_too_many_pixels() -> None:
    limits = {"bytes": 100_000, "pixels": 29}
    array = np.asarray(picture())
    for source in (encoded(picture()), picture(), array, torch.from_numpy(array.copy())):
        with pytest.raises(LimitError, match="30 pixels, at most 29 are allowed") as caught:
            read(source, limits)
        assert (caught.value.limit, caught.value.allowed, caught.value.found) == ("pixels", 29, 30)


@pytest.mark.parametrize("side", [7_000, 12_000, 30_000])
def test_a_bomb_is_refused_by_its_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below, between and above the two sizes at which Pillow itself warns and refuses."""

    def decode(self: Image.Image) -> None:
        raise AssertionError("the picture was decoded before its size was checked")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decode)
    limits = {"bytes": 25 * 2**20, "pixels": 40_000_000}
    with pytest.raises(LimitError, match=f"{side * side:,} pixels, at most 40,000,000") as caught:
        read(png_header(side, side), limits)
    assert (caught.value.limit, caught.value.found) == ("pixels", side * side)


def test_pillows_own_guard_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    read(encoded(picture()), LIMITS)
    assert before == Image.MAX_IMAGE_PIXELS
