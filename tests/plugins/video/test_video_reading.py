"""From files, arrays and lists to clips, and what is refused."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from modalloy.errors import InputError, LimitError
from modalloy_video import decoding
from modalloy_video.clip import SIDE, Clip, sample
from modalloy_video.configuration import KEPT
from modalloy_video.reading import read

LIMITS = {"bytes": 1 << 22, "seconds": 60, "pixels": 1_000_000, "frames": 1000}
CODINGS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "mp4": ("mp4", "libx264", "yuv420p", {"bf": "2"}),
    "mov": ("mov", "mpeg4", "yuv420p", {"bf": "2"}),
    "webm": ("webm", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "mkv": ("matroska", "libx264", "yuv420p", {}),
    "avi": ("avi", "mpeg4", "yuv420p", {"bf": "2"}),
    "gif": ("gif", "gif", "rgb8", {}),
    "ts": ("mpegts", "mpeg2video", "yuv420p", {"bf": "2"}),
}


def video(
    kind: str = "mp4",
    frames: int = 20,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    rotation: float | None = None,
) -> bytes:
    """A clip that grows lighter by 4 of 255 a frame, a corner red in its top left."""
    container, codec, pixels, options = CODINGS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(frames):
            picture = np.full((size[1], size[0], 3), index * 4 % 256, np.uint8)
            picture[:16, :16] = (255, 0, 0)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return buffer.getvalue()


def sound(kind: str = "mp4") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as output:
        stream: Any = output.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode()]:
            output.mux(packet)
    return buffer.getvalue()


def gif(seconds: list[float], *, clear: bool = False) -> bytes:
    """Greys of 10, 20, ..., each on for its time; transparent in the right half if ``clear``."""
    pictures = []
    for index in range(len(seconds)):
        layers = np.full((8, 8, 4), 10 * (index + 1), np.uint8)
        layers[:, :, 3] = 255
        layers[:, 4:, 3] = 0 if clear else 255
        pictures.append(Image.fromarray(layers))
    buffer = io.BytesIO()
    times = [round(1000 * one) for one in seconds]
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=times, disposal=2
    )
    return buffer.getvalue()


@pytest.mark.parametrize("kind", sorted(CODINGS))
def test_containers_and_codings(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(data := video(kind))
    for source in (data, memoryview(data), path, str(path)):
        clip = read(source, LIMITS)
        assert clip.frames.shape == (20, 48, 64, 3)
        assert clip.frames.dtype == np.uint8
        np.testing.assert_allclose(clip.times, np.arange(20) / 10, atol=1e-6)
        assert clip.duration == pytest.approx(2)
        # Means, because gif has 8 bits a pixel and dithers; the rest is lossy.
        grey = clip.frames[:, 20:, 20:].mean((1, 2))
        assert np.abs(grey - 4 * np.arange(20)[:, None]).max() < 12
        red = clip.frames[:, 4, 4].astype(int)
        assert np.abs(red - (255, 0, 0)).max() < 60


def test_long_clips_keep_an_even_sample() -> None:
    clip = read(video(frames=250), LIMITS)
    assert clip.frames.shape == (KEPT, 48, 64, 3)
    expected = np.floor((np.arange(KEPT) + 0.5) * 250 / KEPT)
    np.testing.assert_allclose(clip.times, expected / 10, atol=0.11)
    assert clip.duration == pytest.approx(25)
    grey = clip.frames[:, 40, 50, 0].astype(int)
    assert np.abs(grey - np.round(clip.times * 10) * 4 % 256).max() < 12
    eight = sample(clip, 8)[:, 40, 50, 0].astype(int)
    middles = (np.arange(8) + 0.5) * 250 / 8
    # A kept frame is off by a 64th of the clip at most: 4 frames, 16 grey levels.
    assert np.abs(eight - middles * 4 % 256).max() < 28


def test_sampling_goes_by_time() -> None:
    clip = read(gif([0.1, 2.0, 0.1, 0.1, 0.2]), LIMITS)
    np.testing.assert_allclose(clip.times, [0, 0.1, 2.1, 2.2, 2.3], atol=1e-6)
    assert clip.duration == pytest.approx(2.5)
    assert sample(clip, 6)[:, 0, 0, 0].tolist() == [20, 20, 20, 20, 20, 40]


@pytest.mark.parametrize("count", [1, 3, 8, KEPT])
def test_sampling_is_even_ordered_and_repeats(count: int) -> None:
    frames = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    found = sample(read(frames, LIMITS), count)[:, 0, 0, 0]
    assert found.tolist() == [int((i + 0.5) * 10 / count) for i in range(count)]
    one = sample(read(frames[:1], LIMITS), count)
    assert one.shape == (count, 1, 1, 3)


def test_frames_that_come_on_in_the_very_middle_count() -> None:
    """Sixteen frames, eight spans: rounding in their times must not choose among neighbours."""
    for kind in ("mp4", "avi"):
        clip = read(video(kind, frames=16), LIMITS)
        assert sample(clip, 8).tolist() == clip.frames[1::2].tolist()
    two_each = read(video(frames=128), LIMITS)
    np.testing.assert_allclose(two_each.times, np.arange(1, 128, 2) / 10, atol=1e-6)


def test_single_frames_make_clips() -> None:
    for source in (video(frames=1), gif([0.5]), np.zeros((1, 4, 4, 3), np.uint8)):
        clip = read(source, LIMITS)
        assert len(clip.frames) == 1
        assert len(sample(clip, 8)) == 8


def test_rotation_and_transparency() -> None:
    for degrees, corner in ((0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))):
        clip = read(video(frames=3, rotation=degrees), LIMITS)
        assert clip.frames.shape[1:3] == ((48, 64) if degrees % 180 == 0 else (64, 48))
        row, column = (4 if one == 0 else -4 for one in corner)
        assert clip.frames[1, row, column, 0] > 190, degrees
        assert clip.frames[1, row, column, 1] < 60, degrees
    clear = read(gif([0.1, 0.1], clear=True), LIMITS).frames
    assert (clear[:, 0, 0] == [[10] * 3, [20] * 3]).all()
    assert (clear[:, 0, 7] == 255).all()


def test_large_frames_are_kept_small() -> None:
    clip = read(video(frames=2, size=(1280, 320)), LIMITS)
    assert clip.frames.shape == (2, SIDE // 4, SIDE, 3)
    tall = read(np.zeros((2, 1000, 10, 3), np.uint8), LIMITS)
    assert tall.frames.shape == (2, SIDE, 6, 3)


LISTS: dict[str, Callable[[NDArray[np.uint8]], object]] = {
    "array": lambda frames: frames,
    "tensor": torch.from_numpy,
    "pictures": lambda frames: [Image.fromarray(one) for one in frames],
    "list": list,
    "tuple": lambda frames: tuple(torch.from_numpy(frames)),
}


@pytest.mark.parametrize("kind", sorted(LISTS))
def test_frames_from_memory(kind: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (100, 6, 5, 3), dtype=np.uint8)
    clip = read(LISTS[kind](frames), LIMITS)
    kept = ((np.arange(KEPT) + 0.5) * 100 / KEPT).astype(int)
    np.testing.assert_array_equal(clip.frames, frames[kept])
    assert clip.duration == 100
    assert read(clip, LIMITS) is clip


def test_limits_hold_before_decoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = video()
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    monkeypatch.setattr(decoding, "_keep", lambda *_: pytest.fail("decoded"))
    cases = [
        ("bytes", 100, len(data), "cut or compress it"),
        ("seconds", 1, 2, "cut it"),
        ("pixels", 3000, 3072, "scale it down"),
        ("frames", 10, 11, "cut it or lower its frame rate"),
    ]
    for limit, allowed, found, remedy in cases:
        for source in (data, path):
            with pytest.raises(LimitError, match=f"at most {allowed:,} are read; {remedy}") as e:
                read(source, {**LIMITS, limit: allowed})
            assert (e.value.limit, e.value.allowed, e.value.found) == (limit, allowed, found)


@pytest.mark.parametrize("kind", CODINGS)
def test_the_limit_on_pixels_counts_what_is_shown(kind: str) -> None:
    """Coded frames are padded to whole blocks, and FFmpeg's own guard counts those."""
    data = video(kind, frames=4, size=(66, 50))
    assert read(data, {**LIMITS, "pixels": 3300}).frames.shape[1:] == (50, 66, 3)
    with pytest.raises(LimitError, match="has 3,300 pixels a frame, at most 3,299 are read"):
        read(data, {**LIMITS, "pixels": 3299})


