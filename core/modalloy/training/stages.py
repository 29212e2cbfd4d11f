"""The two stages of training a parent, on transformers' Trainer."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from modalloy.composition.features import Progress
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.errors import ModalloyError
from modalloy.training.config import StageConfig
from modalloy.training.data import ChatDataset, Collator
from modalloy.training.parameters import GradientWatch, restore, trained_state
from modalloy.training.records import (
    checkpoint_losses,
    checkpoint_step,
    is_main_process,
    whole_checkpoints,
)

TRAINED_FILE = "trained.safetensors"
"""Checkpoint of what a stage trains, and of nothing else."""


class TrainingError(ModalloyError, RuntimeError):
    """A stage diverged, learnt nothing, or missed the loss that its configuration asks for."""


@attrs.frozen
class StageResult:
    """What a stage came to.

    Attributes:
        loss: Mean loss over the last tenth of its steps; ``None`` where it was left out.
        seconds: Wall time of this run; steps done before a resume are not in it.
        validation_loss: Mean loss per labelled token of the validation chats, if there are any.
    """

    loss: float | None
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
    """Passes the Trainer's progress on, and stops a run that has come to nothing.

    Of the checkpoints it keeps the last; the Trainer would tell by the files' times which that is.
    """

    def __init__(self, name: str, watch: GradientWatch, progress: Progress) -> None:
        self.name = name
        self.watch = watch
        self.progress = progress

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note which parts have a gradient."""
        del args, state, control, kwargs
        self.watch.look()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the checkpoints before the one that was just written."""
        del state, control, kwargs
        for earlier in whole_checkpoints(Path(args.output_dir))[:-1] if is_main_process() else []:
            shutil.rmtree(earlier)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Report the step and its loss."""
        del args, control, kwargs
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"{self.name}: the loss is {logs['loss']} at step {state.global_step}; lower the "
                "learning rate or max_grad_norm, raise warmup, or look for broken media"
            )
        self.progress(f"{self.name} (loss {logs['loss']:.3f})", state.global_step, state.max_steps)


def run_stage(
    model: ModalloyForConditionalGeneration,
    stage: StageConfig,
    data: ChatDataset,
    collator: Collator,
    *,
    name: str,
    directory: Path,
    seed: int,
    checkpoint: Path | None,
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
        checkpoint: Where to go on from; ``None`` starts at the start.
        progress: Told about every step.

    Raises:
        TrainingError: The loss is not a number, stayed above ``stage.max_loss``, or no gradient
            reached some part of the parent.
    """
    if checkpoint is not None and checkpoint_step(checkpoint) >= stage.steps:
        # The Trainer would do one step more.
        restore(model, load_file(checkpoint / TRAINED_FILE))
        return StageResult(check_loss(name, checkpoint_losses(checkpoint), stage), 0.0)
    watch = GradientWatch(model)
    trainer = ParentTrainer(
        model=model,
        args=_arguments(stage, directory, seed),
        train_dataset=data,
        data_collator=collator,
        optimizers=_optimizer(model, stage),
        callbacks=[_Report(name, watch, progress)],
    )
    # Its console printer would write over the caller's progress.
    for callback in [
        c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__
    ]:
        trainer.remove_callback(callback)
    out = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if watch.unreached and checkpoint is None:
        raise TrainingError(
            f"{name}: no gradient reached {' and '.join(watch.unreached)} in any of the "
            f"{stage.steps} steps, so nothing was learnt there; do the chats hold inputs, and are "
            "the encoder's features finite and not all zero?"
        )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return StageResult(check_loss(name, losses, stage), out.metrics["train_runtime"])


def check_loss(name: str, losses: Sequence[float], stage: StageConfig) -> float:
    """Return the mean of the last tenth of a stage's losses.

    Raises:
        TrainingError: It is above what the configuration allows.
    """
    tail = losses[-max(1, len(losses) // 10) :]
    loss = sum(tail) / len(tail)
    check_gate(name, loss, stage)
    return loss


def check_gate(name: str, loss: float | None, stage: StageConfig) -> None:
    """Check a finished stage's loss against ``max_loss``.

    Raises:
        TrainingError: It is above.
    """
    if loss is not None and stage.max_loss is not None and loss > stage.max_loss:
        raise TrainingError(
            f"{name}: the mean loss of the last tenth of {stage.steps} steps is {loss:.3f}, above "
            f"max_loss {stage.max_loss}; train longer, look at data and learning rate, or raise "
            "max_loss and go on with --resume"
        )


def _arguments(stage: StageConfig, directory: Path, seed: int) -> TrainingArguments:
    args = TrainingArguments(
        output_dir=str(directory),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.accumulate,
        max_grad_norm=stage.max_grad_norm,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log a loss that is not a number as the last mean
        save_steps=stage.save_every,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    # Several GPUs in one process would mean DataParallel, whose replicas share one router; they
    # are used by accelerate, one process each.
    args._n_gpu = min(args.n_gpu, 1)  # noqa: SLF001 - it has no public setter
    return args


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
    """Return the mean loss over the labelled tokens of ``data``.

    Raises:
        TrainingError: It is not a number.
    """
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(data), batch_size):
        batch = collator([data[i] for i in range(start, min(start + batch_size, len(data)))])
        count = int((batch["labels"][:, 1:] >= 0).sum())
        moved = {key: value.to(model.device) for key, value in batch.items()}
        total += float(model(**moved).loss) * count
        tokens += count
        progress("validating", min(start + batch_size, len(data)), len(data))
    if not math.isfinite(total):
        raise TrainingError(f"the validation loss is {total / tokens}; the stage has diverged")
    return total / tokens
