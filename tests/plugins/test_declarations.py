"""What the four plugins declare, and that declaring it costs nothing."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest

from modalloy import Registry
from modalloy.hookspecs import GROUP
from modalloy.modality import resolve
from modalloy_pointcloud.configuration import DEFAULT_POINTNET
from modalloy_video.configuration import DEFAULT_FRAMES
from modalloy_vision.configuration import DEFAULT_TIMM

MODALITIES: dict[str, dict[str, Any]] = {
    "audio": {
        "content_type": "audio",
        "placeholder": "<|audio|>",
        "payload_keys": ("audio", "input_audio"),
        "token_type_id": 3,
        "limits": {"bytes": 50 * 2**20, "seconds": 600},
    },
    "pointcloud": {
        "content_type": "point_cloud",
        "placeholder": "<|point_cloud|>",
        "payload_keys": ("point_cloud",),
        "token_type_id": 4,
        "limits": {"bytes": 25 * 2**20, "points": 2_000_000, "faces": 4_000_000},
    },
    "video": {
        "content_type": "video",
        "placeholder": "<|video|>",
        "payload_keys": ("video", "video_url"),
        "token_type_id": 2,
        "limits": {
            "bytes": 200 * 2**20,
            "seconds": 600,
            "pixels": 4096 * 2304,
            "frames": 36_000,
        },
    },
    "vision": {
        "content_type": "image",
        "placeholder": "<|image|>",
        "payload_keys": ("image", "image_url"),
        "token_type_id": 1,
        "limits": {"bytes": 25 * 2**20, "pixels": 40_000_000},
    },
}

CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
WHISPER = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
}
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3}
QWEN = {"depth": 2, "num_heads": 2, "patch_size": 4}
WIDE = {**QWEN, "hidden_size": 32, "intermediate_size": 48}

SHAPES: list[tuple[str, str, dict[str, Any], tuple[int, int]]] = [
    ("audio", "ast", {"model": "m", "tokens": 2, "features": 3}, (2, 3)),
    ("audio", "qwen2-audio", {"architecture": WHISPER}, (750, 1280)),
    ("audio", "qwen2-audio", {"architecture": WHISPER, "seconds": 10}, (250, 1280)),
    ("audio", "speech-embedding", {}, (4, 384)),
    ("audio", "whisper", {"model": "m", "tokens": 2, "features": 3}, (2, 3)),
    ("pointcloud", "point-bert", {"model": "m"}, (513, 384)),
    ("pointcloud", "pointnet", dict(DEFAULT_POINTNET), (4, 256)),
    ("video", "frames", dict(DEFAULT_FRAMES), (4, 1280)),
    ("video", "video-llava", {"architecture": CLIP, **PIXELS}, (8 * 257, 1024)),
    ("video", "videomae", {"model": "m", "tokens": 8, "features": 32}, (8, 32)),
    ("vision", "clip", {"architecture": CLIP, **PIXELS}, (256, 1024)),
    ("vision", "clip", {"architecture": CLIP, **PIXELS, "select": "full"}, (257, 1024)),
    ("vision", "clip", {"model": "m", "tokens": 16, "features": 32, "image_size": 32}, (16, 32)),
    (
        "vision",
        "qwen2-vl",
        {"architecture": {**QWEN, "embed_dim": 32}, **PIXELS, "image_size": 40},
        (25, 128),
    ),
    (
        "vision",
        "qwen2.5-vl",
        {
            "architecture": {**WIDE, "fullatt_block_indexes": [1]},
            **PIXELS,
            "image_size": 40,
        },
        (25, 128),
    ),
    (
        "vision",
        "qwen3-vl",
        {
            "architecture": {**WIDE, "num_position_embeddings": 16},
            **PIXELS,
            "image_size": 40,
        },
        (25, 128),
    ),
    ("vision", "siglip", {"architecture": CLIP, **PIXELS}, (256, 1024)),
    ("vision", "siglip", {"model": "m", "tokens": 16, "features": 32, "image_size": 32}, (16, 32)),
    ("vision", "timm", dict(DEFAULT_TIMM), (4, 1280)),
]

LIGHT = """
import importlib, json, sys
from importlib.metadata import entry_points
from modalloy.hookspecs import GROUP
from modalloy.modality import resolve
cases = json.load(sys.stdin)
encoders = {}
def register(value):
    encoders[value.name] = value
for name in sorted({case[0] for case in cases}):
    (entry,) = entry_points(group=GROUP, name=name)
    plugin = entry.load()
    plugin.register_modalities(lambda value: None)
    plugin.register_parents(lambda value: None)
    plugin.register_encoders(register)
shapes = [resolve(encoders[name].output_shape)(config) for _, name, config, _ in cases]
heavy = {"torch", "numpy", "PIL", "timm", "transformers", "av", "soundfile", "trimesh",
         "torchaudio", "huggingface_hub"} & set(sys.modules)
print(json.dumps([shapes, sorted(heavy)]))
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover(strict=False)


@pytest.mark.parametrize("name", MODALITIES)
def test_the_modality(name: str, registry: Registry) -> None:
    modality = registry.modality(name)
    assert {key: getattr(modality, key) for key in MODALITIES[name]} == MODALITIES[name]
    assert registry.owner("modality", name).name == name
    (entry,) = entry_points(group=GROUP, name=name)
    assert entry.value == f"modalloy_{name}.plugin"


def test_the_encoders(registry: Registry) -> None:
    own = {(kind.modality, name) for name, kind in registry.encoders.items()}
    assert {pair for pair in own if pair[0] in MODALITIES} == {case[:2] for case in SHAPES}
    for kind in registry.encoders.values():
        for target in (kind.build, kind.preprocess, kind.output_shape):
            assert callable(resolve(target))


@pytest.mark.parametrize("name", MODALITIES)
def test_the_parents(name: str, registry: Registry) -> None:
    parents = {one.name: one for one in registry.parents(modality=name)}
    assert sorted(parents) == [f"{name}-smollm2-decoupled", f"{name}-smollm2-naive"]
    for parent_name, parent in parents.items():
        assert parent_name.endswith(parent.strategy)
        assert (parent.base, parent.licence) == ("smollm2", "Apache-2.0")
        assert parent.directory().parts[-2:] == ("parents", f"smollm2-{parent.strategy}")


def test_declaring_and_shapes_import_nothing_heavy() -> None:
    command = [sys.executable, "-W", "ignore", "-c", LIGHT]
    given = json.dumps(SHAPES)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    shapes, heavy = json.loads(done.stdout)
    assert [tuple(shape) for shape in shapes] == [case[3] for case in SHAPES]
    assert heavy == []