@pytest.mark.parametrize("kind", CODINGS)
def test_a_frame_far_above_the_limit_is_never_made(kind: str) -> None:
    data = video(kind, frames=4, size=(640, 400))
    with pytest.raises(InputError, match="pixels a frame") as caught:
        read(data, {**LIMITS, "pixels": 1000})
    assert "scale it down" in str(caught.value)


def test_limits_on_frames_from_memory() -> None:
    frames = np.zeros((11, 40, 50, 3), np.uint8)
    for source in (frames, list(frames)):
        with pytest.raises(LimitError, match="has 11 frames, at most 10 are read"):
            read(source, {**LIMITS, "frames": 10})
        with pytest.raises(LimitError, match="has 2,000 pixels a frame, at most 1,999"):
            read(source, {**LIMITS, "pixels": 1999})


@pytest.mark.parametrize("kind", ["concat", "hls"])
def test_files_that_name_other_files_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("canary.ts").write_bytes(video("ts"))
    text = {
        "concat": b"ffconcat version 1.0\nfile canary.ts\n",
        "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ncanary.ts\n#EXT-X-ENDLIST\n",
    }[kind]
    path = Path("list.m3u8")
    path.write_bytes(text)
    with path.open("rb") as handle, av.open(handle) as unguarded:
        assert len(list(unguarded.decode(video=0))) == 20, "the canary must be within reach"
    for source in (path, text):
        with pytest.raises(InputError, match=r"cannot be decoded .*MP4, MOV, WebM, MKV, AVI, GIF"):
            read(source, LIMITS)


