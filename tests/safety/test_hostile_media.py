"""Media of an enemy's, asked about through a composition."""

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modalloy
from modalloy import API_VERSION, Encoder, Registry, hookimpl
from modalloy.errors import InputError, LimitError
from safety.hostile import Box, pickled_canary
from toy import ask, build, output_shape, toy_parent

MakeBox = Callable[[str], Box]
KIND = "point_cloud"


def preprocess(decoded: Any, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    del config
    return {"values": torch.full(output_shape({}), float(decoded.points.sum()))}


class ToyEncoder:
    """Takes what the point-cloud plugin reads."""

    @hookimpl
    def register_encoders(self, register: Any) -> None:
        register(
            Encoder(
                name="toy-pointcloud",
                api_version=API_VERSION,
                modality="pointcloud",
                build=build,
                preprocess=preprocess,
                output_shape=output_shape,
            )
        )


@pytest.fixture(scope="module")
def processor(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    plugin = pytest.importorskip("modalloy_pointcloud.plugin")
    registry = Registry()
    registry.register(plugin, name="pointcloud")
    registry.register(ToyEncoder(), name="toy")
    parent = toy_parent(tmp_path_factory.mktemp("media") / "parent", good / "base", "pointcloud")
    return modalloy.compose(
        good / "base", parents=[parent], modalities=["pointcloud"], registry=registry
    ).processor


def pickled_array(canary: Path) -> bytes:
    """An array file that says that a pickle follows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    return buffer.getvalue() + pickled_canary(canary)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def zeros(rows: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((rows, 6), np.float32))
    return buffer.getvalue()


CLOUDS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "array.npy": (pickled_array, "an array of dtype object cannot be"),
    "archive.npz": (
        lambda canary: zipped(points=pickled_array(canary)),
        "an array of dtype object",
    ),
    "plain.pkl": (pickled_canary, "pickle"),
    "torch.pt": (lambda canary: zipped(points=pickled_canary(canary)), ""),
    "cloud.npy": (lambda canary: pickle.dumps({"x": canary}, protocol=5), "pickle"),
}


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("way", ["path", "bytes"])
def test_pickles_are_not_opened(box: MakeBox, processor: Any, name: str, way: str) -> None:
    inside = box("base")
    make, words = CLOUDS[name]
    file = inside.model / name
    file.write_bytes(make(inside.canary))
    source = file if way == "path" else file.read_bytes()
    inside.refuses(
        lambda: processor.apply_chat_template(ask((KIND, source), "what")), InputError, words
    )


def test_a_zip_bomb_is_not_unpacked(box: MakeBox, processor: Any) -> None:
    inside = box("base")
    file = inside.model / "bomb.npz"
    file.write_bytes(zipped(points=zeros(2_500_000)))
    assert file.stat().st_size < 2**17
    words = "2,500,000 points, at most 2,000,000 are allowed"
    inside.refuses(
        lambda: processor.apply_chat_template(ask((KIND, file), "what")), LimitError, words
    )


@pytest.mark.parametrize(
    "source",
    [
        "https://evil.example/x.npy",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/hostname",
        "ftp://evil.example/x",
        "data:;base64,AAAA",
    ],
)
@pytest.mark.parametrize("key", ["url", "path", KIND])
def test_addresses_are_not_fetched(box: MakeBox, processor: Any, key: str, source: str) -> None:
    inside = box("base")
    message = [{"role": "user", "content": [{"type": KIND, key: source}]}]
    inside.refuses(lambda: processor.apply_chat_template(message), InputError, "")
