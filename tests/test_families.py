"""The invariants of a composition on every family of bases."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

import modalloy
from composing import BOTH, CLOSE, HEAR, SEE, TEXT, compose, embeds, expected, logits
from modalloy.composition.caches import CACHE
from modalloy.composition.layers import StreamLinear
from modalloy.deltas.lowrank import read_adapter
from modalloy.families import explain_absence
from tiny import ALL_FAMILIES, small_config, small_model, tiny_base, tiny_model, write_base
from toy import toy_parent, toy_registry

NEW = 4
DECODE = {
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


class Family(NamedTuple):
    base: Path
    parents: dict[str, Path]
    model: Any
    processor: Any


@pytest.fixture(scope="module", params=ALL_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A base, two parents of it, and both composed; no test changes any of them."""
    path = tmp_path_factory.mktemp(request.param)
    base = tiny_base(path / "base", family=request.param, seed=3)
    parents = {
        "sight": toy_parent(path / "p1", base, "sight", seed=1, prefix=2),
        "sound": toy_parent(path / "p2", base, "sound", seed=2, suffix=1),
    }
    model, processor = compose(
        base,
        list(parents.values()),
        coefficients={frozenset({"sight", "sound"}): {"sight": 0.25, "sound": 0.75}},
    )
    return Family(base, parents, model, processor)


def whole(batch: Any, new: torch.Tensor) -> dict[str, Any]:
    """The prompt and what was decoded after it, as one pass."""
    ones = torch.ones_like(new)
    return {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], new], 1),
        "attention_mask": torch.cat([batch["attention_mask"], ones], 1),
        "mm_token_type_ids": torch.cat([batch["mm_token_type_ids"], 0 * ones], 1),
    }


@pytest.mark.parametrize(("name", "messages"), [("sight", SEE), ("sound", HEAR)])
def test_one_parent_alone_is_that_parent(family: Family, name: str, messages: Any) -> None:
    own = {name: family.parents[name]}
    model, processor = compose(family.base, list(own.values()))
    batch = processor.apply_chat_template(messages, add_generation_prompt=True)
    goal = expected(family.base, model, batch, own, [{name: 1.0}])
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)
    out = model.generate(**batch, **DECODE)
    batch = whole(batch, out.sequences[:, batch["input_ids"].shape[1] :])
    goal = expected(family.base, model, batch, own, [{name: 1.0}])
    torch.testing.assert_close(torch.stack(out.logits, 1), goal[:, -NEW - 1 : -1], **CLOSE)


def test_a_naive_parent_is_the_base_with_its_delta_in_the_weights(
    family: Family, tmp_path: Path
) -> None:
    """No hook on a layer takes part here: a weight that is read past its layer would show."""
    parent = toy_parent(tmp_path / "n", family.base, "sight", strategy="naive", seed=5)
    model, processor = compose(family.base, [parent])
    batch = processor.apply_chat_template([SEE])
    merged = AutoModelForCausalLM.from_pretrained(family.base).eval()
    with torch.no_grad():
        for name, pair in read_adapter(parent / "text_adapter").pairs.items():
            merged.get_submodule(name).weight += pair.dense()
        inputs = {"inputs_embeds": embeds(model, batch), "attention_mask": batch["attention_mask"]}
        torch.testing.assert_close(logits(model, batch), merged(**inputs).logits, **CLOSE)


@pytest.mark.parametrize(("name", "messages"), [("sight", SEE), ("sound", HEAR)])
def test_one_modality_present_restores_its_parent(family: Family, name: str, messages: Any) -> None:
    alone, own = compose(family.base, [family.parents[name]])
    found = logits(family.model, family.processor.apply_chat_template(messages))
    torch.testing.assert_close(found, logits(alone, own.apply_chat_template(messages)), **CLOSE)


def test_text_alone_is_the_base_to_the_bit(family: Family) -> None:
    batch = family.processor.apply_chat_template(TEXT)
    plain = AutoModelForCausalLM.from_pretrained(family.base).eval()
    with torch.no_grad():
        goal = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(logits(family.model, batch), goal)


