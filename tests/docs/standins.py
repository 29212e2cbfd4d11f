"""What stands in for what the documentation names: tiny models, made here, under the same names.

Two worlds: ``shipped``, the plugins, weights and base that are really installed, and ``tiny``, in
which the base ``smollm2`` is a random model of two layers and the only plugin offers toys under the
names of the shipped modalities and parents. Files and directories are the same in both.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import modalloy
from docs.fences import ROOT
from interop.modelcompose_fixtures import write_checkpoint
from interop.wholes import whole_model
from modalloy.deltas.lowrank import write_adapter
from modalloy.testing import tiny_parent
from modalloy.training.config import read_config
from tiny import tiny_base, tiny_model
from toy import random_delta, toy_parent

EXAMPLE = "examples/timeseries"

Maker = Callable[[Path, Path], Any]
"""``(place, tiny smollm2) -> anything``: makes what stands in for a name at ``place``."""


def _base(place: Path, _: Path) -> None:
    tiny_base(place, family="qwen2", seed=3)


def _near(seed: int) -> Maker:
    return lambda place, _: tiny_base(place, family="llama", seed=seed)


def _llava(place: Path, _: Path) -> None:
    whole_model(place, "llava", _vicuna(place))


def _vicuna(place: Path) -> Path:
    base = place.parent / "vicuna-7b-v1.5"
    return base if base.exists() else tiny_base(base, family="qwen2", seed=3)


def _sees_whole(place: Path, _: Path) -> None:
    source = place.with_name("a-llava")
    whole_model(source, "llava", _vicuna(place))
    modalloy.convert(source, place, base=_vicuna(place))


def _hears(place: Path, _: Path) -> None:
    write_checkpoint(place, "audio")


def _adapter(place: Path, _: Path) -> None:
    write_adapter(place, random_delta(tiny_model("llama", 3), seed=5), base_id="org/base")


def _naive_model(place: Path, _: Path) -> None:
    composition = modalloy.compose(method="naive", coefficients="mean")
    for part in composition:
        part.save_pretrained(place)


def _recipe(place: Path, _: Path) -> None:
    models = [{"model": f"org/{name}", "parameters": {"weight": 1}} for name in ("math", "code")]
    place.write_text(json.dumps({"merge_method": "linear", "models": models}))


def _picture(place: Path, _: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(bytes([64]) * 8)


def _questions(name: str) -> Maker:
    def make(place: Path, _: Path) -> None:
        place.mkdir()
        (place / "cup.png").write_bytes(b"7")
        (place / "bed.flac").write_bytes(b"3")
        lines = [
            {
                "id": str(number),
                "kind": "object",
                "messages": [
                    {"role": "user", "content": [*_MEDIA, {"type": "text", "text": text}]}
                ],
                "options": ["the", " a", "xy"],
                "answer": number % 3,
                "objects": [f"{number}"],
            }
            for number, text in enumerate(("what?", "which?", "the same?", "is it?"))
        ]
        (place / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    return make


def _training(place: Path, _: Path) -> None:
    stage = {"data": ["chats.jsonl"], "steps": 1, "batch_size": 1}
    config = {
        "name": "vision-small",
        "modality": "vision",
        "encoder": {"type": "toy-vision"},
        "connector": {"type": "linear"},
        "lora": {"rank": 2},
        "connector_stage": stage,
        "tuning_stage": stage,
    }
    place.write_text(json.dumps(config))


def _chats(place: Path, _: Path) -> None:
    _picture(place / "cat.png", place)
    asked = [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": "A cat."}]
    (place / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")


def lay_out(place: Path, *, trained: bool) -> None:
    """Copy the example without what its recipe makes; if ``trained``, with its package's parent."""
    made = ("data", "work", "__pycache__", ".*_cache", *(() if trained else ("parents",)))
    shutil.copytree(ROOT / EXAMPLE, place, ignore=shutil.ignore_patterns(*made))


