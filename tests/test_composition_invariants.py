"""The five invariants of a composition, on tiny bases of two families."""

import copy
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import modalloy
from composing import BOTH, CLOSE, HEAR, SEE, TEXT, compose, embeds, expected, logits, oracle
from modalloy.composition.caches import CACHE
from modalloy.composition.layers import StreamLinear
from modalloy.deltas.lowrank import read_adapter
from modalloy.errors import InputError
from tiny import FAMILIES, tiny_base
from toy import ask, toy_parent, toy_registry


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", family=request.param, seed=3)


@pytest.fixture
def parents(base: Path, tmp_path: Path) -> dict[str, Path]:
    return {
        "sight": toy_parent(tmp_path / "p1", base, "sight", seed=1, prefix=2),
        "sound": toy_parent(tmp_path / "p2", base, "sound", seed=2, suffix=1),
    }


def test_one_parent_alone_is_that_parent(base: Path, parents: dict[str, Path]) -> None:
    for name, messages in (("sight", SEE), ("sound", HEAR)):
        model, processor = compose(base, [parents[name]])
        batch = processor.apply_chat_template(messages, add_generation_prompt=True)
        goal = expected(base, model, batch, {name: parents[name]}, [{name: 1.0}])
        torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


def test_one_modality_present_restores_its_parent(base: Path, parents: dict[str, Path]) -> None:
    together, processor = compose(base, list(parents.values()))
    for name, messages in (("sight", SEE), ("sound", HEAR)):
        alone, own = compose(base, [parents[name]])
        batch = processor.apply_chat_template(messages)
        torch.testing.assert_close(
            logits(together, batch), logits(alone, own.apply_chat_template(messages)), **CLOSE
        )


def test_text_alone_is_the_base_to_the_bit(base: Path, parents: dict[str, Path]) -> None:
    model, processor = compose(base, list(parents.values()))
    batch = processor.apply_chat_template(TEXT)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        goal = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(logits(model, batch), goal)


@pytest.mark.parametrize("stacked", [True, False])
def test_rows_of_a_batch_take_their_own_coefficients(
    base: Path, parents: dict[str, Path], *, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = compose(
        base,
        list(parents.values()),
        coefficients={frozenset({"sight", "sound"}): {"sight": 0.25, "sound": 0.75}},
    )
    batch = processor.apply_chat_template([SEE, HEAR, BOTH, TEXT], add_generation_prompt=True)
    assert (batch["attention_mask"] == 0).any(), "the rows should differ in length"
    monkeypatch.setattr(StreamLinear, "_stacking_pays", lambda *_: stacked)
    rows = [
        {"sight": 1.0, "sound": 0.0},
        {"sight": 0.0, "sound": 1.0},
        {"sight": 0.25, "sound": 0.75},
        {"sight": 0.0, "sound": 0.0},
    ]
    goal = expected(base, model, batch, parents, rows)
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(model, batch)[kept], goal[kept], **CLOSE)


@pytest.mark.parametrize(("rule", "value"), [("mean", 0.5), ("sum", 1.0)])
def test_naive_runs_every_token_on_the_merged_delta(
    base: Path, tmp_path: Path, rule: str, value: float
) -> None:
    naive = {
        name: toy_parent(tmp_path / name, base, name, strategy="naive", seed=seed)
        for seed, name in enumerate(("sight", "sound"))
    }
    model, processor = compose(base, list(naive.values()), method="naive", coefficients=rule)
    batch = processor.apply_chat_template([BOTH])
    masked = [(read_adapter(p / "text_adapter"), torch.tensor(value)) for p in naive.values()]
    goal = oracle(base, embeds(model, batch), batch["attention_mask"], masked)
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


def test_naive_parents_decouple_after_the_fact(base: Path, tmp_path: Path) -> None:
    path = toy_parent(tmp_path / "n", base, "sight", strategy="naive", seed=5)
    model, processor = compose(base, [path])
    batch = processor.apply_chat_template([SEE])
    everywhere = [(read_adapter(path / "text_adapter"), torch.tensor(1.0))]
    goal = oracle(base, embeds(model, batch), batch["attention_mask"], everywhere)
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


