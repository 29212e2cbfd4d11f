"""Scoring answers: the likelihood of given options, and free-form greedy answers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.nn.functional as F

from modalloy.composition.loss import IGNORED
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import FormatError
from modalloy.structured import structure

Progress = Callable[[str, int, int], None]


@attrs.frozen(kw_only=True)
class Question:
    """A question with options.

    Attributes:
        id: Unique in its file.
        kind: Name of the set it belongs to.
        messages: The conversation; media by absolute path.
        options: Possible answers, as the parents were trained to write them.
        answer: Index of the right one.
        reference: The exact free-form answer, where there is one.
        objects: What it is about, for tests that resample by object.
    """

    id: str
    kind: str
    messages: list[dict[str, Any]]
    options: list[str]
    answer: int
    reference: str | None = None
    objects: list[str] = attrs.Factory(list)


def read_questions(file: Path) -> list[Question]:
    """Read a JSONL file of questions; their media are relative to its directory.

    Raises:
        FormatError: The file is missing or malformed.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error}", path=file) from error
    questions = []
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        try:
            question = structure(json.loads(line), Question, where)
        except json.JSONDecodeError as error:
            raise FormatError(f"{where} is not valid JSON: {error}", path=file) from error
        if not 0 <= question.answer < len(question.options):
            raise FormatError(f"{where}: answer {question.answer} is no option", path=file)
        if any("content" not in message for message in question.messages):
            raise FormatError(f"{where}: a message has no content", path=file)
        messages = [_absolute(message, file.parent) for message in question.messages]
        questions.append(attrs.evolve(question, messages=messages))
    return questions


def _absolute(message: Mapping[str, Any], root: Path) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = [{**p, "path": root / p["path"]} if "path" in p else p for p in content]
    return {**message, "content": parts}


@torch.no_grad()
def choose_options(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    progress: Progress = lambda *_: None,
) -> list[int]:
    """Return the option of highest likelihood for each question.

    The prompt is read once; its cache is then shared by all options. An option's likelihood is
    the sum of its tokens' log-probabilities, end of turn included.
    """
    chosen: list[int] = []
    for batch in _batches(questions, batch_size):
        prompts = [q.messages for q in batch]
        inputs = processor.apply_chat_template(prompts, add_generation_prompt=True)
        inputs = inputs.to(model.device)
        options, counts = _tokenize_options(processor, batch, model.device)
        scores = _continuation_scores(model, inputs, options, counts)
        chosen += [int(part.argmax()) for part in scores.split(counts)]
        progress("options", len(chosen), len(questions))
    return chosen


def _tokenize_options(
    processor: ModalloyProcessor, batch: Sequence[Question], device: torch.device
) -> tuple[torch.Tensor, list[int]]:
    """Return ids ``(sum of options, L)``, :data:`IGNORED` beyond an option's end, and counts."""
    end = processor.tokenizer.eos_token
    texts = [option + end for question in batch for option in question.options]
    encoded = processor.tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
    ).to(device)
    ids = torch.where(encoded["attention_mask"].bool(), encoded["input_ids"], IGNORED)
    return ids, [len(question.options) for question in batch]


def _continuation_scores(
    model: ModalloyForConditionalGeneration,
    inputs: Mapping[str, torch.Tensor],
    options: torch.Tensor,
    counts: list[int],
) -> torch.Tensor:
    """Return the log-likelihood of every option after its prompt, ``(sum of options,)``."""
    prompt = model(**inputs, use_cache=True, logits_to_keep=1)
    repeats = torch.tensor(counts, device=options.device)
    rows = torch.arange(len(counts), device=options.device).repeat_interleave(repeats)
    cache = prompt.past_key_values
    cache.reorder_cache(rows)
    attention = inputs["attention_mask"].index_select(0, rows)
    types = inputs["mm_token_type_ids"].index_select(0, rows)
    ids = options.clamp(min=0)
    out = model(
        input_ids=ids,
        attention_mask=torch.cat([attention, (options != IGNORED).to(attention)], dim=1),
        mm_token_type_ids=torch.cat([types, torch.zeros_like(ids)], dim=1),
        past_key_values=cache,
    )
    first = prompt.logits.index_select(0, rows)
    logits = torch.cat([first, out.logits[:, :-1]], dim=1).float()
    losses = F.cross_entropy(
        logits.transpose(1, 2), options, ignore_index=IGNORED, reduction="none"
    )
    return -losses.sum(dim=1)


@torch.no_grad()
def answer_freely(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    progress: Progress = lambda *_: None,
) -> list[str]:
    """Return the greedy answer to each question, without its end-of-turn token."""
    answers: list[str] = []
    for batch in _batches(questions, batch_size):
        prompts = [q.messages for q in batch]
        inputs = processor.apply_chat_template(prompts, add_generation_prompt=True)
        out = model.generate(
            **inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False
        )
        new = out[:, inputs["input_ids"].shape[1] :]
        decoded = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        answers += [text.strip() for text in decoded]
        progress("answers", len(answers), len(questions))
    return answers


def _batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]