@pytest.mark.parametrize("stacked", [True, False])
def test_rows_of_a_padded_batch_take_their_own_coefficients(
    family: Family, *, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = family.processor.apply_chat_template([SEE, HEAR, BOTH, TEXT])
    kept = batch["attention_mask"].bool()
    assert not kept.all(), "the rows should differ in length"
    monkeypatch.setattr(StreamLinear, "_stacking_pays", lambda *_: stacked)
    rows = [
        {"sight": 1.0, "sound": 0.0},
        {"sight": 0.0, "sound": 1.0},
        {"sight": 0.25, "sound": 0.75},
        {"sight": 0.0, "sound": 0.0},
    ]
    goal = expected(family.base, family.model, batch, family.parents, rows)
    torch.testing.assert_close(logits(family.model, batch)[kept], goal[kept], **CLOSE)


def test_padding_changes_no_answer(family: Family) -> None:
    chats = [TEXT, SEE, BOTH]
    batch = family.processor.apply_chat_template(chats, add_generation_prompt=True)
    together = torch.stack(family.model.generate(**batch, **DECODE).logits, 1)
    for row, chat in enumerate(chats):
        one = family.processor.apply_chat_template([chat], add_generation_prompt=True)
        alone = torch.stack(family.model.generate(**one, **DECODE).logits, 1)
        torch.testing.assert_close(together[row], alone[0], **CLOSE)


def test_order_changes_no_bit(family: Family) -> None:
    other, processor = compose(
        family.base,
        list(family.parents.values())[::-1],
        registry=toy_registry("sound", "sight"),
        coefficients={frozenset({"sight", "sound"}): {"sound": 0.75, "sight": 0.25}},
    )
    batch = family.processor.apply_chat_template([SEE, BOTH])
    again = processor.apply_chat_template([SEE, BOTH])
    assert torch.equal(logits(family.model, batch), logits(other, again))
    assert family.model.config.to_dict() == other.config.to_dict()


def test_saved_and_loaded_it_says_the_same(family: Family, tmp_path: Path) -> None:
    family.model.save_pretrained(tmp_path / "out")
    family.processor.save_pretrained(tmp_path / "out")
    again, reader = modalloy.load(tmp_path / "out", registry=toy_registry())
    batch = family.processor.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    reread = reader.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    assert torch.equal(logits(family.model, batch), logits(again, reread))
    options = {"max_new_tokens": 6, "do_sample": False}
    first = family.model.generate(**batch, **options)
    assert torch.equal(first, again.generate(**reread, **options))


def test_long_answers_are_decoded_on_folded_weights(family: Family) -> None:
    model = family.model
    batch = family.processor.apply_chat_template([SEE], add_generation_prompt=True)
    options = {**DECODE, "max_new_tokens": 20, "min_new_tokens": 20}
    folded = model.generate(**batch, **options)
    layers = [m for m in model.modules() if isinstance(m, StreamLinear) and m.text_layout]
    assert all(layer.folded is not None for layer in layers)
    assert len(layers) == len(read_adapter(family.parents["sight"] / "text_adapter").pairs)
    limit, model.folding.limit = model.folding.limit, 0
    plain = model.generate(**batch, **options)
    model.folding.limit = limit
    assert all(layer.folded is None for layer in layers)
    assert torch.equal(folded.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(folded.logits), torch.stack(plain.logits), **CLOSE)


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_every_linear_layer_runs_once_on_the_tokens_of_a_pass(name: str) -> None:
    model = tiny_model(name)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert all(type(module) is nn.Linear for module in linears.values())
    assert all(explain_absence(n, model) is None for n in linears)
    seen: dict[str, list[int]] = {n: [] for n in linears}
    for n, module in linears.items():

        def count(_: Any, args: Any, __: Any, counts: list[int] = seen[n]) -> None:
            counts.append(args[0].flatten(0, -2).shape[0])

        module.register_forward_hook(count)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.randint(3, 99, (2, 20)), **{CACHE: cache})
        model(input_ids=torch.randint(3, 99, (2, 1)), **{CACHE: cache})
    assert set(map(tuple, seen.values())) == {(40, 2)}


