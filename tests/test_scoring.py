"""Scoring: trees and shared openings change no likelihood; questions are read strictly."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import modalloy
from modalloy.composition import folding
from modalloy.composition.layers import StreamLinear
from modalloy.errors import FormatError
from modalloy.evaluation import scoring, trees
from modalloy.evaluation.prompts import lay_out
from modalloy.evaluation.questions import Question, read_questions
from modalloy.evaluation.scoring import answer_freely, choose_options, score_options
from modalloy.evaluation.trees import grow, open_group, takes_trees
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
    Question(id="5", kind="k", messages=ask("what is it: ", ("image", [0.6]), "then?"),
             options=["the time is a", "the time is", "the time is", "the"], answer=1),
    Question(id="6", kind="k", messages=ask("the what is a", ("image", [0.1])),
             options=["is", "isis"], answer=1),
    Question(id="7", kind="k", messages=ask("the what"), options=["is", "is a"], answer=1),
]  # fmt: skip


@pytest.fixture(scope="module", params=["damc", "naive"])
def composed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("scoring")
    base = tiny_base(root / "base", seed=3)
    strategy = "decoupled" if request.param == "damc" else "naive"
    parents = [
        toy_parent(root / "p1", base, "sight", seed=1, prefix=2, strategy=strategy),
        toy_parent(root / "p2", base, "sound", seed=2, strategy=strategy),
    ]
    return modalloy.compose(base, parents=parents, method=request.param, registry=toy_registry())


@torch.no_grad()
def alone(model: Any, processor: Any, question: Question) -> list[float]:
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


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("way", ["trees", "cached"])
def test_likelihoods_are_those_of_passes_of_their_own(
    composed: Any, way: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert takes_trees(composed[0])
    monkeypatch.setattr(scoring, "takes_trees", lambda _: way == "trees")
    limit, seen = composed[0].folding.limit, []
    found = score_options(
        *composed, QUESTIONS, batch_size=batch_size, progress=lambda *step: seen.append(step)
    )
    for question, row in zip(QUESTIONS, found, strict=True):
        goal = torch.tensor(alone(*composed, question))
        torch.testing.assert_close(torch.tensor(row), goal, rtol=1e-4, atol=1e-4)
    assert seen[-1] == ("options", 7, 7)
    assert composed[0].folding.limit == limit
    best = [row.index(max(row)) for row in found]
    assert choose_options(*composed, QUESTIONS, batch_size=batch_size) == best


def test_each_set_of_modalities_is_scored_on_weights_folded_once(
    composed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folds = composed[0], []
    fold, unfold = folding.fold_text, folding.unfold_text
    monkeypatch.setattr(folding, "fold_text", lambda *args: folds.append("fold") or fold(*args))
    monkeypatch.setattr(folding, "unfold_text", lambda m: folds.append("unfold") or unfold(m))
    score_options(*composed, QUESTIONS, batch_size=1)
    sets = {tuple(sorted(q.content_types)) for q in QUESTIONS}
    assert folds == ["fold", "unfold"] * len(sets)
    assert all(one.folded is None for one in model.modules() if isinstance(one, StreamLinear))


def test_no_weights_are_folded_beyond_the_limit(
    composed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composed[0].folding, "limit", 0)
    monkeypatch.setattr(folding, "fold_text", lambda *_: pytest.fail("weights were folded"))
    texts = [attrs.evolve(QUESTIONS[2], id=str(i)) for i in range(40)]
    found = score_options(*composed, texts, batch_size=2)
    goal = torch.tensor([alone(*composed, texts[0])] * 40)
    torch.testing.assert_close(torch.tensor(found), goal, rtol=1e-4, atol=1e-4)


def test_eager_attention_scores_the_same(composed: Any) -> None:
    found = score_options(*composed, QUESTIONS)
    config = composed[0].language_model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        again = score_options(*composed, QUESTIONS)
    finally:
        config._attn_implementation = before
    for a, b in zip(found, again, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_a_batch_is_cut_where_its_logits_would_be_too_many(
    composed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = score_options(*composed, QUESTIONS)
    sizes: list[int] = []
    plain = trees.tree_scores
    monkeypatch.setattr(
        scoring, "tree_scores", lambda m, batch, *r: sizes.append(len(batch)) or plain(m, batch, *r)
    )
    monkeypatch.setattr(scoring, "LOGITS", 1)
    again = score_options(*composed, QUESTIONS)
    assert sizes == [1] * 7
    for a, b in zip(found, again, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_a_tree_holds_what_options_share_once() -> None:
    tree = grow([[5, 6, 7, 1], [5, 6, 8, 1], [5, 1], [9]])
    assert tree.tokens == [5, 6, 7, 8]
    assert tree.above == [-1, 0, 1, 1]
    assert tree.depth == [0, 1, 2, 2]
    assert [step for step in tree.steps if step[0] == 1] == [
        (1, -1, 5), (1, 0, 6), (1, 1, 8), (1, 3, 1)]  # fmt: skip
    assert (2, 0, 1) in tree.steps
    assert (3, -1, 9) in tree.steps


def test_an_opening_ends_before_the_first_input_and_before_the_last_token(composed: Any) -> None:
    model, processor = composed
    store = modalloy.composition.features.FeatureStore()
    pictures = [p for p in lay_out(processor, QUESTIONS) if p.present == ("sight",)]
    with torch.no_grad():
        opening = open_group(model, processor, pictures, store)
        same = open_group(model, processor, lay_out(processor, [QUESTIONS[2]] * 2), store)
    text = processor.tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    assert opening.length == len(text)
    assert opening.cache.get_seq_length() == opening.length
    assert same.length == len(lay_out(processor, [QUESTIONS[2]])[0].ids) - 1


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"sliding_window": 64}, False),
        ({"sliding_window": 64, "use_sliding_window": False}, True),
        ({"_attn_implementation": "flash_attention_2"}, False),
        ({"rope_parameters": None, "rope_theta": None}, False),
    ],
)
def test_only_full_attention_with_rotary_positions_takes_trees(
    composed: Any, changes: dict[str, Any], *, takes: bool
) -> None:
    class Stand:
        language_model = composed[0].language_model

        class config:
            @staticmethod
            def get_text_config() -> Any:
                return type("Config", (), {
                    "layer_types": None, "sliding_window": None, "rope_parameters": {"a": 1},
                    "_attn_implementation": "sdpa", **changes})  # fmt: skip

    stand: Any = Stand
    assert takes_trees(stand) is takes


def test_free_answers_are_the_same_in_any_batch(composed: Any) -> None:
    together = answer_freely(*composed, QUESTIONS, max_new_tokens=4)
    apart = answer_freely(*composed, QUESTIONS, batch_size=1, max_new_tokens=4)
    assert together == apart
    model, processor = composed
    for question, answer in zip(QUESTIONS, together, strict=True):
        inputs = processor.apply_chat_template(question.messages, add_generation_prompt=True)
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_an_answer_may_end_with_its_first_character(composed: Any) -> None:
    whole = answer_freely(*composed, QUESTIONS, max_new_tokens=24)
    short = answer_freely(*composed, QUESTIONS, max_new_tokens=24, first_character=True)
    assert any(len(a) > len(b) for a, b in zip(whole, short, strict=True))
    known = [(a, b) for a, b in zip(whole, short, strict=True) if b[:1] != "\ufffd"]
    assert known
    assert all(a.startswith(b) and bool(a) == bool(b) for a, b in known)


def line(**changes: Any) -> str:
    data = {"id": "1", "kind": "k", "options": ["a", "b"], "answer": 1}
    data["messages"] = [{"role": "user", "content": [{"type": "image", "path": "media/x.png"}]}]
    return json.dumps({**data, **changes})


def test_questions_are_read_with_their_media_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(line() + "\n" + line(messages=[{"role": "user", "content": "hi"}]) + "\n")
    first, second = read_questions(file)
    assert first.messages[0]["content"][0]["path"] == tmp_path / "media" / "x.png"
    assert first.content_types == ("image",)
    assert second.messages == [{"role": "user", "content": "hi"}]
    assert second.content_types == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        (line() + "\n" + line(answer=2), "line 2: answer 2 is no option"),
        (line(answer=-1), "line 1: answer -1 is no option"),
        (line(answer=None), "line 1: answer None is no option"),
        (line(options=[]), "line 1: there are neither options nor a reference"),
        (line(answr=1), "line 1: answr is not a known key"),
        (line(options="ab"), "options"),
        *(
            (line(messages=[{"role": "user", "content": bad}]), "line 1: a message's content must")
            for bad in (None, 5, {"type": "text"})
        ),
        *(
            (line(messages=[{"role": "user", "content": [bad]}]), "line 1: expected {'type'")
            for bad in (
                5,
                "path",
                {"path": "a.png"},
                {"type": "image", "path": 5},
                {"type": "image", "image": "a.png"},
                {"type": "text", "text": 5},
            )
        ),
        *(
            (
                line(messages=[{"role": "user", "content": [{"type": "image", "path": path}]}]),
                "leads outside",
            )
            for path in ("../a.png", "/etc/hostname", "b/../../a.png")
        ),
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
