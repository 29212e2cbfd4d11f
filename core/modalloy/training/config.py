"""The configuration of a training run: one YAML file, read strictly."""

import json
import math
from pathlib import Path
from typing import Any

import attrs
import yaml

from modalloy.errors import FormatError, SpecError
from modalloy.modality import check_name
from modalloy.parent import STRATEGIES, ComponentConfig
from modalloy.structured import structure

LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_MOST_BYTES = 2**20


def _positive(_: Any, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise SpecError(f"{attribute.name} must be positive, found {value}", subject=attribute.name)


def _not_negative(_: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise SpecError(
            f"{attribute.name} must not be negative, found {value}", subject=attribute.name
        )


def _plain(_: Any, attribute: "attrs.Attribute[Any]", value: ComponentConfig) -> None:
    """Check that a component's configuration can stand in ``parent.json``."""
    try:
        json.dumps(value.config, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(
            f"{attribute.name}.config must hold what JSON can hold, such as text, numbers and "
            f"lists: {error}",
            subject=attribute.name,
        ) from error


@attrs.frozen(kw_only=True)
class LoraConfig:
    """Low-rank deltas to train (Hu et al., arXiv 2106.09685).

    Attributes:
        rank: R of every pair.
        alpha: Scale times rank.
        targets: Last name components of the linear layers that get a pair.
    """

    rank: int = attrs.field(default=16, validator=_positive)
    alpha: float = attrs.field(default=32.0, validator=_positive)
    targets: list[str] = attrs.field(factory=lambda: list(LLAMA_LINEARS))

    @targets.validator
    def _check_targets(self, _: "attrs.Attribute[list[str]]", value: list[str]) -> None:
        if not value:
            raise SpecError("targets must name at least one linear layer", subject="targets")


@attrs.frozen(kw_only=True)
class StageConfig:
    """One stage of training.

    Attributes:
        data: JSONL files of chats, relative to the data directory; needed unless ``steps`` is 0.
        steps: Optimiser steps; 0 leaves the stage out.
        batch_size: Samples per step and device.
        accumulate: Batches per step.
        learning_rate: Peak rate; of the connector in stage 1, of the deltas in stage 2.
        connector_learning_rate: Of the connector in stage 2; ``learning_rate`` if left out.
        warmup: Share of the steps over which the rate rises; it then falls as a cosine.
        weight_decay: Decoupled weight decay of AdamW.
        max_grad_norm: Gradients are clipped to this norm.
        save_every: Steps between checkpoints.
        max_loss: The run stops with an error if the mean loss of the last tenth of the stage is
            above this; an undertrained connector spoils the stage after it. May be changed before
            going on with ``--resume``, as ``save_every`` may.
    """

    data: list[str] = attrs.Factory(list)
    steps: int = attrs.field(default=100, validator=_not_negative)
    batch_size: int = attrs.field(default=16, validator=_positive)
    accumulate: int = attrs.field(default=1, validator=_positive)
    learning_rate: float = attrs.field(default=1e-3, validator=_positive)
    connector_learning_rate: float | None = attrs.field(default=None, validator=_positive)
    warmup: float = attrs.field(default=0.03)
    weight_decay: float = attrs.field(default=0.0, validator=_not_negative)
    max_grad_norm: float = attrs.field(default=1.0, validator=_positive)
    save_every: int = attrs.field(default=100, validator=_positive)
    max_loss: float | None = attrs.field(default=None, validator=_positive)

    @warmup.validator
    def _check_warmup(self, _: "attrs.Attribute[float]", value: float) -> None:
        if not 0 <= value <= 1:
            raise SpecError(
                f"warmup is a share of the steps, between 0 and 1; found {value}", subject="warmup"
            )

    def __attrs_post_init__(self) -> None:
        if self.steps and not self.data:
            raise SpecError(
                f"data must name JSONL files for {self.steps} steps; steps: 0 leaves the stage out",
                subject="data",
            )


@attrs.frozen(kw_only=True)
class TrainConfig:
    """What ``modalloy train`` reads.

    Attributes:
        name: Name of the parent.
        modality: Name of its modality.
        strategy: ``"decoupled"`` trains one delta for the text stream and one for the modality
            stream, together; ``"naive"`` one for both.
        base: ``"smollm2"``, a directory, or a Hub id.
        encoder: Encoder type and configuration.
        connector: Connector type and configuration.
        prefix_tokens: Learned embeddings before each input.
        suffix_tokens: Learned embeddings after it.
        lora: The low-rank deltas.
        connector_stage: Stage 1: the connector alone, on the untouched base.
        tuning_stage: Stage 2: connector and deltas.
        validation: JSONL files on which the loss is measured after each stage.
        seed: Of initial values and of the order of the data.
        dtype: Of the frozen base; what is trained is kept in float32.
        attention: Attention implementation of transformers, such as ``"eager"``, which trains
            faster than the default on a CPU; the base's own if left out.
        cache_features: Whether each input is encoded once, before training; needs memory for
            the features of all inputs.
        licence: SPDX expression for the trained weights.
        requires: Requirement of the distribution that supplies modality and encoder.
    """

    name: str = attrs.field(validator=check_name)
    modality: str
    strategy: str = attrs.field(default="decoupled")
    base: str = "smollm2"
    encoder: ComponentConfig = attrs.field(validator=_plain)
    connector: ComponentConfig = attrs.field(validator=_plain)
    prefix_tokens: int = attrs.field(default=0, validator=_not_negative)
    suffix_tokens: int = attrs.field(default=0, validator=_not_negative)
    lora: LoraConfig = attrs.Factory(LoraConfig)
    connector_stage: StageConfig
    tuning_stage: StageConfig
    validation: list[str] = attrs.Factory(list)
    seed: int = attrs.field(default=0, validator=_not_negative)
    dtype: str = attrs.field(default="bfloat16")
    attention: str | None = attrs.field(default=None)
    cache_features: bool = True
    licence: str = "unknown"
    requires: str | None = None

    @strategy.validator
    def _check_strategy(self, _: "attrs.Attribute[str]", value: str) -> None:
        if value not in STRATEGIES:
            raise SpecError(
                f"strategy must be 'decoupled' or 'naive', found {value!r}", subject="strategy"
            )

    @attention.validator
    def _check_attention(self, _: "attrs.Attribute[str | None]", value: str | None) -> None:
        if value is not None and "/" in value:
            raise SpecError(
                "attention must be the name of an implementation of transformers, such as "
                f"'eager'; {value!r} would fetch a repository and run its code",
                subject="attention",
            )

    @dtype.validator
    def _check_dtype(self, _: "attrs.Attribute[str]", value: str) -> None:
        if value not in ("bfloat16", "float32"):
            raise SpecError(
                f"dtype must be 'bfloat16' or 'float32', found {value!r}", subject="dtype"
            )


def read_config(path: Path) -> TrainConfig:
    """Read a training configuration.

    Raises:
        FormatError: The file is missing, is not YAML, or a key is unknown, missing or wrong.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    if len(raw) > _MOST_BYTES:
        raise FormatError(
            f"{path} has more than {_MOST_BYTES} bytes; is it a training configuration?", path=path
        )
    try:
        data = yaml.safe_load(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise FormatError(f"{path} is not valid YAML: {error}", path=path) from error
    return structure(data, TrainConfig, path)