def _trained(place: Path, base: Path) -> None:
    config = read_config(Path("recipe/train.yml"))
    parts = {"encoder": config.encoder, "connector": config.connector}
    tiny_parent(place, base, config.modality, name=config.name, **parts)


_MEDIA = [{"type": "image", "path": "cup.png"}, {"type": "audio", "path": "bed.flac"}]
_CONVERTED: Mapping[str, Maker] = {
    "vicuna-7b-v1.5": _base,
    "llava-1.5-7b-hf": _llava,
    "multimodal-vicuna-7b-v1.5-audio-damc": _hears,
}
_MODELS: Mapping[str, Maker] = {
    "org/base": _near(3),
    "org/math": _near(4),
    "org/code": _near(5),
    "org/law": _near(6),
}

STAND_INS: Mapping[str, Mapping[str, Maker]] = {
    "README.md": {**_CONVERTED, **_MODELS, "recipe.yml": _recipe},
    "docs/converting.md": {**_CONVERTED, "sees-whole": _sees_whole},
    "docs/coefficients.md": {"validation": _questions("val-both.jsonl")},
    "docs/evaluation.md": {"questions": _questions("mcub-object-audio+vision.jsonl")},
    "docs/exporting.md": {"my-naive-model": _naive_model},
    "docs/merging.md": {
        **_MODELS,
        "path/to/adapter": _adapter,
        "vision-smollm2-naive": lambda place, _: toy_parent(
            place, place.parent / "org/base", "vision", strategy="naive"
        ),
    },
    "docs/recipes.md": _MODELS,
    "docs/training.md": {
        "CONFIG": _training,
        "DIR": _chats,
        "cat.png": _picture,
        "media/cat.png": _picture,
    },
    "docs/tutorials/write-a-merge-method.md": _MODELS,
    f"{EXAMPLE}/README.md": {EXAMPLE: lambda place, _: lay_out(place, trained=True)},
}
"""By page: what stands in for which name, in the order of making."""

TRAINED: Mapping[tuple[str, str], Maker] = {
    (
        "docs/tutorials/write-a-modality.md",
        "src/modalloy_timeseries/parents/smollm2-decoupled",
    ): _trained,
    (f"{EXAMPLE}/README.md", "my-parent"): _trained,
}
"""By page and output of a training that is not run: what stands in for the parent."""

SHIPPED = ("README.md", "docs/install.md", "docs/recipes.md")
"""Pages about the shipped parents, run on them."""

REAL_PLUGINS = (
    "docs/converting.md",
    *(f"plugins/{name}/README.md" for name in ("audio", "pointcloud", "video", "vision")),
)
"""Pages that need the installed plugins' encoders, and no composition of theirs."""

TOYS = """
from pathlib import Path

import torch
from modalloy import API_VERSION, Encoder, Modality, Parent, hookimpl


def read(source, limits):
    value = Path(source).read_bytes() if isinstance(source, Path) else source
    return torch.tensor([value[0] / 256])


@hookimpl
def register_modalities(register):
    for name, kind in (("vision", "image"), ("audio", "audio")):
        register(Modality(
            name=name, api_version=API_VERSION, content_type=kind, placeholder=f"<|{kind}|>",
            read=read, limits={"bytes": 2**20},
        ))


@hookimpl
def register_encoders(register):
    for name in ("vision", "audio"):
        register(Encoder(
            name=f"toy-{name}", api_version=API_VERSION, modality=name, build="toy:build",
            preprocess="toy:preprocess", output_shape="toy:output_shape",
        ))


@hookimpl
def register_parents(register):
    for name in ("vision", "audio"):
        for strategy in ("decoupled", "naive"):
            register(Parent(
                name=f"{name}-smollm2-{strategy}", api_version=API_VERSION, modality=name,
                base="smollm2", strategy=strategy,
                source=Path(__file__).with_name(f"{name}-{strategy}"),
            ))
"""
"""The only plugin of the tiny world; its parents are made beside it."""
