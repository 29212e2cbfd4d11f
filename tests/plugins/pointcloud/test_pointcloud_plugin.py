"""What the plugin declares, and that declaring it costs nothing."""

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

from modalloy.hookspecs import GROUP
from modalloy.modality import resolve
from modalloy_pointcloud import plugin


def declared(hook: str) -> dict[str, Any]:
    values: list[Any] = []
    getattr(plugin, hook)(values.append)
    return {value.name: value for value in values}


def test_the_entry_point_leads_here() -> None:
    (entry,) = entry_points(group=GROUP, name="pointcloud")
    assert entry.load() is plugin


def test_the_modality() -> None:
    modality = declared("register_modalities")["pointcloud"]
    assert modality.content_type == "point_cloud"
    assert modality.placeholder == "<|point_cloud|>"
    assert modality.payload_keys == ("point_cloud",)
    assert modality.token_type_id == 4
    assert dict(modality.limits) == {
        "bytes": 25 * 2**20,
        "points": 2_000_000,
        "faces": 4_000_000,
    }
    assert callable(resolve(modality.read))


def test_the_encoders() -> None:
    encoders = declared("register_encoders")
    assert sorted(encoders) == ["point-bert", "pointnet"]
    for encoder in encoders.values():
        assert encoder.modality == "pointcloud"
        for target in (encoder.build, encoder.preprocess, encoder.output_shape):
            assert callable(resolve(target))


def test_the_parents() -> None:
    parents = declared("register_parents")
    assert sorted(parents) == ["pointcloud-smollm2-decoupled", "pointcloud-smollm2-naive"]
    for name, parent in parents.items():
        assert name.endswith(parent.strategy)
        assert parent.base == "smollm2"
        assert parent.licence == "Apache-2.0"
        assert parent.source.name == f"smollm2-{parent.strategy}"


def test_declaring_and_shapes_import_nothing_heavy() -> None:
    code = """
import sys
from modalloy_pointcloud import configuration, plugin
for hook in ("register_modalities", "register_encoders", "register_parents"):
    getattr(plugin, hook)(lambda value: None)
default = configuration.DEFAULT_POINTNET
assert configuration.pointnet_shape(default) == (default["tokens"], default["features"])
assert configuration.point_bert_shape({"model": "m"}) == (513, 384)
heavy = {"torch", "numpy", "trimesh", "transformers", "huggingface_hub"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
