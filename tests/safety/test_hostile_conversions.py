"""Checkpoints of others to convert: pickles, told from tensors in a process of their own."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modalloy.errors import FormatError, ModalloyError, UnsafePathError
from modalloy.interop import unpickling
from modalloy.interop.convert import convert
from safety.hostile import Box, pickled_canary
from toy import toy_registry

MakeBox = Callable[[str], Box]
CHILD = ("subprocess.Popen", "os.posix_spawn")
RELEASE = {
    "model_type": "multimodal",
    "architectures": ["MultimodalLlamaForCausalLM"],
    "lora_strategy": "modal+language",
    "lora_r": 4,
    "lora_alpha": 8,
    "local_prefix_tokens": 0,
    "local_suffix_tokens": 0,
    "mm_vision_encoder": "model/clip",
    "mm_hidden_size": 6,
    "mm_projector_type": "linear",
}


class Call:
    """Unpickles to what a function returns."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


def saved(value: Any, file: Path) -> None:
    torch.save(value, file)


PICKLES: dict[str, Callable[[Box, Path], object]] = {
    "plain": lambda box, file: file.write_bytes(pickled_canary(box.canary)),
    "old protocol": lambda box, file: file.write_bytes(
        pickle.dumps({"x": Call(Path.touch, box.canary)}, protocol=0)
    ),
    "torch.save": lambda box, file: saved({"x": Call(Path.touch, box.canary)}, file),
    "system": lambda box, file: saved({"x": Call(os.system, f"touch {box.canary}")}, file),
    "eval": lambda box, file: saved({"x": Call(eval, f"open({str(box.canary)!r}, 'w')")}, file),
    "beside tensors": lambda box, file: saved(
        {"model.norm.weight": torch.ones(32), "x": Call(Path.touch, box.canary)}, file
    ),
    "no tensors": lambda box, file: saved({"x": "text", "y": [1, 2]}, file),
    "not a pickle": lambda box, file: file.write_bytes(b"\x80\x04garbage"),
}


def release(box: Box, make: Callable[[Box, Path], object], name: str) -> None:
    (box.model / "config.json").write_text(json.dumps(RELEASE))
    (box.model / "model.safetensors").unlink()
    make(box, box.model / name)


@pytest.mark.parametrize("kind", PICKLES)
def test_a_release_of_modelcompose(box: MakeBox, good: Path, kind: str) -> None:
    inside = box("base")
    release(inside, PICKLES[kind], "adapter_model.bin")

    def run(*, allow: bool) -> Any:
        return convert(
            inside.model, inside.out, base=good / "base", allow_pickle=allow,
            registry=toy_registry("sight"),
        )  # fmt: skip

    inside.refuses(lambda: run(allow=False), FormatError, "adapter_model.bin is a pickle")
    if kind == "torch.save":  # the rest see the same unpickler below
        inside.refuses(lambda: run(allow=True), ModalloyError, "adapter_model.bin", *CHILD)


@pytest.mark.parametrize("kind", PICKLES)
def test_no_pickle_brings_more_than_tensors(box: MakeBox, kind: str) -> None:
    """What the other process runs, in this one: torch's unpickler is the same in both."""
    inside = box("base")
    file, out = inside.model / "x.bin", inside.root.parent / "x.safetensors"
    PICKLES[kind](inside, file)
    with inside.watched(), pytest.raises(unpickling.Refused):
        unpickling.convert(str(file), str(out))
    assert not out.exists()


@pytest.mark.parametrize("kind", ["beside tensors"])
def test_an_adapter_of_peft(box: MakeBox, good: Path, kind: str) -> None:
    inside = box("parent")
    adapter = inside.model / "text_adapter"
    (adapter / "adapter_model.safetensors").unlink()
    PICKLES[kind](inside, adapter / "adapter_model.bin")

    def run(*, allow: bool) -> Any:
        return convert(
            adapter, inside.out, base=good / "base", components=good / "parent",
            allow_pickle=allow, registry=toy_registry("sight"),
        )  # fmt: skip

    inside.refuses(lambda: run(allow=False), FormatError, "adapter_model.bin is a pickle")
    inside.refuses(lambda: run(allow=True), ModalloyError, "adapter_model.bin", *CHILD)


def test_a_pickle_elsewhere(box: MakeBox, good: Path) -> None:
    inside = box("base")
    release(inside, PICKLES["torch.save"], "adapter_model.bin")
    inside.link("adapter_model.bin", "x.bin")
    inside.refuses(
        lambda: convert(
            inside.model, inside.out, base=good / "base", allow_pickle=True,
            registry=toy_registry("sight"),
        ),
        UnsafePathError,
        "is a symbolic link that leads outside",
    )  # fmt: skip


def test_a_configuration_names_nothing_that_is_opened(box: MakeBox, good: Path) -> None:
    """A release names its encoder by a path of the machine that it was made on."""
    inside = box("base")
    inside.code()
    secret = str(inside.outside.path / "secret.txt")
    release(inside, PICKLES["no tensors"], "adapter_model.bin")
    names = {"_name_or_path": "https://evil.example/x", "auto_map": {"AutoModel": "foreign.M"}}
    inside.edit("config.json", mm_vision_encoder=secret, mm_vision_tower=secret, **names)
    inside.refuses(
        lambda: convert(
            inside.model, inside.out, base=good / "base", registry=toy_registry("sight")
        ),
        ModalloyError,
        "",
    )  # fmt: skip


def pipe(file: Path) -> None:
    """Put a pipe into a file's place, which nobody ever writes to: who reads it waits for ever."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


@pytest.mark.parametrize("allow", [False, True])  # in this order: a reader of it would hang
@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.bin",
        "adapter_model.bin.index.json",
        "adapter_model.safetensors",
        "adapter_config.json",
    ],
)
def test_pipes_of_an_adapter(box: MakeBox, good: Path, name: str, *, allow: bool) -> None:
    inside = box("parent")
    adapter = inside.model / "text_adapter"
    (adapter / "adapter_model.safetensors").unlink()
    pipe(adapter / name)
    inside.refuses(
        lambda: convert(
            adapter, inside.out, base=good / "base", components=good / "parent",
            allow_pickle=allow, registry=toy_registry("sight"),
        ),
        FormatError,
        f"{adapter / name} is no file but a pipe or a device",
    )  # fmt: skip


@pytest.mark.parametrize("allow", [False, True])
def test_a_pipe_among_several_pickles(box: MakeBox, good: Path, *, allow: bool) -> None:
    inside = box("base")
    release(inside, lambda _, file: pipe(file), "adapter_model-00001-of-00001.bin")
    index = {"weight_map": {"x": "adapter_model-00001-of-00001.bin"}}
    (inside.model / "adapter_model.bin.index.json").write_text(json.dumps(index))
    inside.refuses(
        lambda: convert(
            inside.model, inside.out, base=good / "base", allow_pickle=allow,
            registry=toy_registry("sight"),
        ),
        FormatError,
        "00001.bin is no file but a pipe",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["config.json", "parent.json"])
def test_a_pipe_says_what_a_source_is(box: MakeBox, good: Path, name: str) -> None:
    inside = box("base")
    pipe(inside.model / name)
    inside.refuses(
        lambda: convert(
            inside.model, inside.out, base=good / "base", registry=toy_registry("sight")
        ),
        FormatError,
        f"{inside.model / name} is no file but a pipe",
    )  # fmt: skip
