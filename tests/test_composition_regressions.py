"""What once went wrong in compositions, and must not again."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import modalloy
from modalloy.composition.configuration import ModalloyConfig
from modalloy.errors import FormatError, InputError
from tiny import tiny_base
from toy import ask, toy_parent, toy_registry

SEE = ask(("image", [0.3]), "what is it")
LONG = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}


@pytest.fixture
def made(tmp_path: Path) -> Any:
    base = tiny_base(tmp_path / "base", family="llama", seed=3)
    parents = [
        toy_parent(tmp_path / "p1", base, "sight", seed=1),
        toy_parent(tmp_path / "p2", base, "sound", seed=2),
    ]
    return modalloy.compose(base, parents=parents, registry=toy_registry())


def said(model: Any, batch: Any) -> torch.Tensor:
    options = {**LONG, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**batch, **options).logits)


def test_the_same_question_twice_gives_the_same_bits(made: Any) -> None:
    model, processor = made
    model = model.to(torch.bfloat16)
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    first = said(model, batch)
    assert torch.equal(said(model, batch), first)


def test_changed_deltas_change_the_next_answer(made: Any) -> None:
    model, processor = made
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    before = said(model, batch)
    layer = model.language_model.get_submodule("model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.text_A.mul_(3)
    after = said(model, batch)
    model.folding.limit = 0
    torch.testing.assert_close(after, said(model, batch), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


def test_without_a_mask_inputs_are_still_seen(made: Any) -> None:
    model, processor = made
    batch = dict(processor.apply_chat_template(SEE, add_generation_prompt=True))
    with_mask = model.generate(**batch, **LONG)
    del batch["attention_mask"]
    assert torch.equal(model.generate(**batch, **LONG), with_mask)


def test_a_second_turn_goes_on_from_the_cache(made: Any) -> None:
    model, processor = made
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    cache = DynamicCache(config=model.config.get_text_config())
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    first = model.generate(**batch, past_key_values=cache, **options)
    more = torch.tensor([[7, 8, 9]])
    ids = torch.cat([first, more], dim=1)
    with pytest.raises(InputError, match="give mm_token_type_ids over the whole conversation"):
        model.generate(ids, past_key_values=copy.deepcopy(cache), **options)
    old = batch["mm_token_type_ids"]
    types = torch.cat([old, old.new_zeros(1, ids.shape[1] - old.shape[1])], dim=1)
    whole = torch.cat([batch["input_ids"], ids[:, old.shape[1] :]], dim=1)
    goal = model.generate(
        whole, mm_token_type_ids=types, sight_values=batch["sight_values"], **options
    )
    found = model.generate(ids, mm_token_type_ids=types, past_key_values=cache, **options)
    assert torch.equal(found[:, ids.shape[1] :], goal[:, ids.shape[1] :])


def test_autocast_runs(made: Any) -> None:
    model, processor = made
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = model(**batch).logits.float()
    goal = model(**batch).logits
    assert (found - goal).abs().max() < 0.1 * goal.std()


def test_copies_answer_alike(made: Any) -> None:
    model, processor = made
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    features = model.encoders.run("sight", {"values": batch.pop("sight_values")}, model.device)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301  # our own
        with torch.no_grad():
            found = twin(**batch, sight_features=features).logits
            assert torch.equal(found, model(**batch, sight_features=features).logits)


def test_generation_config_may_be_positional(made: Any) -> None:
    model, processor = made
    batch = dict(processor.apply_chat_template(SEE, add_generation_prompt=True))
    ids = batch.pop("input_ids")
    config = GenerationConfig(max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
    assert model.generate(ids, config, **batch).shape[1] == ids.shape[1] + 2


def test_an_encoder_of_an_earlier_composition_is_removed(made: Any, tmp_path: Path) -> None:
    model, _ = made
    stale = tmp_path / "out" / "encoders" / "sight.safetensors"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    model.save_pretrained(tmp_path / "out")
    assert not stale.exists()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("token_type_id", 0, "token_type_id.*>= 1"),
        ("prefix_tokens", 10**10, "prefix_tokens.*<= 65536"),
        ("requires", 'evil"; sh', "must be a requirement such as"),
    ],
)
def test_hostile_numbers_and_names_are_refused(
    made: Any, key: str, value: object, text: str
) -> None:
    data = made[0].config.to_dict()
    data["modalities"]["sight"][key] = value
    with pytest.raises(FormatError, match=text):
        ModalloyConfig.from_dict(data)


def test_types_must_differ(made: Any) -> None:
    data = made[0].config.to_dict()
    data["modalities"]["sight"]["token_type_id"] = data["modalities"]["sound"]["token_type_id"]
    with pytest.raises(FormatError, match="two modalities have the same token_type_id"):
        ModalloyConfig.from_dict(data)
