"""The composed model as a module: losses, gradients, dtypes, and wrong inputs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM

import modalloy
from modalloy.composition.coefficients import Coefficients
from modalloy.composition.connecting import ModalityConnector
from modalloy.composition.layers import StreamLinear
from modalloy.composition.loss import IGNORED
from modalloy.composition.streams import StreamRouter, route
from modalloy.errors import InputError, MissingComponentError, ModalloyError, SpecError
from tiny import tiny_base
from toy import ask, toy_parent, toy_registry

CLOSE: Any = {"rtol": 1e-4, "atol": 1e-5}
SEE = ask(("image", [0.3]), "what is it")
BOTH = ask(("audio", [0.2]), "and", ("image", [0.9]), "the same?")
TEXT = ask("what is the time")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("modeling")
    base = tiny_base(root / "base", seed=3)
    return {
        "base": base,
        "sight": toy_parent(root / "p1", base, "sight", seed=1, prefix=2),
        "sound": toy_parent(root / "p2", base, "sound", seed=2, suffix=1),
    }


def made(places: dict[str, Path], **settings: Any) -> Any:
    parents = [places["sight"], places["sound"]]
    return modalloy.compose(places["base"], parents=parents, registry=toy_registry(), **settings)


def batch_of(processor: Any, *chats: Any) -> dict[str, torch.Tensor]:
    """A batch in which the last six tokens of every row have labels."""
    batch = dict(processor.apply_chat_template(list(chats)))
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[:, -6:] = batch["input_ids"][:, -6:]
    labels[0, -3] = IGNORED
    return {**batch, "labels": labels}


def test_the_loss_is_the_cross_entropy_of_full_logits(places: dict[str, Path]) -> None:
    model, processor = made(places)
    batch = batch_of(processor, SEE, BOTH, TEXT)
    labels = batch.pop("labels")
    with torch.no_grad():
        full = model(**batch).logits
        out = model(**batch, labels=labels)
        summed = model(**batch, labels=labels, num_items_in_batch=torch.tensor(50))
    flat, goal = full[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.testing.assert_close(out.loss, F.cross_entropy(flat, goal, ignore_index=IGNORED), **CLOSE)
    whole = F.cross_entropy(flat, goal, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(summed.loss, whole / 50, **CLOSE)
    columns = (labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)
    assert out.logits.shape[:2] == (3, 6)
    torch.testing.assert_close(out.logits, full[:, columns], **CLOSE)


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def freeze_base(model: Any) -> set[str]:
    """Freeze all but connectors and factors; return the names of what is left to train."""
    model.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    model.connectors.requires_grad_(True)  # noqa: FBT003
    for layer in model.language_model.modules():
        if isinstance(layer, StreamLinear):
            factors = [layer.text_A, layer.text_B]
            factors += [*layer.modality_A.values(), *layer.modality_B.values()]
            for factor in factors:
                factor.requires_grad_(True)  # noqa: FBT003
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_gradients_reach_only_what_is_trained_and_present(places: dict[str, Path]) -> None:
    model, processor = made(places)
    trained = freeze_base(model)
    found = gradients(model.train(), batch_of(processor, SEE))
    assert set(found) <= trained
    own = {name for name in trained if "sight" in name}
    assert own
    assert own <= set(found)
    # Of the last layer only query, key and value look at a picture's tokens' own stream for the
    # labelled text; every other factor of the modality does work, and gets a gradient.
    silent = {name for name in own if not found[name].any()}
    assert all(".layers.1." in name for name in silent), silent
    assert not {name for name in found if "sound" in name}
    assert any(value.any() for name, value in found.items() if "text_A" in name)


def test_checkpointing_gives_the_same_gradients(places: dict[str, Path]) -> None:
    plain, processor = made(places)
    saving, _ = made(places)
    batch = batch_of(processor, SEE, BOTH, TEXT)
    for model in (plain, saving):
        freeze_base(model.train())
    saving.activation_checkpointing_enable()
    expected, found = gradients(plain, batch), gradients(saving, batch)
    assert {layer.gradient_checkpointing for layer in saving.get_decoder().layers} == {True}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, name=name: f"{name}: {m}")


def test_bfloat16_runs_and_is_near(places: dict[str, Path]) -> None:
    exact, processor = made(places)
    model, _ = made(places, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    batch = processor.apply_chat_template([SEE, BOTH, TEXT])
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        goal, found = exact(**batch).logits[kept], model(**batch).logits[kept].float()
    # Three significant digits, through two layers of sums of about 50 terms.
    assert (found - goal).norm() / goal.norm() < 0.05
    assert model.generate(**batch, max_new_tokens=2).shape[0] == 3


def test_wrong_names_and_missing_inputs(places: dict[str, Path]) -> None:
    model, processor = made(places)
    batch = dict(processor.apply_chat_template(SEE))
    values = batch.pop("sight_values")
    with pytest.raises(InputError, match=r"sight: the prompt has placeholder tokens and there are"):
        model(**batch)
    with pytest.raises(InputError, match=r"sight: the prompt has placeholder tokens and there are"):
        model(**batch, sigth_values=values)
    with pytest.raises(InputError, match=r"encoder of 'sight': .*it was given sight_vales\."):
        model(**batch, sight_vales=values)
    with pytest.raises(InputError, match=r"has 5 placeholder tokens, 2 inputs of 5 tokens need 10"):
        model(**batch, sight_values=values.repeat(2, 1, 1))
    with pytest.raises(InputError, match=r"sound: the prompt has 0 placeholder tokens, 1 inputs"):
        model(**batch, sight_values=values, sound_values=values)
    with pytest.raises(InputError, match=r"'other_values', which no modality .* are sight, sound"):
        model.embed(batch["input_ids"], batch["mm_token_type_ids"], {"other_values": values})


def test_wrong_types_and_both_or_no_prompts(places: dict[str, Path]) -> None:
    model, processor = made(places)
    batch = dict(processor.apply_chat_template(SEE))
    foreign = torch.where(batch["mm_token_type_ids"] == 1, 2, 0)
    with pytest.raises(
        InputError, match=r"holds \[2\], which .*types are 0 text, 1 sight, 3 sound"
    ):
        model(**{**batch, "mm_token_type_ids": foreign})
    embeds = torch.zeros(1, 4, 32)
    with pytest.raises(InputError, match="either input_ids or inputs_embeds, and not both"):
        model(input_ids=batch["input_ids"], inputs_embeds=embeds)
    with pytest.raises(InputError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(InputError, match="generate needs input_ids or inputs_embeds"):
        model.generate()
    with pytest.raises(InputError, match="inputs_embeds leave no place for sight_values"):
        model(inputs_embeds=embeds, sight_values=batch["sight_values"])


def test_types_are_read_off_the_placeholders(places: dict[str, Path]) -> None:
    model, processor = made(places)
    batch = dict(processor.apply_chat_template([BOTH, SEE]))
    with torch.no_grad():
        goal = model(**batch).logits
        batch.pop("mm_token_type_ids")
        assert torch.equal(model(**batch).logits, goal)


def test_embeddings_in_place_give_the_same(places: dict[str, Path]) -> None:
    model, processor = made(places)
    batch = dict(processor.apply_chat_template(BOTH))
    media = {k: batch.pop(k) for k in list(batch) if k.endswith("_values")}
    ids, types = batch.pop("input_ids"), batch["mm_token_type_ids"]
    with torch.no_grad():
        goal = model(input_ids=ids, **batch, **media).logits
        embeds = model.embed(ids, types, media)
        assert torch.equal(model(inputs_embeds=embeds, **batch).logits, goal)
        features = {f"{n}_features": model.encoders.run(n, {"values": media[f"{n}_values"]}, "cpu")
                    for n in ("sight", "sound")}  # fmt: skip
        assert torch.equal(model(input_ids=ids, **batch, **features).logits, goal)


def test_the_language_model_on_its_own_is_refused(places: dict[str, Path]) -> None:
    model, processor = made(places)
    ids = processor.apply_chat_template(TEXT)["input_ids"]
    for _ in range(2):  # and still after a pass of the very same shape
        with pytest.raises(ModalloyError, match=r"called on its own.*Call the composed model"):
            model.language_model(input_ids=ids)
        with torch.no_grad():
            model(input_ids=ids)


@pytest.mark.parametrize(
    ("projection", "found"),
    [
        (nn.Linear(5, 600), "(1, 3, 600)"),  # wider: all fit, and slide into one another
        (nn.Linear(5, 16), "(1, 3, 16)"),
        (nn.Flatten(), "(1, 15)"),  # and no weights at all
    ],
)
def test_a_connector_of_another_width_is_refused(
    places: dict[str, Path], projection: nn.Module, found: str
) -> None:
    model, processor = made(places)
    model.connectors["sight"] = ModalityConnector(projection, 32, 0, 0, "sight-own")
    message = (
        f"connector 'sight-own' returned {found} for features (1, 3, 5), expected (1, tokens, 32)"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        model(**processor.apply_chat_template(SEE))


def test_a_connector_without_weights_runs(places: dict[str, Path]) -> None:
    model, processor = made(places)
    model.connectors["sight"] = ModalityConnector(nn.ZeroPad1d((0, 27)), 32, 0, 0)
    batch = dict(processor.apply_chat_template(SEE))
    with pytest.raises(
        InputError, match=r"5 placeholder tokens, 1 inputs of 3 tokens need 3; .* output_tokens"
    ):
        model(**batch)
    embeds = model.connect("sight", torch.ones(1, 3, 5))
    assert embeds.shape == (1, 3, 32)


def test_without_the_plugin_it_runs_on_embeddings(places: dict[str, Path], tmp_path: Path) -> None:
    model, processor = made(places)
    model.config.modalities["sight"]["requires"] = "modalloy-sight>=1"
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    alone, reader = modalloy.load(tmp_path / "out", registry=modalloy.Registry())
    batch = dict(processor.apply_chat_template(SEE))
    types, mask = batch["mm_token_type_ids"], batch["attention_mask"]
    with torch.no_grad():
        embeds = model.embed(batch["input_ids"], types, {"sight_values": batch["sight_values"]})
        found = alone(inputs_embeds=embeds, mm_token_type_ids=types, attention_mask=mask).logits
        assert torch.equal(found, model(**batch).logits)
        text = reader.apply_chat_template(TEXT)
        assert torch.equal(alone(**text).logits, model(**text).logits)
    advice = r'encoder \'toy-sight\', which no installed plugin .*pip install "modalloy-sight>=1"'
    with pytest.raises(MissingComponentError, match=advice) as caught:
        alone(**batch)
    assert caught.value.component == "toy-sight"
    reader.modalities["sight"]["requires"] = "modalloy-sight>=1"
    with pytest.raises(MissingComponentError, match=advice):
        reader.apply_chat_template(SEE)


def test_the_base_stays_what_transformers_opened(places: dict[str, Path]) -> None:
    model, _ = made(places)
    assert type(model.language_model) is LlamaForCausalLM
    assert model.get_input_embeddings() is model.language_model.model.embed_tokens
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_decoder() is model.language_model.model


def test_routing_follows_a_layer_to_its_device() -> None:
    """What a pass over several devices needs: each gets a copy of the routing, once."""
    coefficients = Coefficients(("a",), (0.5,))
    types = torch.tensor([[0, 1, 1]])
    router = StreamRouter()
    router.routing = route(types, torch.tensor([[True]]), {"a": 1}, coefficients, decoupled=True)
    there = router.on(torch.device("meta"))
    assert there is router.on(torch.device("meta"))
    assert there.types.device.type == "meta"
    assert there.coefficients.device.type == "meta"
    assert there.streams == router.routing.streams
    assert router.on(torch.device("cpu")) is router.routing
    router.routing = route(types, torch.tensor([[True]]), {"a": 1}, coefficients, decoupled=True)
    assert router.on(torch.device("meta")) is not there
