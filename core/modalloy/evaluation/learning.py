"""Learning coefficients: one for each parent and decoder layer, by gradient, from questions.

A coefficient by layer is what AdaMerging learns (Yang et al., arXiv 2310.02575), there on the
entropy of unlabelled inputs. Here it is DAMC's adaptive adjustment (arXiv 2402.12750,
section 3.3) for more numbers than a grid can try: the right option of every validation question is
to be as likely as it can be among the options. No weight is trained.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modalloy.checkpoints.new_directory import new_file
from modalloy.composition.coefficients import Value
from modalloy.composition.features import FeatureStore
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import FormatError, InputError, SpecError
from modalloy.evaluation.answers import question_digest
from modalloy.evaluation.prompts import Progress, Prompt, lay_out
from modalloy.evaluation.questions import Question
from modalloy.evaluation.trees import Opening, option_scores, takes_trees

LEARNED_FILE = "learned.safetensors"
"""File of a work directory that a broken run goes on from."""

BATCH = 16
"""Questions of a step, all about one set of modalities."""

RATE = 0.02
"""Adam's learning rate at the first step; it falls to 0 as a cosine."""

_SAVE_EVERY = 10
_DIGITS = 4
"""Of the coefficients that are returned: they are written to a table."""


@attrs.define(eq=False)
class _State:
    """Coefficients ``(1, groups, layers)`` float32 and Adam's moments of them."""

    values: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    step: int = 0


def learn_coefficients(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Mapping[frozenset[str], Sequence[Question]],
    start: Sequence[Value],
    *,
    steps: int,
    store: FeatureStore,
    identity: str,
    work: Path | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Value, ...]:
    """Return one row of coefficients by layer, for all sets of modalities alike.

    Sets take turns, and so do the questions of each; nothing is drawn at random.

    Args:
        model: The composition; it is left as it was.
        processor: Its processor.
        questions: By set of modalities, each with options and the right one.
        start: The row to begin with, in the order of the composition's groups.
        steps: Of Adam, with :data:`BATCH` questions each.
        store: Supplies features.
        identity: Fingerprint of the composition, its coefficients aside.
        work: Directory that keeps the state; a run of the same steps on the same questions goes on.
        progress: Told after every step.

    Raises:
        SpecError: The base cannot score options in one pass, or tells no number of layers.
        InputError: There are no questions, or an input cannot be read.
        FormatError: What ``work`` holds is damaged, or cannot be written.
    """
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if not takes_trees(model) or layers is None:
        raise SpecError(
            "coefficients cannot be learned by gradient over this base: it needs full attention "
            "with rotary positions, on sdpa or eager attention; search by 'grid' or 'tpe'",
            subject="coefficients",
        )
    if not any(questions.values()):
        raise InputError("coefficients cannot be learned from no questions; give some, with labels")
    wide = [list(v) if isinstance(v, tuple) else [v] * layers for v in start]
    values = torch.tensor([wide], dtype=torch.float32, device=model.device)
    state = _State(values, torch.zeros_like(values), torch.zeros_like(values))
    order = sorted(questions, key=lambda one: (len(one), sorted(one)))
    asked = [(one, list(questions[one])) for one in order]
    file, mark = None if work is None else work / LEARNED_FILE, ""
    if file is not None:
        digests = [
            [(question_digest(q, store, model, processor), q.answer) for q in some]
            for _, some in asked
        ]
        mark = _mark(digests, start, steps, identity)
        if any(digest is None for row in digests for digest, _ in row):
            file = None  # an input has no lasting identity: nothing to go on from
        else:
            state = _resumed(file, mark, state)
    prompts = [lay_out(processor, some) for _, some in asked]
    with _learning(model):
        while state.step < steps:
            turn, place = state.step % len(asked), state.step // len(asked)
            some = [(place * BATCH + i) % len(prompts[turn]) for i in range(BATCH)]
            batch = [prompts[turn][i] for i in dict.fromkeys(some)]
            right = [asked[turn][1][prompt.place].answer for prompt in batch]
            loss = _step(model, processor, state, batch, right, store, steps)
            progress(f"learning (loss {loss:.3f})", state.step, steps)
            if file is not None and (state.step % _SAVE_EVERY == 0 or state.step == steps):
                _save(file, mark, state)
    return tuple(
        tuple(round(value, _DIGITS) for value in row) for row in state.values[0].cpu().tolist()
    )


@contextmanager
def _learning(model: ModalloyForConditionalGeneration) -> Iterator[None]:
    """Let gradients reach the coefficients alone."""
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        one.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    try:
        with torch.enable_grad():
            yield
    finally:
        model.trial = None
        for one in trained:
            one.requires_grad_(True)  # noqa: FBT003


def _step(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    state: _State,
    batch: Sequence[Prompt],
    right: Sequence[int | None],
    store: FeatureStore,
    steps: int,
) -> float:
    """Move the coefficients by one step of Adam (Kingma and Ba, arXiv 1412.6980)."""
    features = store.batch(model, processor, [one for prompt in batch for one in prompt.inputs])
    model.trial = state.values.clone().requires_grad_()
    scores = option_scores(model, batch, Opening(0), features)
    losses = [
        -row.log_softmax(0)[answer]
        for row, answer in zip(scores, right, strict=True)
        if answer is not None
    ]
    loss = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(loss, model.trial)
    rate = RATE * (1 + math.cos(math.pi * state.step / steps)) / 2
    state.step += 1
    state.first.lerp_(gradient, 0.1)
    state.second.lerp_(gradient.square(), 0.001)
    first = state.first / (1 - 0.9**state.step)
    second = state.second / (1 - 0.999**state.step)
    state.values -= rate * first / (second.sqrt() + 1e-8)
    return float(loss.detach())


def _mark(
    asked: Sequence[Sequence[tuple[str | None, int | None]]],
    start: Sequence[Value],
    steps: int,
    identity: str,
) -> str:
    """Return the SHA-256 of what decides the run: digests and answers of the questions first."""
    text = json.dumps([asked, start, steps, BATCH, RATE, identity])
    return hashlib.sha256(text.encode()).hexdigest()


def _resumed(file: Path, mark: str, state: _State) -> _State:
    """Return the state that an earlier run of the same left, or ``state``."""
    if not file.is_file():
        return state
    try:
        with safe_open(file, "pt") as kept:
            if kept.metadata().get("mark") != mark:
                return state
            tensors = {name: kept.get_tensor(name) for name in ("values", "first", "second")}
            step = int(kept.metadata()["step"])
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{file} is no state of learned coefficients: {error}; remove it", path=file
        ) from error
    return _State(**{name: one.to(state.values.device) for name, one in tensors.items()}, step=step)


def _save(file: Path, mark: str, state: _State) -> None:
    tensors = {name: getattr(state, name).contiguous() for name in ("values", "first", "second")}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{file} cannot be written: {error}", path=file) from error
    with new_file(file) as partial:
        save_file(tensors, partial, metadata={"mark": mark, "step": str(state.step)})