def test_a_container_that_asks_for_another_file_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard behind the guard: should an allowed format ever refer to a file."""
    monkeypatch.chdir(tmp_path)
    Path("canary.ts").write_bytes(video("ts"))
    Path("a.m3u8").write_bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ncanary.ts\n")
    monkeypatch.setattr(decoding, "_DEMUXERS", "hls")
    monkeypatch.setattr(decoding, "_Nameless", lambda handle: handle)
    with pytest.raises(InputError, match=r"refers to '\S+', and nothing beside a file"):
        read(Path("a.m3u8"), LIMITS)


@pytest.mark.parametrize("kind", ["mp4", "mov", "webm", "mkv"])
def test_cut_off_files_are_refused(kind: str, tmp_path: Path) -> None:
    data = video(kind, frames=60)
    for part in (0.3, 0.6, 0.8):
        with pytest.raises(InputError, match="cut off"):
            read(data[: int(len(data) * part)], LIMITS)


def test_a_packet_that_is_cut_in_two_is_named() -> None:
    data = video("avi", frames=60)
    with av.open(io.BytesIO(data)) as container:
        packet = [one for one in container.demux(video=0) if one.size][-20]
        assert packet.pos is not None
        end = packet.pos + packet.size // 2
    message = rf"damaged or cut off: a piece at byte {packet.pos} is incomplete; fetch it again"
    with pytest.raises(InputError, match=message):
        read(data[:end], LIMITS)


def test_a_cut_off_file_with_its_index_in_front(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with (
        av.open(io.BytesIO(video(frames=60))) as source,
        av.open(str(path), "w", container_options={"movflags": "faststart"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    data = path.read_bytes()
    assert len(read(data, LIMITS).frames) == 60
    for part in (0.7, 0.9):
        with pytest.raises(InputError, match="damaged or cut off: "):
            read(data[: int(len(data) * part)], LIMITS)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    return buffer.getvalue()


BAD: list[tuple[object, str]] = [
    (b"", r"the file is empty \(0 bytes\)"),
    (b"no video at all, " * 99, "cannot be decoded .*it is no video, damaged or cut off"),
    (png(), "cannot be decoded .*it is no video"),
    (b"\0" * 4096, "cannot be decoded"),
    (sound(), r"holds no moving picture \(it holds: audio\); give audio to an audio modality"),
    (Path("no-such-file.mp4"), "no-such-file.mp4 cannot be read: No such file"),
    (Path(), "is not a file"),
    ("https://example.org/a.mp4", "is a URL, and nothing is fetched; download the file"),
    ("file:///a.mp4", "is a URL, and nothing is fetched"),
    (3, r"cannot read builtins.int; give the bytes or the path"),
    ({"frames": 1}, r"cannot read builtins.dict; give"),
    ([], "the list of frames is empty"),
    ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], r"frame 1 is of the shape \(5, 4\)"),
    ([np.zeros((4, 4), np.uint8)], r"a frame must be uint8 of shape \(H, W, 3\), found uint8 of"),
    (["a.png"], "cannot read builtins.str"),
    (np.zeros((2, 3, 8, 8), np.uint8), r"uint8 of shape \(T, H, W, 3\), found uint8 of shape \(2"),
    (np.zeros((2, 8, 8, 3), np.float32), r"uint8 of shape \(T, H, W, 3\), found float32"),
    (np.zeros((0, 8, 8, 3), np.uint8), "0 frames of 8x8 pixels are empty"),
    (np.zeros((2, 0, 8, 3), np.uint8), "2 frames of 0x8 pixels are empty"),
]


@pytest.mark.parametrize(("source", "message"), BAD)
def test_what_cannot_be_read_is_named(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(source, LIMITS)


def test_damaged_files_raise_nothing_else() -> None:
    """Whatever is flipped in a file, it is read or refused by name."""
    draw = np.random.default_rng(0)
    for kind in sorted(CODINGS):
        data = video(kind)
        for _ in range(8):
            damaged = bytearray(data)
            for place in draw.integers(0, len(data), 5):
                damaged[place] = draw.integers(256)
            try:
                clip = read(bytes(damaged), LIMITS)
            except InputError:
                continue
            assert isinstance(clip, Clip)
            assert 0 < len(clip.frames) <= KEPT


def test_reading_twice_gives_the_same() -> None:
    first, second = (read(video("webm", frames=150), LIMITS) for _ in range(2))
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.times, second.times)
