"""Prompts given as text: marks such as ``<image>``, and the inputs that they stand for."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modalloy.errors import InputError


def split_marks(prompt: str, by_type: Mapping[str, str]) -> list[str]:
    """Split at ``<kind>`` marks: texts at even places, kinds at odd ones."""
    parts = [prompt]
    for kind in by_type:
        parts = [
            piece
            for index, part in enumerate(parts)
            for piece in ([part] if index % 2 else _interleave(part, kind))
        ]
    return parts


def _interleave(part: str, kind: str) -> list[str]:
    pieces = part.split(f"<{kind}>")
    return [item for piece in pieces for item in (piece, kind)][:-1]


def queue_inputs(inputs: Mapping[str, Any], by_type: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return lists of inputs by content type; transformers says ``images`` and ``videos``."""
    queues: dict[str, list[Any]] = {}
    unknown = []
    for key, values in inputs.items():
        kind = key[:-1] if key not in by_type and key[:-1] in by_type else key
        if values is None:
            continue
        if kind in queues:
            raise InputError(f"{kind} inputs are given twice; give them under one name")
        if kind in by_type:
            queues[kind] = _as_list(values)
        else:
            unknown.append(key)
    if unknown:
        raise InputError(
            f"no modality of this composition takes {', '.join(sorted(unknown))}; it takes "
            f"{', '.join(sorted(by_type))}"
        )
    return queues


def _as_list(values: Any) -> list[Any]:
    """Return a list of inputs; a single file, or what is no row of things, needs none around it."""
    single = isinstance(values, str | bytes | Path) or not isinstance(values, Iterable)
    return [values] if single else list(values)


def as_source(value: Any) -> Any:
    """Return a single input as a reader takes it; text names a file."""
    return Path(value) if isinstance(value, str) else value
