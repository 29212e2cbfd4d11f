"""What a stage is made from, kept beside its checkpoints.

A stage is taken up again, or its result taken as it is, only where nothing that its weights
depend on has changed since.
"""

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs

from modalloy.checkpoints.new_directory import write_whole
from modalloy.errors import FormatError, ModalloyError
from modalloy.parent import Fingerprint
from modalloy.training.config import StageConfig, TrainConfig
from modalloy.training.data import ChatDataset

Recipe = dict[str, Any]
"""Dotted name to plain value, of everything that a stage's weights depend on."""

RECIPE_FILE = "stage.json"
_STATE_FILE = "trainer_state.json"  # the Trainer writes it last: a checkpoint without it is torn
_NO_MATTER = ("save_every", "max_loss")


def is_main_process() -> bool:
    """Whether this process is the one that writes, of those that accelerate started."""
    return int(os.environ.get("RANK", "0")) == 0


def connector_recipe(
    config: TrainConfig, fingerprint: Fingerprint, data: Mapping[str, str]
) -> Recipe:
    """Return what the connector's weights after stage 1 depend on.

    Args:
        config: The run's configuration.
        fingerprint: Of the base, which may have changed behind its name.
        data: Digest of the stage's chats and of their media, as of :func:`digest_chats`.
    """
    names = ("modality", "encoder", "connector", "prefix_tokens", "suffix_tokens", "seed")
    values = {name: getattr(config, name) for name in (*names, "dtype", "attention")}
    return _flatten(
        {
            **{name: attrs.asdict(v) if attrs.has(type(v)) else v for name, v in values.items()},
            "base": attrs.asdict(fingerprint),
            "cache_features": config.cache_features,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "connector_stage": _stage(config.connector_stage, data),
        }
    )


def tuning_recipe(config: TrainConfig, connector: Recipe, data: Mapping[str, str]) -> Recipe:
    """Return what the weights after stage 2 depend on; ``connector`` is stage 1's recipe."""
    own = {
        "strategy": config.strategy,
        "lora": attrs.asdict(config.lora),
        "tuning_stage": _stage(config.tuning_stage, data),
    }
    return connector | _flatten(own)


def _stage(stage: StageConfig, data: Mapping[str, str]) -> dict[str, Any]:
    if not stage.steps:
        return {"steps": 0}
    values = attrs.asdict(stage)
    return {**{k: v for k, v in values.items() if k not in _NO_MATTER}, **data}


def _flatten(values: Mapping[str, Any], where: str = "") -> Recipe:
    flat: Recipe = {}
    for key, value in sorted(values.items()):
        nested = isinstance(value, Mapping) and bool(value)
        flat |= _flatten(value, f"{where}{key}.") if nested else {f"{where}{key}": value}
    return flat


def recipe_key(recipe: Recipe) -> str:
    """Return a short name that differs where a recipe does."""
    return sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def digest_chats(files: Iterable[Path], chats: ChatDataset) -> dict[str, str]:
    """Return digests of JSONL files and of the media that they name, in their order."""
    media, known = sha256(), {path: _digest(path) for _, path in chats.sources()}
    for example in chats.examples:
        for _, path in example.inputs:
            media.update(known[path])
    texts = sha256(b"".join(_digest(file) for file in files))
    return {"chats": texts.hexdigest(), "media": media.hexdigest()}


def _digest(file: Path) -> bytes:
    try:
        return sha256(file.read_bytes()).digest()
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error}", path=file) from error


def whole_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints in ``directory`` that were written to their end, by step."""
    found = [p for p in directory.glob("checkpoint-*") if (p / _STATE_FILE).is_file()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_losses(checkpoint: Path) -> list[float]:
    """Return the losses of all steps up to a checkpoint."""
    history = read_json(checkpoint / _STATE_FILE)["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def begin(directory: Path, recipe: Recipe, *, resume: bool) -> Path | None:
    """Make a stage's directory ready, and find where it goes on.

    Args:
        directory: Where the stage's checkpoints go.
        recipe: What the stage is made from now.
        resume: Whether the caller wants to go on.

    Returns:
        The checkpoint to go on from, if there is one.

    Raises:
        ModalloyError: There are checkpoints and ``resume`` is false, or the checkpoints were made
            from something else.
    """
    checkpoints = whole_checkpoints(directory)
    if not checkpoints:
        if is_main_process():
            directory.mkdir(parents=True, exist_ok=True)
            write_json(directory / RECIPE_FILE, recipe)
        return None
    last = checkpoints[-1]
    if not resume:
        raise ModalloyError(
            f"{directory} holds {last.name} of an earlier run; go on from it with resume "
            "(--resume), or remove the directory"
        )
    earlier = read_json(directory / RECIPE_FILE)
    odd = sorted(k for k in earlier.keys() | recipe.keys() if earlier.get(k) != recipe.get(k))
    if odd:
        changes = "; ".join(f"{k} was {earlier.get(k)!r}, now {recipe.get(k)!r}" for k in odd[:3])
        more = f" and {len(odd) - 3} more" if odd[3:] else ""
        raise ModalloyError(
            f"{last} is of another configuration: {changes}{more}. Go back to that one, or remove "
            f"{directory} and train anew"
        )
    return last


def read_json(file: Path) -> dict[str, Any]:
    """Read a file of the work directory.

    Raises:
        FormatError: It is missing or damaged.
    """
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{file} cannot be read: {error}; remove {file.parent} and train anew", path=file
        ) from error
    return data


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write a file of the work directory, whole or not at all.

    Raises:
        FormatError: It cannot be written.
    """
    write_whole(file, json.dumps(data, indent=2, allow_nan=False) + "\n")
