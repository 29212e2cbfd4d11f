"""What the plugin declares, and that declaring it costs nothing."""

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

from modalloy.hookspecs import GROUP
from modalloy.modality import resolve
from modalloy_vision import plugin


def declared(hook: str) -> dict[str, Any]:
    values: list[Any] = []
    getattr(plugin, hook)(values.append)
    return {value.name: value for value in values}


def test_the_entry_point_leads_here() -> None:
    (entry,) = entry_points(group=GROUP, name="vision")
    assert entry.load() is plugin


def test_the_modality() -> None:
    modality = declared("register_modalities")["vision"]
    assert modality.content_type == "image"
    assert modality.placeholder == "<|image|>"
    assert modality.payload_keys == ("image", "image_url")
    assert modality.token_type_id == 1
    assert dict(modality.limits) == {"bytes": 25 * 2**20, "pixels": 40_000_000}
    assert callable(resolve(modality.read))


def test_the_encoders() -> None:
    encoders = declared("register_encoders")
    assert sorted(encoders) == ["clip", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "siglip", "timm"]
    for encoder in encoders.values():
        assert encoder.modality == "vision"
        for target in (encoder.build, encoder.preprocess, encoder.output_shape):
            assert callable(resolve(target))


def test_the_parents() -> None:
    parents = declared("register_parents")
    assert sorted(parents) == ["vision-smollm2-decoupled", "vision-smollm2-naive"]
    for name, parent in parents.items():
        assert name.endswith(parent.strategy)
        assert parent.base == "smollm2"
        assert parent.licence == "Apache-2.0"
        assert parent.source.name == f"smollm2-{parent.strategy}"


def test_declaring_and_shapes_import_nothing_heavy() -> None:
    code = """
import sys
from modalloy_vision import configuration, plugin
for hook in ("register_modalities", "register_encoders", "register_parents"):
    getattr(plugin, hook)(lambda value: None)
assert configuration.timm_shape(configuration.DEFAULT_TIMM) == (4, 1280)
shape = {"model": "m", "tokens": 16, "features": 32, "image_size": 32}
assert configuration.clip_shape(shape) == configuration.siglip_shape(shape) == (16, 32)
heavy = {"torch", "numpy", "PIL", "timm", "transformers"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
