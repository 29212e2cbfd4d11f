"""What the plugin declares, and that declaring it costs nothing."""

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

from modalloy.hookspecs import GROUP
from modalloy.modality import resolve
from modalloy_video import plugin


def declared(hook: str) -> dict[str, Any]:
    values: list[Any] = []
    getattr(plugin, hook)(values.append)
    return {value.name: value for value in values}


def test_the_entry_point_leads_here() -> None:
    (entry,) = entry_points(group=GROUP, name="video")
    assert entry.load() is plugin


def test_the_modality() -> None:
    modality = declared("register_modalities")["video"]
    assert modality.content_type == "video"
    assert modality.placeholder == "<|video|>"
    assert modality.payload_keys == ("video", "video_url")
    assert modality.token_type_id == 2
    assert dict(modality.limits) == {
        "bytes": 200 * 2**20,
        "seconds": 600,
        "pixels": 9_437_184,
        "frames": 36_000,
    }
    assert callable(resolve(modality.read))


def test_the_encoders() -> None:
    encoders = declared("register_encoders")
    assert sorted(encoders) == ["frames", "video-llava", "videomae"]
    for encoder in encoders.values():
        assert encoder.modality == "video"
        for target in (encoder.build, encoder.preprocess, encoder.output_shape):
            assert callable(resolve(target))


def test_the_parents() -> None:
    parents = declared("register_parents")
    assert sorted(parents) == ["video-smollm2-decoupled", "video-smollm2-naive"]
    for name, parent in parents.items():
        assert name.endswith(parent.strategy)
        assert parent.base == "smollm2"
        assert parent.licence == "Apache-2.0"
        assert parent.source.parts[-2:] == ("parents", f"smollm2-{parent.strategy}")


def test_declaring_and_shapes_import_nothing_heavy() -> None:
    code = """
import sys
from modalloy_video import configuration, plugin
for hook in ("register_modalities", "register_encoders", "register_parents"):
    getattr(plugin, hook)(lambda value: None)
assert configuration.frames_shape(configuration.DEFAULT_FRAMES) == (4, 1280)
assert configuration.videomae_shape({"model": "m", "tokens": 8, "features": 32}) == (8, 32)
heavy = {"torch", "numpy", "PIL", "timm", "transformers", "av"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
