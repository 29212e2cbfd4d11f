"""Prompts of questions: laid out once, sorted so that a batch wastes little, put into tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from modalloy.composition.content import flatten_message
from modalloy.composition.processing import ModalloyProcessor
from modalloy.evaluation.questions import Question
from modalloy.modality import TEXT_TYPE_ID

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


@attrs.frozen(eq=False)
class Prompt:
    """A question's prompt.

    Attributes:
        place: Index of the question.
        ids: Token ids, placeholders in place.
        types: ``mm_token_type_ids`` of them.
        inputs: ``(modality, source)`` in prompt order.
        options: Token ids of each option, end of turn included.
    """

    place: int
    ids: list[int]
    types: list[int]
    inputs: list[tuple[str, Any]]
    options: list[list[int]]

    @property
    def present(self) -> tuple[str, ...]:
        """Modalities in it, sorted: what coefficients by presence look at."""
        return tuple(sorted({name for name, _ in self.inputs}))

    @property
    def leading_text(self) -> list[int]:
        """Ids before the first input, and never all of them."""
        ends = (i for i, value in enumerate(self.types) if value != TEXT_TYPE_ID)
        return self.ids[: min(next(ends, len(self.ids)), len(self.ids) - 1)]


def lay_out(processor: ModalloyProcessor, questions: Sequence[Question]) -> list[Prompt]:
    """Lay out the prompts and the options of questions.

    Raises:
        InputError: A message cannot be used.
    """
    if not questions:
        return []
    end = processor.tokenizer.eos_token
    texts = [
        processor.apply_chat_template(q.messages, tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    options = [option + end for q in questions for option in q.options]
    rows = _tokenize(processor, texts)
    ends = iter(_tokenize(processor, options))
    type_of = {
        entry["placeholder_id"]: entry["token_type_id"] for entry in processor.modalities.values()
    }
    return [
        Prompt(
            place,
            ids,
            [type_of.get(one, TEXT_TYPE_ID) for one in ids],
            [
                one
                for message in question.messages
                for one in flatten_message(message, processor.modalities)[1]
            ],
            [next(ends) for _ in question.options],
        )
        for place, (question, ids) in enumerate(zip(questions, rows, strict=True))
    ]


def _tokenize(processor: ModalloyProcessor, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def grouped(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Return the prompts by the set of modalities in them, each group sorted by length.

    All rows of a batch then have the same coefficients, and little padding.
    """
    groups: dict[tuple[str, ...], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.present, []).append(prompt)
    return [
        sorted(groups[key], key=lambda one: (len(one.ids), one.place)) for key in sorted(groups)
    ]


def pad_left(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> torch.Tensor:
    """Return ``(B, T)`` int64 of rows that end at the same column."""
    length = max(len(row) for row in rows)
    padded = [[value] * (length - len(row)) + list(row) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device)


def model_inputs(
    prompts: Sequence[Prompt], processor: ModalloyProcessor, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``mm_token_type_ids`` ``(B, T)``."""
    pad = processor.tokenizer.pad_token_id or 0
    return {
        "input_ids": pad_left([p.ids for p in prompts], pad, device),
        "attention_mask": pad_left([[1] * len(p.ids) for p in prompts], 0, device),
        "mm_token_type_ids": pad_left([p.types for p in prompts], TEXT_TYPE_ID, device),
    }
