"""A plugin whose inputs are files of one number each, chats about them, and how to train."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalloy import API_VERSION, Encoder, Modality, Registry, hookimpl
from modalloy.parent import ComponentConfig
from modalloy.training.config import LoraConfig, StageConfig, TrainConfig

TOKENS, FEATURES = 3, 5
NUMBERS = (0.1, 0.3, 0.6, 0.8, 1.1, 1.4)


def read(source: Any, limits: Mapping[str, int]) -> torch.Tensor:
    del limits
    return torch.tensor(float(Path(source).read_text(encoding="utf-8")))


def preprocess(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {"values": decoded.expand(TOKENS, FEATURES) * config.get("gain", 1.0)}


def output_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    del config
    return TOKENS, FEATURES


class NumberEncoder(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sin(values * (1 + torch.arange(TOKENS * FEATURES).view(TOKENS, FEATURES)))


def build(config: Mapping[str, Any]) -> nn.Module:
    del config
    return NumberEncoder()


@hookimpl
def register_modalities(register: Callable[[Modality], None]) -> None:
    register(
        Modality(
            name="sight",
            api_version=API_VERSION,
            content_type="image",
            placeholder="<|sight|>",
            read=read,
            limits={"bytes": 1000},
        )
    )


@hookimpl
def register_encoders(register: Callable[[Encoder], None]) -> None:
    register(
        Encoder(
            name="numbers",
            api_version=API_VERSION,
            modality="sight",
            build=build,
            preprocess=preprocess,
            output_shape=output_shape,
        )
    )


class NumberPlugin:
    """The hooks above, for a registry in this process."""

    register_modalities = staticmethod(register_modalities)
    register_encoders = staticmethod(register_encoders)


def number_registry() -> Registry:
    registry = Registry()
    registry.register(NumberPlugin(), name="numbers")
    return registry


def chat(path: str | None, question: str, *answers: str) -> dict[str, Any]:
    """One chat; an input before its first question, the same question before each answer."""
    messages: list[dict[str, Any]] = []
    for answer in answers:
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if path is not None and not messages:
            content.insert(0, {"type": "image", "path": path})
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    return {"messages": messages}


def write_chats(file: Path, chats: Sequence[Any]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in chats]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def write_data(directory: Path) -> Path:
    """Write numbers, and chats that ask whether each is low or high; return ``directory``."""
    (directory / "media").mkdir(parents=True)
    told, asked = [], []
    for index, number in enumerate(NUMBERS):
        name = f"media/{index}.txt"
        (directory / name).write_text(str(number), encoding="utf-8")
        word = "low" if number < 0.7 else "high"
        told.append(chat(name, "", word))
        asked.append(chat(name, "what is it", word, "it is " + word))
    write_chats(directory / "told.jsonl", told)
    write_chats(directory / "asked.jsonl", [*asked, chat(None, "what is it", "a")])
    write_chats(directory / "val.jsonl", asked[::2])
    return directory


def number_config(base: Path, **changes: Any) -> TrainConfig:
    """Return a configuration that trains in about a second; stage settings as dictionaries."""
    first: dict[str, Any] = {"data": ["told.jsonl"], "steps": 6, "batch_size": 4}
    second: dict[str, Any] = {"data": ["asked.jsonl"], "steps": 8, "batch_size": 2}
    for stage in (first, second):
        stage |= {"learning_rate": 0.02, "save_every": 3}
    fields: dict[str, Any] = {
        "name": "sight-numbers",
        "modality": "sight",
        "base": str(base),
        "encoder": ComponentConfig(type="numbers"),
        "connector": ComponentConfig(type="linear"),
        "lora": LoraConfig(rank=3, alpha=6),
        "dtype": "float32",
        "licence": "CC0-1.0",
    }
    return TrainConfig(
        connector_stage=StageConfig(**{**first, **changes.pop("connector_stage", {})}),
        tuning_stage=StageConfig(**{**second, **changes.pop("tuning_stage", {})}),
        **{**fields, **changes},
    )