def test_cached_decoding_gives_the_logits_of_the_whole(
    base: Path, parents: dict[str, Path]
) -> None:
    model, processor = compose(base, list(parents.values()))
    batch = processor.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    out = model.generate(
        **batch,
        max_new_tokens=4,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        min_new_tokens=4,
    )
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    whole = dict(batch)
    whole["input_ids"] = torch.cat([batch["input_ids"], new], 1)
    ones = torch.ones_like(new)
    whole["attention_mask"] = torch.cat([batch["attention_mask"], ones], 1)
    whole["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], ones * 0], 1)
    goal = logits(model, whole)[:, -5:-1]
    torch.testing.assert_close(torch.stack(out.logits, 1), goal, **CLOSE)


def test_order_of_parents_and_plugins_changes_no_bit(base: Path, parents: dict[str, Path]) -> None:
    first, processor = compose(base, list(parents.values()))
    second, other = compose(
        base, list(parents.values())[::-1], registry=toy_registry("sound", "sight")
    )
    batch = processor.apply_chat_template([SEE, BOTH])
    again = other.apply_chat_template([SEE, BOTH])
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert torch.equal(logits(first, batch), logits(second, again))
    assert first.config.to_dict() == second.config.to_dict()


def test_saved_and_loaded_it_says_the_same(
    base: Path, parents: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = compose(base, list(parents.values()))
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, reader = modalloy.load(tmp_path / "out", registry=toy_registry())
    batch = processor.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    reread = reader.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    assert {k: v.tolist() for k, v in batch.items()} == {k: v.tolist() for k, v in reread.items()}
    assert torch.equal(logits(model, batch), logits(again, batch))
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**batch, **options), again.generate(**reread, **options))
    assert again.provenance == model.provenance


def test_beams_and_samples_run_with_penalties(base: Path, parents: dict[str, Path]) -> None:
    model, processor = compose(base, list(parents.values()))
    batch = processor.apply_chat_template([BOTH, SEE], add_generation_prompt=True)
    prompt = batch["input_ids"].shape[1]
    beams = model.generate(**batch, num_beams=3, max_new_tokens=3, repetition_penalty=1.3)
    sampled = model.generate(**batch, do_sample=True, num_return_sequences=2, max_new_tokens=3)
    assert beams.shape[0] == 2
    assert sampled.shape[0] == 4
    assert sampled.shape[1] <= prompt + 3


def test_presence_needs_the_whole_prompt_in_cached_decoding(
    base: Path, parents: dict[str, Path]
) -> None:
    model, processor = compose(base, list(parents.values()))
    batch = processor.apply_chat_template([SEE])
    with torch.no_grad():
        cache = model(**batch, use_cache=True)[CACHE]
        with pytest.raises(InputError, match="depend on the whole prompt: give it over all"):
            model(input_ids=torch.tensor([[5]]), past_key_values=copy.deepcopy(cache))


@pytest.mark.parametrize("stacked", [True, False])
def test_random_layouts_agree_with_the_oracle(
    base: Path, parents: dict[str, Path], *, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamLinear, "_stacking_pays", lambda *_: stacked)
    model, processor = compose(base, list(parents.values()), coefficients="uniform")
    draw = random.Random(0)  # noqa: S311  # layouts, not secrets
    kinds = [("image", [0.4]), ("audio", [1.1]), "word ", "some longer words "]
    for _ in range(5):
        chats = [ask(*draw.choices(kinds, k=draw.randint(1, 5)), "x") for _ in range(3)]
        batch = processor.apply_chat_template(chats)
        rows = [{"sight": 0.5, "sound": 0.5}] * 3
        goal = expected(base, model, batch, parents, rows)
        kept = batch["attention_mask"].bool()
        torch.testing.assert_close(logits(model, batch)[kept], goal[kept], **CLOSE)


def test_long_answers_are_decoded_on_folded_weights(base: Path, parents: dict[str, Path]) -> None:
    model, processor = compose(base, list(parents.values()))
    batch = processor.apply_chat_template([SEE], add_generation_prompt=True)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    folded = model.generate(**batch, **options)
    assert model.router.runs_folded
    layer = model.language_model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.folded is not None
    other = processor.apply_chat_template([HEAR], add_generation_prompt=True)
    model.generate(**other, max_new_tokens=2, do_sample=False)
    assert layer.folded is None, "another prompt has other coefficients"
    model.folding.limit = 0
    plain = model.generate(**batch, **options)
    assert layer.folded is None
    assert torch.equal(folded.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(folded.logits), torch.stack(plain.logits), **CLOSE)
