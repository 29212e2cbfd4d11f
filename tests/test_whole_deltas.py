"""Parents that changed norms, biases, embeddings and heads, not only linear layers.

The oracle shares no code with the stream-aware modules: each module of the plain transformers model
runs once with every stream's weights, and each token takes the output of its own stream.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.func import functional_call
from transformers import AutoModelForCausalLM

import modalloy
from composing import BOTH, CLOSE, HEAR, SEE, TEXT, compose, logits
from modalloy.base import resolve_base
from modalloy.errors import BaseMismatchError, DeltaError
from modalloy.parent import read_manifest, write_manifest
from tiny import tiny_base
from toy import toy_parent, toy_registry

Weights = dict[str, torch.Tensor]


@pytest.fixture(params=["llama", "qwen2", "qwen3", "gemma3", "olmo2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", family=request.param, seed=3)


def tuned_weights(base: Path, seed: int, *names: str) -> Weights:
    """Every tensor of the base whose name holds one of ``names``, changed."""
    generator = torch.Generator().manual_seed(seed)
    plain = resolve_base(base).model(torch.float32)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in plain.named_parameters()
        if any(part in name for part in names)
    }


def whole_parent(
    path: Path, base: Path, modality: str, seed: int, streams: Mapping[str, Weights]
) -> Path:
    """A toy parent whose streams were tuned whole; it has no adapters."""
    import shutil

    strategy = "decoupled" if "modality" in streams else "naive"
    toy_parent(path, base, modality, strategy=strategy, seed=seed)
    for folder in ("text_adapter", "modality_adapter"):
        shutil.rmtree(path / folder, ignore_errors=True)
    for stream, weights in streams.items():
        (path / f"{stream}_weights").mkdir()
        save_file(
            {n: t.detach().contiguous() for n, t in weights.items()},
            path / f"{stream}_weights" / "model.safetensors",
        )
    write_manifest(path, read_manifest(path))
    return path


def oracle(base: Path, embeds: Any, batch: Any, streams: list[tuple[Weights, Any]]) -> Any:
    """Logits where each token runs on the weights of the stream whose mask ``(B, T)`` it is in."""
    model = resolve_base(base).model(torch.float32)
    transposed = model.config.model_type == "gemma3_text"
    if model.config.tie_word_embeddings:  # a head of its own, so that hooks see it
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        streams = [
            ({**w, "lm_head.weight": w["model.embed_tokens.weight"]}, m)
            if "model.embed_tokens.weight" in w
            else (w, m)
            for w, m in streams
        ]
    for name, module in model.named_modules():
        own = {k for k, _ in module.named_parameters(recurse=False)}
        changed = [
            ({k: w[f"{name}.{k}"] for k in own if f"{name}.{k}" in w}, mask) for w, mask in streams
        ]
        if not any(weights for weights, _ in changed):
            continue

        def replace(
            module: Any, args: Any, out: torch.Tensor, changed: Any = changed
        ) -> torch.Tensor:
            total = torch.zeros_like(out)
            forward, module._forward_hooks = module._forward_hooks, {}
            for weights, mask in changed:
                wide = mask.view(*mask.shape, *(1,) * (out.ndim - 2))
                if transposed and out.ndim == 4:  # Gemma norms heads before tokens
                    wide = wide.transpose(1, 2)
                total += wide * functional_call(module, weights, args)
            module._forward_hooks = forward
            return total

        if not isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(replace)
    with torch.no_grad():
        return model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits


EVERYTHING = ("weight", "bias")


def test_a_parent_tuned_whole_is_that_model(base: Path, tmp_path: Path) -> None:
    weights = tuned_weights(base, 7, *EVERYTHING)
    parent = whole_parent(tmp_path / "p", base, "sight", 1, {"text": weights})
    model, processor = compose(base, [parent])
    batch = processor.apply_chat_template([SEE], add_generation_prompt=True)
    tuned = resolve_base(base).model(torch.float32)
    missing, unexpected = tuned.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    embeds = model.embed(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        {"sight_values": batch["sight_values"]},
    )
    text = batch["mm_token_type_ids"] == 0
    own = tuned.get_input_embeddings()(torch.where(text, batch["input_ids"], 0))
    torch.testing.assert_close(embeds[text], own[text], **CLOSE)
    with torch.no_grad():
        goal = tuned(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


def test_streams_of_two_parents_stay_apart(base: Path, tmp_path: Path) -> None:
    kinds = ("norm", "bias", "q_proj", "down_proj", "lm_head")
    table = {
        (name, stream): tuned_weights(base, seed, *kinds)
        for seed, (name, stream) in enumerate(
            [(n, s) for n in ("sight", "sound") for s in ("text", "modality")]
        )
    }
    parents = [
        whole_parent(
            tmp_path / name,
            base,
            name,
            seed,
            {stream: table[name, stream] for stream in ("text", "modality")},
        )
        for seed, name in enumerate(("sight", "sound"))
    ]
    shares = {"sight": 0.3, "sound": 0.8}
    model, processor = compose(base, parents, coefficients={frozenset({"sight", "sound"}): shares})
    plain = dict(resolve_base(base).model(torch.float32).named_parameters())
    text = {
        name: value + sum(shares[p] * (table[p, "text"][name] - value) for p in shares)
        for name, value in plain.items()
        if name in table["sight", "text"]
    }
    batch = processor.apply_chat_template([BOTH, BOTH], add_generation_prompt=True)
    types = batch["mm_token_type_ids"]
    media = {k: v for k, v in batch.items() if k.startswith(("sight_", "sound_"))}
    streams: list[tuple[Weights, Any]] = [(text, (types == 0).float())]
    streams += [
        (table[name, "modality"], (types == model.type_ids[name]).float())
        for name in ("sight", "sound")
    ]
    embeds = model.embed(batch["input_ids"], types, media)
    goal = oracle(base, embeds, batch, streams)
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


def test_rows_of_a_batch_have_embeddings_and_norms_of_their_own(base: Path, tmp_path: Path) -> None:
    parents = [
        whole_parent(
            tmp_path / name, base, name, s, {"text": tuned_weights(base, s, "norm", "embed")}
        )
        for s, name in enumerate(("sight", "sound"))
    ]
    model, processor = compose(base, parents)
    chats = [SEE, HEAR, TEXT]
    batch = processor.apply_chat_template(chats, add_generation_prompt=True)
    found = logits(model, batch)
    for row, chat in enumerate(chats):
        alone = processor.apply_chat_template([chat], add_generation_prompt=True)
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(found[row : row + 1, -length:], logits(model, alone), **CLOSE)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_norms_of_heads_take_tokens_for_tokens(tmp_path: Path, family: str) -> None:
    """As many tokens as heads: only the axis tells them apart."""
    base = tiny_base(tmp_path / "base", family=family, seed=3)
    weights = tuned_weights(base, 7, "q_norm", "k_norm")
    own = tuned_weights(base, 8, "q_norm", "k_norm")
    streams = {"text": weights, "modality": own}
    model, _ = compose(base, [whole_parent(tmp_path / "p", base, "sight", 1, streams)])
    types = torch.tensor([[0, 1, 1, 0]])
    embeds = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    batch = {"attention_mask": torch.ones(1, 4, dtype=torch.long)}
    goal = oracle(
        base, embeds, batch, [(weights, (types == 0).float()), (own, (types == 1).float())]
    )
    with torch.no_grad():
        found = model(inputs_embeds=embeds, mm_token_type_ids=types, **batch).logits
    torch.testing.assert_close(found, goal, **CLOSE)


def test_text_alone_is_the_base_to_the_bit(base: Path, tmp_path: Path) -> None:
    weights = tuned_weights(base, 7, *EVERYTHING)
    parent = whole_parent(tmp_path / "p", base, "sight", 1, {"text": weights})
    model, processor = compose(base, [parent])
    batch = processor.apply_chat_template([TEXT])
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        goal = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(logits(model, batch), goal)


def test_saved_loaded_and_decoded_with_a_cache(base: Path, tmp_path: Path) -> None:
    parents = [
        whole_parent(tmp_path / name, base, name, s, {"text": tuned_weights(base, s, *EVERYTHING)})
        for s, name in enumerate(("sight", "sound"))
    ]
    model, processor = compose(base, parents)
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, _ = modalloy.load(tmp_path / "out", registry=toy_registry())
    batch = processor.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    assert torch.equal(logits(model, batch), logits(again, batch))
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    out = again.generate(**batch, **options)
    whole = dict(batch)
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    whole["input_ids"] = torch.cat([batch["input_ids"], new], 1)
    ones = torch.ones_like(new)
    whole["attention_mask"] = torch.cat([batch["attention_mask"], ones], 1)
    whole["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], ones * 0], 1)
    goal = logits(model, whole)[:, -25:-1]
    torch.testing.assert_close(torch.stack(out.logits, 1), goal, **CLOSE)


@pytest.mark.parametrize("method", ["naive", "ties", "swudi", "mmer"])
def test_every_method_merges_what_is_whole(tmp_path: Path, method: str) -> None:
    base = tiny_base(tmp_path / "base", family="qwen2", seed=3)
    weights = tuned_weights(base, 5, "norm", "bias", "q_proj")
    parents = [
        whole_parent(tmp_path / name, base, name, 1, {"text": weights})
        for name in ("sight", "sound")
    ]
    options = {"density": 1.0} if method in ("ties", "mmer") else {}
    model, processor = compose(base, parents, method=method, method_options=options)
    alone, _ = compose(base, parents[:1])
    batch = processor.apply_chat_template([SEE])
    # Two equal parents are one: whatever a method makes of them, it is that one.
    torch.testing.assert_close(logits(model, batch), logits(alone, batch), **CLOSE)


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    for number, (weights, error, message) in enumerate(
        [
            ({"model.nothing.weight": torch.zeros(3)}, DeltaError, "has no counterpart in the"),
            ({"model.norm.weight": torch.zeros(3)}, BaseMismatchError, r"is \(3,\), the base"),
        ]
    ):
        parent = whole_parent(tmp_path / f"p{number}", base, "sight", 1, {"text": weights})
        with pytest.raises(error, match=message):
            compose(base, [parent])


def test_copies_and_pickles_run_as_the_composition_does(base: Path, tmp_path: Path) -> None:
    import copy
    import pickle

    weights = tuned_weights(base, 7, *EVERYTHING)
    parent = whole_parent(tmp_path / "p", base, "sight", 1, {"text": weights})
    model, processor = compose(base, [parent])
    batch = processor.apply_chat_template([SEE], add_generation_prompt=True)
    embeds = model.embed(
        batch["input_ids"], batch["mm_token_type_ids"], {"sight_values": batch["sight_values"]}
    )
    inputs = {"inputs_embeds": embeds, "mm_token_type_ids": batch["mm_token_type_ids"]}
    goal = logits(model, inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - ours
        assert torch.equal(logits(other, inputs), goal)
        again = other.get_input_embeddings()
        assert type(again) is type(model.get_input_embeddings())
        ids = torch.where(batch["mm_token_type_ids"] == 0, batch["input_ids"], 0)
        routing = model.route(batch["mm_token_type_ids"], torch.tensor([[True]]))
        assert torch.equal(again(ids, routing), model.get_input_embeddings()(ids, routing))
