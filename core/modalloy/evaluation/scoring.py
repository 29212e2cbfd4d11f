"""Answers of a composition: the likeliest of given options, and free-form greedy answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteria, StoppingCriteriaList

from modalloy.composition.caches import CACHE
from modalloy.composition.features import FeatureStore
from modalloy.composition.loss import IGNORED
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.evaluation.prompts import Progress, Prompt, grouped, lay_out, model_inputs
from modalloy.evaluation.questions import Question, read_questions
from modalloy.evaluation.trees import Opening, grow, open_group, takes_trees, tree_scores

__all__ = ["Question", "answer_freely", "choose_options", "read_questions", "score_options"]

BATCH = 32
"""Questions at a time, unless a caller says otherwise."""

LOGITS = 2**28
"""Most logits of one pass over options; a batch is cut where there would be more."""

Found = Callable[[int, Any], None]
"""Called with the place of a question and its answer, in whatever order they come."""


def choose_options(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = BATCH,
    progress: Progress = lambda *_: None,
) -> list[int]:
    """Return the option of highest likelihood for each question; see :func:`score_options`."""
    scores = score_options(model, processor, questions, batch_size=batch_size, progress=progress)
    return [row.index(max(row)) for row in scores]


@torch.no_grad()
def score_options(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = BATCH,
    features: FeatureStore | None = None,
    found: Found = lambda *_: None,
    progress: Progress = lambda *_: None,
) -> list[list[float]]:
    """Return the log-likelihood of each option of each question.

    It is the sum of the log-probabilities of the option's tokens, end of turn included.

    Args:
        model: The composition.
        processor: Its processor.
        questions: With options.
        batch_size: Questions at a time.
        features: Supplies encoded inputs.
        found: Told each question's scores as soon as they are known.
        progress: Told after every batch.
    """
    store = features or FeatureStore()
    scores: list[list[float]] = [[] for _ in questions]
    done = 0
    trees = takes_trees(model)
    for group in grouped(lay_out(processor, questions)):
        with model.folded_for(group[0].present):
            opening = open_group(model, processor, group, store) if trees else Opening(0)
            for batch in _fitting(group, batch_size, model.config.get_text_config().vocab_size):
                inputs = store.batch(model, processor, [one for p in batch for one in p.inputs])
                if trees:
                    rows = tree_scores(model, batch, opening, inputs)
                else:
                    rows = cached_scores(model, processor, batch, inputs)
                for prompt, row in zip(batch, rows, strict=True):
                    scores[prompt.place] = row
                    found(prompt.place, row)
                done += len(batch)
                progress("options", done, len(questions))
    return scores


def _fitting(group: Sequence[Prompt], size: int, vocabulary: int) -> Iterator[list[Prompt]]:
    """Yield batches of at most ``size`` prompts whose logits stay below :data:`LOGITS`."""
    batch: list[Prompt] = []
    widest = 0
    for prompt in group:
        width = 1 + len(grow(prompt.options).tokens)
        if batch and (
            len(batch) == size or (len(batch) + 1) * max(widest, width) * vocabulary > LOGITS
        ):
            yield batch
            batch, widest = [], 0
        batch.append(prompt)
        widest = max(widest, width)
    if batch:
        yield batch


def cached_scores(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    batch: Sequence[Prompt],
    features: Mapping[str, torch.Tensor],
) -> list[list[float]]:
    """Return what :func:`~modalloy.evaluation.trees.tree_scores` does, for any base.

    The prompt is read once; its cache is then copied for each option.
    """
    inputs = model_inputs(batch, processor, model.device)
    counts = [len(prompt.options) for prompt in batch]
    options = pad_sequence(
        [torch.tensor(option) for prompt in batch for option in prompt.options],
        batch_first=True,
        padding_value=IGNORED,
    ).to(model.device)
    prompt = model(**inputs, **features, use_cache=True, logits_to_keep=1)
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(model.device)
    cache = prompt[CACHE]
    cache.reorder_cache(rows)
    attention = inputs["attention_mask"].index_select(0, rows)
    types = inputs["mm_token_type_ids"].index_select(0, rows)
    ids = options.clamp(min=0)
    out = model(
        input_ids=ids,
        attention_mask=torch.cat([attention, (options != IGNORED).to(attention)], dim=1),
        mm_token_type_ids=torch.cat([types, torch.zeros_like(ids)], dim=1),
        cache=cache,
    )
    first = prompt.logits.index_select(0, rows)
    logits = torch.cat([first, out.logits[:, :-1]], dim=1).float()
    losses = F.cross_entropy(
        logits.transpose(1, 2), options, ignore_index=IGNORED, reduction="none"
    )
    return [part.tolist() for part in (-losses.sum(dim=1)).split(counts)]


class _FirstCharacter(StoppingCriteria):
    """Ends a row once its answer has a character that is not white space."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return ``(B,)`` bool; ``input_ids`` holds the answers alone."""
        del scores, kwargs
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        # The first byte of a character of several decodes to a replacement mark.
        ended = [bool(text.strip()) and not text.strip().startswith("\ufffd") for text in texts]
        return torch.tensor(ended, device=input_ids.device)


@torch.no_grad()
def answer_freely(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = BATCH,
    max_new_tokens: int = 12,
    first_character: bool = False,
    features: FeatureStore | None = None,
    found: Found = lambda *_: None,
    progress: Progress = lambda *_: None,
) -> list[str]:
    """Return the greedy answer to each question, without its end-of-turn token.

    Args:
        model: The composition.
        processor: Its processor.
        questions: What is asked.
        batch_size: Questions at a time.
        max_new_tokens: Longest answer.
        first_character: Whether an answer may end as soon as its first character is known.
        features: Supplies encoded inputs.
        found: Told each question's answer as soon as it is known.
        progress: Told after every batch.
    """
    store = features or FeatureStore()
    answers = [""] * len(questions)
    done = 0
    stop = StoppingCriteriaList([_FirstCharacter(processor.tokenizer)] if first_character else [])
    for group in grouped(lay_out(processor, questions)):
        with model.folded_for(group[0].present):
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                texts = _generated(model, processor, batch, store, max_new_tokens, stop)
                for prompt, text in zip(batch, texts, strict=True):
                    answers[prompt.place] = text
                    found(prompt.place, text)
                done += len(batch)
                progress("answers", done, len(questions))
    return answers


def _generated(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    batch: Sequence[Prompt],
    store: FeatureStore,
    max_new_tokens: int,
    stop: StoppingCriteriaList,
) -> list[str]:
    """Return the greedy answers to a batch of prompts, white space around them cut off."""
    inputs = model_inputs(batch, processor, model.device)
    media = store.batch(model, processor, [one for p in batch for one in p.inputs])
    out = model.generate(
        # Embeddings instead of ids, so that only what is new comes back.
        inputs_embeds=model.embed(inputs["input_ids"], inputs["mm_token_type_ids"], media),
        attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        stopping_criteria=stop,
    )
    return [
        text.strip() for text in processor.tokenizer.batch_decode(out, skip_special_tokens=True)
    ]
