"""A small modality with files of its own, and everything about it that a test may spoil."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalloy import API_VERSION, Encoder, Modality, Registry, hookimpl
from modalloy.errors import InputError, LimitError

NOTES, FEATURES = 4, 6


def smell(*values: float) -> bytes:
    """A file of the modality that is tested: a mark, a count, and as many numbers."""
    return b"SMEL" + struct.pack(f"<I{len(values)}f", len(values), *values)


GOOD = (smell(0.5, 1.0, -0.25, 2.0, 0.1), smell(1.5, 0.0, 0.25))


def read(source: Any, limits: Mapping[str, int]) -> torch.Tensor:
    if isinstance(source, Path):
        try:
            if not source.is_file():
                raise InputError(f"{source} is no file")
            source = source.read_bytes()
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error})") from error
    if not isinstance(source, bytes):
        raise InputError(f"a smell cannot be read from {type(source).__name__}")
    if len(source) > limits["bytes"]:
        raise too_large("bytes", len(source), limits)
    if source[:4] != b"SMEL" or len(source) < 8:
        raise InputError("this is no smell")
    (count,) = struct.unpack_from("<I", source, 4)
    if count > limits["notes"]:
        raise too_large("notes", count, limits)
    if len(source) != 8 + 4 * count or not count:
        raise InputError("the smell is cut off")
    values = torch.tensor(struct.unpack_from(f"<{count}f", source, 8))
    if not bool(values.isfinite().all()):
        raise InputError("the smell is not finite")
    return values.clamp(-10, 10)


def too_large(limit: str, found: int, limits: Mapping[str, int]) -> LimitError:
    return LimitError(f"too many {limit}", limit=limit, allowed=limits[limit], found=found)


def preprocess(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    notes = int(config["notes"])
    return {"notes": torch.nn.functional.pad(decoded[:notes], (0, max(0, notes - len(decoded))))}


def output_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    return int(config["notes"]), FEATURES


class Nose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, FEATURES))
        self.dropout = nn.Dropout(0.5)

    def forward(self, notes: torch.Tensor) -> torch.Tensor:
        return self.dropout(torch.sin(notes[..., None] * self.weight))


class NosePlugin:
    """Offers a modality and its encoder; what is given by name is put in the place of its own."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    @hookimpl
    def register_modalities(self, register: Any) -> None:
        fields: dict[str, Any] = {
            "name": "smell",
            "api_version": API_VERSION,
            "content_type": "smell",
            "placeholder": "<|smell|>",
            "read": self.changes.get("read", read),
            "limits": self.changes.get("limits", {"bytes": 4000, "notes": 500}),
        }
        register(Modality(**fields))

    @hookimpl
    def register_encoders(self, register: Any) -> None:
        fields: dict[str, Any] = {
            "name": "nose",
            "api_version": API_VERSION,
            "modality": "smell",
            "build": lambda config: Nose(),
            "preprocess": preprocess,
            "output_shape": output_shape,
        }
        register(Encoder(**{**fields, **{k: v for k, v in self.changes.items() if k in fields}}))


CONFIG = {"nose": {"notes": NOTES}}


def nose(**changes: Any) -> Registry:
    registry = Registry()
    registry.register(NosePlugin(**changes), name="nose")
    return registry
