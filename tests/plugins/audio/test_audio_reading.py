"""From files, bytes and arrays to waveforms, and what is refused."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from modalloy.errors import InputError, LimitError
from modalloy_audio.reading import Waveform, read

LIMITS = {"bytes": 1 << 20, "seconds": 10}
RATE = 16_000

Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def tone() -> Samples:
    time = np.arange(RATE, dtype=np.float32) / RATE
    return (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def encode(samples: NDArray[Any], kind: str = "WAV", rate: int = RATE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "error"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1)])
def test_file_formats_are_decoded(kind: str, error: float, tone: Samples, tmp_path: Path) -> None:
    data = encode(tone, kind)
    path = tmp_path / "tone.sound"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path)):
        found = read(source, LIMITS)
        assert found.sampling_rate == RATE
        assert found.samples.dtype == np.float32
        assert found.samples.shape == tone.shape
        assert np.abs(found.samples - tone).max() < error


def test_mp3_is_decoded(tone: Samples) -> None:
    found = read(encode(tone, "MP3"), LIMITS)
    assert len(found.samples) == pytest.approx(RATE, abs=2000)
    assert np.abs(found.samples).max() == pytest.approx(0.5, abs=0.05)


def test_16_bit_file_keeps_its_integers(tone: Samples) -> None:
    integers = np.round(tone * 32768).astype(np.int16)
    found = read(encode(integers), LIMITS)
    assert np.array_equal(found.samples * 32768, integers.astype(np.float32))


def test_openai_part_and_data_url_carry_base64(tone: Samples) -> None:
    text = base64.b64encode(encode(tone)).decode()
    for source in ({"data": text, "format": "wav"}, f"data:audio/wav;base64,{text}"):
        assert np.abs(read(source, LIMITS).samples - tone).max() < 1e-4


SHAPES: dict[str, Callable[[Samples], object]] = {
    "tuple": lambda tone: (tone, RATE),
    "datasets": lambda tone: {"array": tone, "sampling_rate": RATE, "path": None},
    "waveform": lambda tone: Waveform(tone, RATE),
    "tensor": lambda tone: (torch.from_numpy(tone), RATE),
    "double": lambda tone: (tone.astype(np.float64), np.int64(RATE)),
    "list": lambda tone: (tone.tolist(), RATE),
    "integers": lambda tone: (np.round(tone * 32768).astype(np.int16), RATE),
    "channels first": lambda tone: (np.stack([tone * 2, tone * 0]), RATE),
    "channels last": lambda tone: (np.stack([tone * 2, tone * 0], axis=1), RATE),
    "one channel": lambda tone: (torch.from_numpy(tone)[None], RATE),
}


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_arrays_are_mixed_down_to_float32(kind: str, tone: Samples) -> None:
    found = read(SHAPES[kind](tone), LIMITS)
    assert found.sampling_rate == RATE
    assert found.samples.dtype == np.float32
    assert found.samples.shape == tone.shape
    assert np.abs(found.samples - tone).max() < 1e-4


def test_stereo_file_is_mixed_down_beyond_one_block() -> None:
    draw = np.random.default_rng(0).uniform(-0.5, 0.5, (150_000, 2)).astype(np.float32)
    found = read(encode(draw, "WAV", subtype="FLOAT"), {"bytes": 1 << 22, "seconds": 10})
    assert np.allclose(found.samples, draw.mean(axis=1), atol=1e-7)


def test_limit_on_bytes_holds_before_decoding(tone: Samples, tmp_path: Path) -> None:
    data = encode(tone)
    path = tmp_path / "tone.wav"
    path.write_bytes(data)
    allowed = {"bytes": len(data) - 1, "seconds": 10}
    part = {"data": base64.b64encode(data).decode(), "format": "wav"}
    for source in (data, path, part):
        with pytest.raises(
            LimitError, match=f"has {len(data)} bytes, at most {len(data) - 1}"
        ) as e:
            read(source, allowed)
        assert (e.value.limit, e.value.allowed, e.value.found) == (
            "bytes",
            len(data) - 1,
            len(data),
        )
        assert read(source, {"bytes": len(data), "seconds": 10})


def test_limit_on_seconds_holds_before_decoding(
    tone: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(np.tile(tone, 2), "FLAC")
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    for source in (data, (np.tile(tone, 2), RATE)):
        with pytest.raises(LimitError, match="lasts 2 seconds, at most 1 are read") as caught:
            read(source, {"bytes": 1 << 20, "seconds": 1})
        assert (caught.value.limit, caught.value.allowed, caught.value.found) == ("seconds", 1, 2)


def test_header_that_lies_about_length_costs_nothing(tone: Samples) -> None:
    data = bytearray(encode(tone, "FLAC"))
    data[21] |= 0x0F  # with the next four bytes: the number of samples, 36 bits
    data[22:26] = b"\xff" * 4
    with pytest.raises(LimitError, match="lasts 4294968 seconds"):
        read(bytes(data), LIMITS)
    data[21] &= 0xF0
    data[22:26] = b"\0" * 4
    with pytest.raises(InputError, match="does not say how long it is"):
        read(bytes(data), LIMITS)


def test_cut_off_file_is_refused(tone: Samples, tmp_path: Path) -> None:
    data = encode(np.random.default_rng(0).normal(0, 0.1, RATE * 3).astype(np.float32), "MP3")
    with pytest.raises(InputError, match="damaged or cut off: it should hold 48000 samples"):
        read(data[: len(data) // 2], LIMITS)
    path = tmp_path / "broken.flac"
    path.write_bytes(encode(tone, "FLAC")[:4000])
    with pytest.raises(InputError, match=r"broken\.flac cannot be decoded \(.*lost sync"):
        read(path, LIMITS)


BAD: list[tuple[object, str]] = [
    (b"", r"the file is empty \(0 bytes\)"),
    (b"not a sound at all", "the given bytes cannot be decoded .*wav, flac, ogg and mp3 are read"),
    (encode(np.zeros(0, np.float32)), "the recording has no samples"),
    (Path("no-such-file.wav"), "no-such-file.wav cannot be opened: No such file"),
    (Path(), "is not a file"),
    ("https://example.org/a.wav", "no other URL is fetched; download the file"),
    ("data:audio/wav,abc", "is not a 'data:...;base64,' URL"),
    ({"data": "%%%", "format": "wav"}, "'data' is not valid base64"),
    ({"url": "x"}, "found the keys url"),
    (
        {"array": "x", "sampling_rate": RATE},
        "numpy array, a torch tensor or a list, found builtins.str",
    ),
    (np.zeros(9, np.float32), "numpy.ndarray, which does not tell its sampling rate; give"),
    (3, "cannot read builtins.int; give the bytes"),
    ((np.zeros(9, np.float32), 16_000.0), "whole number of samples a second, found 16000.0"),
    ((np.zeros(9, np.float32), 10), "10 Hz is outside 1000 to 384000 Hz"),
    ((np.zeros(0, np.float32), RATE), "the recording has no samples"),
    ((np.zeros((0, 2), np.float32), RATE), "the recording has no samples"),
    ((np.zeros((2, 2, 9), np.float32), RATE), r"found \(2, 2, 9\)"),
    ((np.zeros(9, np.uint8), RATE), "floating-point numbers or signed integers, found uint8"),
    (([1.0, [2.0]], RATE), "the list of samples is ragged"),
    ((np.array([0, np.nan, np.inf], np.float32), RATE), "2 of 3 samples are NaN or infinite"),
    (encode(np.array([0, np.nan], np.float32), subtype="FLOAT"), "1 of 2 samples are NaN"),
]


# By number: the header of a float WAV holds the time, which workers would disagree about.
@pytest.mark.parametrize(("source", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_is_named(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(source, LIMITS)
