"""Good inputs of the modalities that come with modalloy, made here, by name of the modality."""

import io
from collections.abc import Callable
from types import MappingProxyType

import numpy as np


def pictures() -> list[bytes]:
    """A PNG and a JPEG of two sizes, of noise, which no compression makes small."""
    from PIL import Image

    made = []
    for seed, (kind, size) in enumerate((("PNG", (24, 17)), ("JPEG", (40, 52)))):
        values = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, kind)
        made.append(buffer.getvalue())
    return made


def sounds() -> list[bytes]:
    """Chirps of two lengths, WAV and FLAC."""
    import soundfile

    made = []
    for kind, seconds in (("WAV", 1.2), ("FLAC", 2.5)):
        time = np.arange(int(seconds * 8000)) / 8000
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.4 * np.sin(2000 * time * (1 + time)), 8000, format=kind)
        made.append(buffer.getvalue())
    return made


def videos() -> list[bytes]:
    """Two seconds that grow lighter, in three containers; AVI does not tell the size itself."""
    return [_video("mp4", "libx264"), _video("webm", "libvpx"), _video("avi", "mpeg4")]


def _video(container: str, codec: str) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(16):
            picture = np.full((48, 64, 3), level * 15, np.uint8)
            picture[:16, :16] = (255, 0, 0)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def clouds() -> list[bytes]:
    """An array of points, a PLY of points in text, and an OBJ of faces."""
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    buffer = io.BytesIO()
    np.save(buffer, points)
    rows = "\n".join(" ".join(map(repr, row)) for row in points.tolist())
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    ply = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n{axes}end_header\n{rows}\n"
    vertices = "".join(f"v {x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in points.tolist())
    faces = "".join(f"f {i} {i + 1} {i + 2}\n" for i in range(1, len(points) - 1))
    return [buffer.getvalue(), ply.encode(), (vertices + faces).encode()]


SAMPLES: MappingProxyType[str, Callable[[], list[bytes]]] = MappingProxyType(
    {"vision": pictures, "audio": sounds, "video": videos, "pointcloud": clouds}
)
"""Another modality that is installed is checked without samples."""
