"""Scoring: shared caches change no likelihood, and files of questions are read strictly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modalloy
from modalloy.errors import FormatError
from modalloy.evaluation.scoring import (
    Question,
    _continuation_scores,
    _tokenize_options,
    answer_freely,
    choose_options,
    read_questions,
)
from tiny import tiny_base
from toy import ask, toy_parent, toy_registry

QUESTIONS = [
    Question(id="1", kind="k", messages=ask(("image", [0.3]), "what is it"),
             options=["a", "the time is", "is"], answer=0),
    Question(id="2", kind="k", messages=ask(("audio", [0.2]), "and", ("image", [0.9]), "same?"),
             options=["the same", "what"], answer=1),
    Question(id="3", kind="k", messages=ask("what is the time, please, and the place"),
             options=["a", "b", "c", "dddd"], answer=1),
    Question(id="4", kind="k", messages=ask(("audio", [2.0]), "?"), options=["x", "y"], answer=1),
]  # fmt: skip


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("scoring")
    base = tiny_base(root / "base", seed=3)
    parents = [
        toy_parent(root / "p1", base, "sight", seed=1, prefix=2),
        toy_parent(root / "p2", base, "sound", seed=2),
    ]
    return modalloy.compose(base, parents=parents, registry=toy_registry())


@torch.no_grad()
def uncached(model: Any, processor: Any, question: Question) -> list[float]:
    """Log-likelihood of each option, from one pass over prompt and option together."""
    scores = []
    for option in question.options:
        batch = dict(processor.apply_chat_template(question.messages, add_generation_prompt=True))
        tokens = processor.tokenizer(option + "<|im_end|>", return_tensors="pt")["input_ids"]
        length = batch["input_ids"].shape[1]
        batch["input_ids"] = torch.cat([batch["input_ids"], tokens], 1)
        zeros = torch.zeros_like(tokens)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], zeros + 1], 1)
        batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], zeros], 1)
        logits = model(**batch).logits[0, length - 1 : -1].log_softmax(-1)
        scores.append(logits.gather(1, tokens[0][:, None]).sum().item())
    return scores


def test_likelihoods_are_those_of_uncached_passes(composed: Any) -> None:
    model, processor = composed
    prompts = [q.messages for q in QUESTIONS]
    inputs = processor.apply_chat_template(prompts, add_generation_prompt=True)
    options, counts = _tokenize_options(processor, QUESTIONS, model.device)
    assert counts == [3, 2, 4, 2]
    with torch.no_grad():
        found = _continuation_scores(model, inputs, options, counts)
    goal = torch.tensor([s for q in QUESTIONS for s in uncached(model, processor, q)])
    torch.testing.assert_close(found, goal, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_likeliest_option_is_chosen(composed: Any, batch_size: int) -> None:
    seen: list[tuple[str, int, int]] = []
    chosen = choose_options(
        *composed, QUESTIONS, batch_size=batch_size, progress=lambda *step: seen.append(step)
    )
    scores = [uncached(*composed, question) for question in QUESTIONS]
    assert chosen == [row.index(max(row)) for row in scores]
    assert seen[-1] == ("options", 4, 4)


def test_free_answers_are_the_same_in_any_batch(composed: Any) -> None:
    together = answer_freely(*composed, QUESTIONS, max_new_tokens=4)
    apart = answer_freely(*composed, QUESTIONS, batch_size=1, max_new_tokens=4)
    assert together == apart
    assert len(together) == 4
    assert not any("<|" in answer for answer in together)


def line(**changes: Any) -> str:
    data = {"id": "1", "kind": "k", "options": ["a", "b"], "answer": 1}
    data["messages"] = [{"role": "user", "content": [{"type": "image", "path": "media/x.png"}]}]
    return json.dumps({**data, **changes})


def test_questions_are_read_with_their_media_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(line() + "\n" + line(messages=[{"role": "user", "content": "hi"}]) + "\n")
    first, second = read_questions(file)
    assert first.messages[0]["content"][0]["path"] == tmp_path / "media" / "x.png"
    assert second.messages == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        (line() + "\n" + line(answer=2), "line 2: answer 2 is no option"),
        (line(answer=-1), "line 1: answer -1 is no option"),
        (line(answr=1), "line 1: answr is not a known key"),
        (line(options="ab"), "options"),
        (line(messages=[{"role": "user"}]), "line 1: a message has no content"),
        ("[]", "expected a mapping of keys, found list"),
    ],
)
def test_malformed_questions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(FormatError) as caught:
        read_questions(tmp_path / "q.jsonl")
    assert message in str(caught.value)
    assert "q.jsonl" in str(caught.value)


def test_no_questions_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"q\.jsonl cannot be read"):
        read_questions(tmp_path / "q.jsonl")
