"""The two stages of training a parent, on transformers' Trainer."""

import math
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from modalloy.composition.layers import StreamLinear
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.errors import ModalloyError
from modalloy.training.config import StageConfig
from modalloy.training.data import ChatDataset, Collator
from modalloy.training.features import Progress

TRAINED_FILE = "trained.safetensors"
"""Checkpoint of what a stage trains, and of nothing else."""


class TrainingError(ModalloyError, RuntimeError):
    """A stage did not reach the loss that its configuration asks for."""


@attrs.frozen
class StageResult:
    """What a stage came to.

    Attributes:
        loss: Mean loss over the last tenth of its steps.
        seconds: Wall time of this run; steps done before a resume are not in it.
        validation_loss: Mean loss per labelled token of the validation chats, if there are any.
    """

    loss: float
    seconds: float
    validation_loss: float | None = None


class ParentTrainer(Trainer):
    """A Trainer whose checkpoints hold the trained parameters alone; the base never changes."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        directory = Path(output_dir or str(self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        save_file(
            trained_state(self.accelerator.unwrap_model(self.model)), directory / TRAINED_FILE
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target = self.accelerator.unwrap_model(model or self.model)
        restore(target, load_file(Path(resume_from_checkpoint) / TRAINED_FILE))


class _Report(TrainerCallback):
    """Passes the Trainer's progress on, and keeps the losses."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name = name
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Report the step and its loss."""
        del args, control, kwargs
        if logs and "loss" in logs:
            text = f"{self.name} (loss {logs['loss']:.3f})"
            self.progress(text, state.global_step, state.max_steps)


def run_stage(
    model: ModalloyForConditionalGeneration,
    stage: StageConfig,
    data: ChatDataset,
    collator: Collator,
    *,
    name: str,
    directory: Path,
    seed: int,
    resume: bool,
    progress: Progress,
) -> StageResult:
    """Train what ``requires_grad`` in ``model``.

    Args:
        model: The parent's composition.
        stage: How to train.
        data: What to train on.
        collator: Puts examples together.
        name: Of the stage, for progress.
        directory: Where checkpoints go.
        seed: Of the order of the data.
        resume: Whether to go on from the last checkpoint in ``directory``.
        progress: Told about every logged step.

    Raises:
        TrainingError: The loss stayed above ``stage.max_loss``, or is not a number.
    """
    checkpoints = sorted(
        directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    args = TrainingArguments(
        output_dir=str(directory),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.accumulate,
        max_grad_norm=stage.max_grad_norm,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        save_steps=stage.save_every,
        save_total_limit=1,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = ParentTrainer(
        model=model,
        args=args,
        train_dataset=data,
        data_collator=collator,
        optimizers=_optimizer(model, stage),
        callbacks=[_Report(name, progress)],
    )
    # Its console printer would write over the caller's progress.
    for callback in [
        c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__
    ]:
        trainer.remove_callback(callback)
    if checkpoints and not resume:
        raise ModalloyError(
            f"{directory} holds {checkpoints[-1].name} of an earlier run; go on from it with "
            "resume (--resume) or remove the directory"
        )
    out = trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tail = losses[-max(1, len(losses) // 10) :]
    loss = sum(tail) / len(tail)
    if not math.isfinite(loss) or (stage.max_loss is not None and loss > stage.max_loss):
        raise TrainingError(
            f"{name}: the loss of the last {len(tail)} steps is {loss:.3f}, the configuration "
            f"allows {stage.max_loss}; train longer, or look at data and learning rate"
        )
    return StageResult(loss, out.metrics["train_runtime"])


def _optimizer(
    model: ModalloyForConditionalGeneration, stage: StageConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Return AdamW over what is trained, and warm-up followed by a cosine to zero."""
    connectors = [p for p in model.connectors.parameters() if p.requires_grad]
    deltas = [p for p in model.language_model.parameters() if p.requires_grad]
    rate = stage.learning_rate
    if deltas and stage.connector_learning_rate is not None:
        rate = stage.connector_learning_rate
    groups = [{"params": connectors, "lr": rate}, {"params": deltas, "lr": stage.learning_rate}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=stage.weight_decay
    )
    rise = max(1, round(stage.warmup * stage.steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, stage.steps - rise)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def validation_loss(
    model: ModalloyForConditionalGeneration,
    data: ChatDataset,
    collator: Collator,
    progress: Progress,
    batch_size: int = 16,
) -> float:
    """Return the mean loss over the labelled tokens of ``data``."""
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(data), batch_size):
        batch = collator([data[i] for i in range(start, min(start + batch_size, len(data)))])
        count = int((batch["labels"][:, 1:] >= 0).sum())
        moved = {key: value.to(model.device) for key, value in batch.items()}
        total += float(model(**moved).loss) * count
        tokens += count
        progress("validating", min(start + batch_size, len(data)), len(data))
    return total / tokens


def init_deltas(model: ModalloyForConditionalGeneration, seed: int) -> None:
    """Give every pair LoRA's start: A uniform as a linear layer's weight, B zero; float32.

    Layer by layer in order of names from a generator of its own, so that the values do not
    depend on what was drawn before.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, layer in sorted(model.language_model.named_modules()):
        if not isinstance(layer, StreamLinear):
            continue
        for store, key, value in list(_factors(layer)):
            fresh = torch.zeros(value.shape, dtype=torch.float32)
            if key.endswith("A") or store is layer.modality_A:
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            parameter = nn.Parameter(fresh.to(value.device))
            if isinstance(store, nn.ParameterDict):
                store[key] = parameter
            else:
                setattr(store, key, parameter)


def _factors(layer: StreamLinear) -> Any:
    """Yield (where it is kept, its name there, the parameter) of a layer's factors."""
    for key in ("text_A", "text_B"):
        if getattr(layer, key) is not None:
            yield layer, key, getattr(layer, key)
    for store in (layer.modality_A, layer.modality_B):
        for key, value in store.items():
            yield store, key, value


def choose_trained(model: ModalloyForConditionalGeneration, *, deltas: bool) -> None:
    """Freeze everything but the connectors and, where asked, the deltas."""
    model.requires_grad_(requires_grad=False)
    model.connectors.requires_grad_(requires_grad=True)
    for layer in model.language_model.modules():
        if isinstance(layer, StreamLinear):
            for _, _, parameter in _factors(layer):
                parameter.requires_grad_(requires_grad=deltas)


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that are being trained, by name."""
    return {
        n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad
    }


def restore(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`trained_state` returned.

    Raises:
        ModalloyError: The state is of another model or stage.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ModalloyError(
            f"the checkpoint is of another configuration: it differs in {', '.join(odd)}; remove "
            "the work directory and train anew"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
