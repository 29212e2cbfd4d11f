"""The configuration of a training run: one YAML file, read strictly."""

from pathlib import Path
from typing import Any

import attrs
import yaml

from modalloy.errors import FormatError, SpecError
from modalloy.modality import check_name
from modalloy.parent import STRATEGIES, ComponentConfig
from modalloy.structured import structure

LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _positive(instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if value <= 0:
        raise SpecError(
            f"{type(instance).__name__}: {attribute.name} must be positive, found {value}",
            subject=attribute.name,
        )


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
    targets: list[str] = attrs.Factory(lambda: list(LLAMA_LINEARS))


@attrs.frozen(kw_only=True)
class StageConfig:
    """One stage of training.

    Attributes:
        data: JSONL files of chats, relative to the data directory.
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
            above this; an undertrained connector spoils the stage after it.
    """

    data: list[str]
    steps: int = 100
    batch_size: int = attrs.field(default=16, validator=_positive)
    accumulate: int = attrs.field(default=1, validator=_positive)
    learning_rate: float = attrs.field(default=1e-3, validator=_positive)
    connector_learning_rate: float | None = None
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = attrs.field(default=1.0, validator=_positive)
    save_every: int = attrs.field(default=100, validator=_positive)
    max_loss: float | None = None


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
    encoder: ComponentConfig
    connector: ComponentConfig
    prefix_tokens: int = 0
    suffix_tokens: int = 0
    lora: LoraConfig = attrs.Factory(LoraConfig)
    connector_stage: StageConfig
    tuning_stage: StageConfig
    validation: list[str] = attrs.Factory(list)
    seed: int = 0
    dtype: str = attrs.field(default="bfloat16")
    attention: str | None = None
    cache_features: bool = True
    licence: str = "unknown"
    requires: str | None = None

    @strategy.validator
    def _check_strategy(self, _: "attrs.Attribute[str]", value: str) -> None:
        if value not in STRATEGIES:
            raise SpecError(
                f"strategy must be 'decoupled' or 'naive', found {value!r}", subject="strategy"
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
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    except yaml.YAMLError as error:
        raise FormatError(f"{path} is not valid YAML: {error}", path=path) from error
    return structure(data, TrainConfig, path)
