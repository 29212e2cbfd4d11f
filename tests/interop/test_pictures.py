"""What a model's own image processor says, in an encoder's configuration."""

import json
from pathlib import Path
from typing import Any

import pytest

from interop.wholes import edit_config, whole_model
from modalloy.errors import FormatError, SpecError
from modalloy.interop.convert import convert
from modalloy.parent import read_manifest
from tiny import tiny_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", family="qwen2", seed=3)


def converted(tmp_path: Path, base: Path, family: str, **settings: Any) -> Any:
    """The encoder's configuration of a model with these settings of its image processor."""
    whole_model(tmp_path / "model", family, base)
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps(settings))
    convert(tmp_path / "model", tmp_path / "out", base=base)
    return read_manifest(tmp_path / "out").encoder.config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"fit": "crop", "resample": "bicubic"}),
        ({"do_center_crop": False}, {"fit": "stretch"}),
        ({"do_pad": True, "resample": 2}, {"fit": "pad", "resample": "bilinear"}),
        (
            {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
            {"fit": "crop"},
        ),
        ({"image_mean": [0.5, 0.5, 0.5]}, {"mean": [0.5, 0.5, 0.5]}),
    ],
)
def test_settings_are_taken_over(tmp_path: Path, base: Path, settings: Any, expected: Any) -> None:
    found = converted(tmp_path, base, "llava", **settings)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("family", "settings", "error", "message"),
    [
        ("llava", {"resample": 0}, SpecError, "scales with filter 0; encoders have 2"),
        ("llava", {"size": {"shortest_edge": 40}}, SpecError, "'shortest_edge': 40}, its tower"),
        ("llava", {"image_std": [1]}, FormatError, "image_std must be three numbers, found"),
        ("llava", {"image_std": [0, 1, 1]}, FormatError, "image_std must be positive"),
        ("llava", {"do_normalize": False}, SpecError, "has do_normalize False; encoders scale"),
        ("llava", {"rescale_factor": 0.007}, SpecError, "rescale_factor is 0.007; encoders have"),
        ("llava", {"do_center_crop": "no"}, FormatError, "must be true or false, found 'no'"),
        ("video_llava", {"do_pad": True}, SpecError, "makes squares of frames by pad and bicubic"),
    ],
)
def test_settings_that_no_encoder_has_are_refused(
    tmp_path: Path, base: Path, family: str, settings: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        converted(tmp_path, base, family, **settings)
    assert not (tmp_path / "out").exists()


def test_qwens_own_settings_are_taken_over(tmp_path: Path, base: Path) -> None:
    found = converted(tmp_path, base, "qwen2_vl", image_mean=[0.1, 0.2, 0.3], resample=2)
    assert (found["mean"], found["resample"]) == ([0.1, 0.2, 0.3], "bilinear")
    assert found["image_size"] == 448


def test_a_tower_that_turns_otherwise_is_refused(tmp_path: Path, base: Path) -> None:
    whole_model(tmp_path / "model", "llava", base)
    vision = json.loads((tmp_path / "model" / "config.json").read_text())["vision_config"]
    edit_config(tmp_path / "model", vision_config={**vision, "num_channels": 4})
    with pytest.raises(SpecError, match="the tower sees 4 channels"):
        convert(tmp_path / "model", tmp_path / "out", base=base)