class TestGemma3:
    """Text embeddings are scaled and media are not, as in transformers' own multimodal class."""

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return tiny_base(tmp_path / "base", family="gemma3", seed=3)

    def test_media_are_not_scaled(self, base: Path, tmp_path: Path) -> None:
        parent = toy_parent(tmp_path / "p", base, "sight", seed=1)
        model, processor = compose(base, [parent])
        batch = processor.apply_chat_template(SEE)
        found = embeds(model, batch)
        media = (batch["mm_token_type_ids"] != 0)[0]
        vectors = model.encode("sight", {"values": batch["sight_values"]})
        torch.testing.assert_close(found[0, media], vectors.flatten(0, 1), rtol=0, atol=0)
        weight = model.get_input_embeddings().weight[batch["input_ids"][0, ~media]]
        torch.testing.assert_close(found[0, ~media], weight * 32**0.5)

    def test_it_is_what_the_multimodal_class_computes(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parent = toy_parent(tmp_path / "p", base, "sight", strategy="naive", seed=1)
        model, processor = compose(base, [parent], method="naive", coefficients="zero")
        batch = processor.apply_chat_template(SEE)
        place = model.config.modalities["sight"]["placeholder_id"]
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        config = transformers.Gemma3Config(
            text_config=model.config.text_config.to_dict(),
            vision_config=vision,
            image_token_id=place,
            mm_tokens_per_image=3,
        )
        whole_model = transformers.Gemma3ForConditionalGeneration(config).eval()
        plain = AutoModelForCausalLM.from_pretrained(base)
        whole_model.model.language_model.load_state_dict(plain.model.state_dict())
        whole_model.lm_head.load_state_dict(plain.lm_head.state_dict())
        vectors = model.encode("sight", {"values": batch["sight_values"]})

        features = BaseModelOutputWithPooling(pooler_output=vectors)
        monkeypatch.setattr(whole_model.model, "get_image_features", lambda *_, **__: features)
        with torch.no_grad():
            goal = whole_model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                pixel_values=torch.zeros(1, 3, 8, 8),
            ).logits
        torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


def test_experts_run_as_in_the_base(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", family="qwen3_moe", seed=3)
    model, processor = compose(base, [toy_parent(tmp_path / "p", base, "sight", seed=1)])
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert model.language_model.config._experts_implementation == "grouped_mm"
    assert plain.config._experts_implementation == "grouped_mm"
    batch = processor.apply_chat_template(SEE)
    goal = logits(model, batch)
    before = model.get_experts_implementation()
    # What transformers' generate does for decoding on an accelerator.
    model.set_experts_implementation({n: "batched_mm" for n, v in before.items() if v != "eager"})
    assert model.language_model.config._experts_implementation == "batched_mm"
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, _ = modalloy.load(tmp_path / "out", registry=toy_registry())
    assert again.language_model.config._experts_implementation == "grouped_mm"


def test_learned_positions_do_not_count_padding(tmp_path: Path) -> None:
    """Rotary positions are relative, so that only such a base shows the difference."""
    config = small_config("gpt_bigcode", intermediate_size=None, head_dim=None)
    base = write_base(tmp_path / "base", small_model(config))
    parent = toy_parent(tmp_path / "p", base, "sight", seed=1)
    model, processor = compose(base, [parent])
    chats = [TEXT, SEE]
    batch = processor.apply_chat_template(chats, add_generation_prompt=True)
    assert (batch["attention_mask"] == 0).any()
    together = torch.stack(model.generate(**batch, **DECODE).logits, 1)
    for row, chat in enumerate(chats):
        one = processor.apply_chat_template([chat], add_generation_prompt=True)
        alone = torch.stack(model.generate(**one, **DECODE).logits, 1)
        torch.testing.assert_close(together[row], alone[0], **CLOSE)


def test_positions_go_on_where_the_base_does_not_count_them(tmp_path: Path) -> None:
    """Bamba takes the positions of decoded tokens from its caller."""
    config = small_config(
        "bamba",
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
    )
    base = write_base(tmp_path / "base", small_model(config))
    model, processor = compose(base, [toy_parent(tmp_path / "p", base, "sight", seed=1)])
    batch = processor.apply_chat_template([SEE], add_generation_prompt=True)
    out = model.generate(**batch, **DECODE)
    goal = logits(model, whole(batch, out.sequences[:, batch["input_ids"].shape[1] :]))
    torch.testing.assert_close(torch.stack(out.logits, 1), goal[:, -NEW - 1 : -1], **CLOSE)


def test_what_a_base_computes_from_its_configuration_is_there_after_loading(tmp_path: Path) -> None:
    """Falcon-H1 fills buffers of its layers, which no file holds, once for all of them."""
    config = small_config(
        "falcon_h1",
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_d_ssm=64,
        ssm_multipliers=[0.5, 2.0, 1.5, 0.7, 1.2],
    )
    base = write_base(tmp_path / "base", small_model(config))
    assert '"__float__"' in (base / "config.json").read_text(), "time_step_limit ends at infinity"
    model, processor = compose(base, [toy_parent(tmp_path / "p", base, "sight", seed=1)])
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, _ = modalloy.load(tmp_path / "out", registry=toy_registry())
    batch = processor.apply_chat_template([SEE])
    assert torch.equal(logits(model, batch), logits(again, batch))
