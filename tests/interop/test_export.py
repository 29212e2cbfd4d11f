"""Compositions written for others: plain language models, and PEFT adapters over their base."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import modalloy
from composing import BOTH, CLOSE, SEE, TEXT, compose, logits, oracle
from modalloy import API_VERSION, MergeMethod, hookimpl
from modalloy.base import resolve_base
from modalloy.deltas.lowrank import LowRankDelta, read_adapter, write_adapter
from modalloy.errors import DeltaError, FormatError, SpecError
from modalloy.interop.export import export
from modalloy.parent import read_manifest, sha256, write_manifest
from tiny import FAMILIES, tiny_base
from toy import ask, random_delta, toy_parent, toy_registry

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"  # peft asks for it
)

SAID = ["what is the time", "the user is a system", "<|sight|> is no picture here"]


@pytest.fixture(scope="module", params=FAMILIES)
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("export")
    base = tiny_base(root / "base", family=request.param, seed=3)
    parents = {
        "sight": toy_parent(root / "p1", base, "sight", seed=1, prefix=2),
        "sound": toy_parent(root / "p2", base, "sound", seed=2, suffix=1),
    }
    naive = [
        toy_parent(root / "n1", base, "sight", strategy="naive", seed=5),
        toy_parent(root / "n2", base, "sound", strategy="naive", seed=6),
    ]
    places = {"base": base, **parents}
    for name, given, method in (
        ("damc", list(parents.values()), "damc"),
        ("naive", naive, "naive"),
    ):
        model, processor = compose(base, given, method=method)
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
        places[name] = root / name
    return places


def exported(source: Path, out: Path, **settings: Any) -> Any:
    return export(source, out, registry=toy_registry(), **settings)


def opened(path: Path) -> Any:
    """The exported model, every tensor of it found in the files and no other."""
    model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def text_batch(path: Path) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    chats = [[{"role": "user", "content": text}] for text in SAID[:2]]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def on_one_stream(base: Path, deltas: Mapping[str, tuple[LowRankDelta, Any]], batch: Any) -> Any:
    """The oracle's logits with every token on these deltas, each times a number."""
    model = resolve_base(base).model(torch.float32)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    ones = torch.ones_like(batch["input_ids"])[..., None]
    masked = [(delta, factor * ones) for delta, factor in deltas.values()]
    return oracle(base, embeds, batch["attention_mask"], masked)


def test_a_naive_composition_is_a_plain_model(places: Any, tmp_path: Path) -> None:
    record = exported(places["naive"], tmp_path / "plain")
    assert sorted(p.name for p in (tmp_path / "plain").iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "export.json",
        "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "plain" / "export.json").read_text()) == record
    plain, base = opened(tmp_path / "plain"), AutoModelForCausalLM.from_pretrained(places["base"])
    assert type(plain) is type(base)
    assert {n: p.shape for n, p in plain.named_parameters()} == {
        n: p.shape for n, p in base.named_parameters()
    }
    theirs, ours = base.config.to_dict(), plain.config.to_dict()
    drop = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in ours.items() if k not in drop} == {
        k: v for k, v in theirs.items() if k not in drop
    }
    model, processor = modalloy.load(places["naive"], registry=toy_registry())
    chats = [[{"role": "user", "content": text}] for text in SAID[:2]]
    whole = processor.apply_chat_template(chats, add_generation_prompt=True)
    batch = text_batch(tmp_path / "plain")
    assert batch["input_ids"].tolist() == whole["input_ids"].tolist()
    torch.testing.assert_close(logits(plain, batch), logits(model, whole), **CLOSE)
    assert not torch.allclose(logits(base, batch), logits(model, whole), atol=0.1)
    greedy: Any = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(plain.generate(**batch, **greedy), model.generate(**whole, **greedy))


ALONE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
path = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "what is the time"}], add_generation_prompt=True,
    return_tensors="pt", return_dict=True,
)["input_ids"]
with torch.no_grad():
    found = model(input_ids=ids).logits
assert not [name for name in sys.modules if name.startswith("modalloy")]
GenerationConfig.from_pretrained(path)
print(json.dumps({"ids": ids.tolist(), "logits": found.double().tolist()}))
"""


def test_it_opens_where_modalloy_is_not(places: Any, tmp_path: Path) -> None:
    exported(places["naive"], tmp_path / "plain")
    done = subprocess.run(  # noqa: S603 - this interpreter, our own script
        [sys.executable, "-c", ALONE, str(tmp_path / "plain")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    model, processor = modalloy.load(places["naive"], registry=toy_registry())
    batch = processor.apply_chat_template(TEXT, add_generation_prompt=True)
    assert found["ids"] == batch["input_ids"].tolist()
    torch.testing.assert_close(torch.tensor(found["logits"]), logits(model, batch), **CLOSE)


def test_weights_are_summed_in_float32_and_rounded_once(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", seed=3, dtype=torch.bfloat16)
    parents = [
        toy_parent(tmp_path / name, base, name, strategy="naive", seed=seed)
        for name, seed in (("sight", 5), ("sound", 6))
    ]
    model, processor = compose(base, parents, method="naive")
    model.save_pretrained(tmp_path / "it")
    processor.save_pretrained(tmp_path / "it")
    exported(tmp_path / "it", tmp_path / "plain")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "plain"))
    assert before.keys() == after.keys()
    deltas = [read_adapter(parent / "text_adapter") for parent in parents]
    for name, weight in before.items():
        total = weight.float()
        for delta in deltas:
            pair = delta.pairs.get(name.removesuffix(".weight"))
            if pair is not None:  # factors are stored in the base's dtype
                rounded = [factor.bfloat16().float() for factor in (pair.B, pair.A)]
                total = total + 0.5 * pair.scale * rounded[0] @ rounded[1]
        assert after[name].dtype == torch.bfloat16
        # One rounding of sums whose terms come in another order: a unit in the last place at most,
        # and that seldom.
        off = (after[name].float() - total.bfloat16().float()).abs() > 0
        assert off.float().mean() < 0.001, name
        torch.testing.assert_close(after[name].float(), total, rtol=2**-7, atol=0)


def test_the_tokenizer_is_the_bases_again(places: Any, tmp_path: Path) -> None:
    record = exported(places["naive"], tmp_path / "plain")
    assert record["placeholders_dropped"] == ["<|sight|>", "<|sound|>"]
    whole, plain, base = (
        AutoTokenizer.from_pretrained(path)
        for path in (places["naive"], tmp_path / "plain", places["base"])
    )
    assert plain.get_vocab() == base.get_vocab()
    assert len(whole) == len(plain) + 2
    assert [plain(text)["input_ids"] for text in SAID] == [base(text)["input_ids"] for text in SAID]
    assert plain.chat_template == base.chat_template
    assert plain.special_tokens_map == base.special_tokens_map
    assert "processor_class" not in (tmp_path / "plain" / "tokenizer_config.json").read_text()


def test_a_placeholder_of_the_bases_own_stays(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", family="qwen3", seed=3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|sight|>", "<|last|>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    parents = [
        toy_parent(tmp_path / name, base, name, strategy="naive") for name in ("sight", "sound")
    ]
    model, processor = compose(base, parents, method="naive")
    model.save_pretrained(tmp_path / "it")
    processor.save_pretrained(tmp_path / "it")
    assert exported(tmp_path / "it", tmp_path / "out")["placeholders_dropped"] == ["<|sound|>"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_every_tensor_is_accounted_for(places: Any, tmp_path: Path) -> None:
    model, _ = modalloy.load(places["damc"], registry=toy_registry())
    stored = set(load_file(places["damc"] / "model.safetensors"))
    assert stored == {name for name, _ in model.named_parameters()}
    for name, settings in (
        ("transformers", {"text_stream": True}),
        ("peft", {}),
    ):
        record = exported(places["damc"], tmp_path / name, to=name, **settings)
        assert record["tensors"].keys() == stored
        counts = [row["tensors"] for row in record["accounting"] if row["tensors"] is not None]
        assert sum(counts) == len(stored)
    rows = {(r["part"], r["fate"]): r["tensors"] for r in record["accounting"]}
    own, added = 28, 14
    assert rows["text deltas", "written to text/"] == 2 * added
    assert rows["own delta of sight", "written to sight/"] == own
    assert rows["connector of sound", "written to sound/connector.safetensors"] == 3
    encoder = "left out: encoder type 'toy-sight'; its plugin opens it"
    assert rows["encoder of sight", encoder] is None
    written = [
        len(load_file(tmp_path / "peft" / name / "adapter_model.safetensors"))
        for name in ("text", "sight", "sound")
    ]
    assert written == [2 * added, own, own]
    plain = json.loads((tmp_path / "transformers" / "export.json").read_text())["accounting"]
    rows = {(r["part"], r["fate"]): r["tensors"] for r in plain}
    assert rows["base", "text deltas folded into it"] == added
    assert rows["base", "copied"] == len(stored) - added - 2 * added - 2 * own - 3 - 3
    assert rows["text deltas", "folded into the weights"] == 2 * added


def test_a_decoupled_composition_is_no_single_set_of_weights(places: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"by 'damc' is no single set of weights: .*--text-stream"):
        exported(places["damc"], tmp_path / "out")
    with pytest.raises(SpecError, match="is exported to transformers or peft; got 'gguf'"):
        exported(places["damc"], tmp_path / "out", to="gguf")
    with pytest.raises(SpecError, match="--text-stream belongs to --format transformers"):
        exported(places["damc"], tmp_path / "out", to="peft", text_stream=True)
    with pytest.raises(SpecError, match="missing or unknown: sound"):
        exported(places["damc"], tmp_path / "out", to="peft", coefficients={"sight": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, {"sight": 0.25, "sound": -1.0}, "uniform"])
def test_the_text_stream_alone(places: Any, tmp_path: Path, given: Any) -> None:
    out = tmp_path / "text"
    record = exported(places["damc"], out, text_stream=True, coefficients=given)
    values = given if isinstance(given, dict) else {"sight": 0.5, "sound": 0.5}
    assert record["coefficients"] == values
    assert not record["exact"]
    card = (out / "README.md").read_text()
    assert "This is the composition's text stream alone" in card
    assert f"sight {values['sight']:g}, sound {values['sound']:g}" in card
    batch = text_batch(out)
    deltas = {
        name: (read_adapter(places[name] / "text_adapter"), value) for name, value in values.items()
    }
    kept = batch["attention_mask"].bool()
    goal = on_one_stream(places["base"], deltas, batch)
    torch.testing.assert_close(logits(opened(out), batch)[kept], goal[kept], **CLOSE)


def test_coefficients_by_layer_are_folded_by_layer(places: Any, tmp_path: Path) -> None:
    given = {"sight": [0.5, -0.25], "sound": [0.0, 0.75]}
    exported(places["naive"], tmp_path / "plain", coefficients=given)
    model, processor = modalloy.load(places["naive"], registry=toy_registry())
    model.coefficients = given
    batch = processor.apply_chat_template(TEXT, add_generation_prompt=True)
    ids = {"input_ids": batch["input_ids"]}
    torch.testing.assert_close(
        logits(opened(tmp_path / "plain"), ids), logits(model, batch), **CLOSE
    )


class ByPresence:
    """A method whose tokens share their weights, and whose coefficients look at the prompt."""

    @hookimpl
    def register_merge_methods(self, register: Any) -> None:
        register(
            MergeMethod(
                name="shared",
                api_version=API_VERSION,
                summary="All tokens on the sum, by presence.",
                strategies=("naive", "decoupled"),
                decoupled=False,
                rules=("presence", "uniform"),
            )
        )


def test_coefficients_that_look_at_the_prompt_must_be_fixed(places: Any, tmp_path: Path) -> None:
    registry = toy_registry()
    registry.register(ByPresence(), name="shared")
    parents = [places["sight"], places["sound"]]
    model, processor = compose(places["base"], parents, method="shared", registry=registry)
    model.save_pretrained(tmp_path / "it")
    processor.save_pretrained(tmp_path / "it")
    with pytest.raises(SpecError, match="depend on what is in the prompt, so it is no single set"):
        export(tmp_path / "it", tmp_path / "out", registry=registry)
    record = export(
        tmp_path / "it", tmp_path / "out", registry=registry, coefficients={"sight": 1, "sound": 0}
    )
    assert record["exact"]
    batch = text_batch(tmp_path / "out")
    goal = on_one_stream(
        places["base"], {"": (read_adapter(places["sight"] / "text_adapter"), 1.0)}, batch
    )
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(opened(tmp_path / "out"), batch)[kept], goal[kept], **CLOSE)


def head_parent(path: Path, base: Path) -> Path:
    """A naive parent whose delta reaches the head too."""
    toy_parent(path, base, "sight", strategy="naive", seed=5)
    model = resolve_base(base).model(torch.float32)
    delta = random_delta(model, 5, targets="")
    assert "lm_head" in delta.pairs
    write_adapter(path / "text_adapter", delta, base_id="base")
    write_manifest(path, read_manifest(path))
    return path


def test_a_tied_head_with_a_delta_of_its_own_is_tied_no_more(places: Any, tmp_path: Path) -> None:
    parent = head_parent(tmp_path / "p", places["base"])
    model, processor = compose(places["base"], [parent], method="naive")
    model.save_pretrained(tmp_path / "it")
    processor.save_pretrained(tmp_path / "it")
    exported(tmp_path / "it", tmp_path / "plain")
    plain = opened(tmp_path / "plain")
    assert not plain.config.tie_word_embeddings
    batch = processor.apply_chat_template(TEXT, add_generation_prompt=True)
    ids = {"input_ids": batch["input_ids"]}
    torch.testing.assert_close(logits(plain, ids), logits(model, batch), **CLOSE)


def whole_parent(path: Path, base: Path, strategy: str) -> Path:
    """A parent whose text stream tuned norms, biases and the embedding as they are."""
    toy_parent(path, base, "sight", strategy=strategy, seed=5)
    generator = torch.Generator().manual_seed(7)
    plain = resolve_base(base).model(torch.float32)
    tuned = {
        name: value.detach() + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in plain.named_parameters()
        if "norm" in name or "bias" in name or "embed_tokens" in name
    }
    (path / "text_weights").mkdir()
    save_file(tuned, path / "text_weights" / "model.safetensors")
    write_manifest(path, read_manifest(path))
    return path


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("value", [0.5, [0.5, -0.25]])
def test_norms_biases_and_embeddings_are_folded_too(
    tmp_path: Path, family: str, value: Any
) -> None:
    base = tiny_base(tmp_path / "base", family=family, seed=3)
    parent = whole_parent(tmp_path / "p", base, "naive")
    model, processor = compose(base, [parent], method="naive", coefficients={"sight": value})
    model.save_pretrained(tmp_path / "it")
    processor.save_pretrained(tmp_path / "it")
    exported(tmp_path / "it", tmp_path / "plain")
    plain = opened(tmp_path / "plain")
    batch = processor.apply_chat_template(TEXT, add_generation_prompt=True)
    ids = {"input_ids": batch["input_ids"]}
    torch.testing.assert_close(logits(plain, ids), logits(model, batch), **CLOSE)
    with pytest.raises(DeltaError, match=r"the text stream changes 'model\..*' as a whole"):
        exported(tmp_path / "it", tmp_path / "adapters", to="peft")
    assert not (tmp_path / "adapters").exists()


def test_each_adapter_is_its_stream(places: Any, tmp_path: Path) -> None:
    out = tmp_path / "adapters"
    values = {"sight": 0.75, "sound": -0.5}
    record = exported(places["damc"], out, to="peft", coefficients=values)
    assert record["adapters"] == ["text", "sight", "sound"]
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "export.json", "sight", "sound", "text"
    ]  # fmt: skip
    text = {name: (read_adapter(places[name] / "text_adapter"), values[name]) for name in values}
    streams = {
        "text": text,
        "sight": {"": (read_adapter(places["sight"] / "modality_adapter"), 1.0)},
        "sound": {"": (read_adapter(places["sound"] / "modality_adapter"), 1.0)},
    }
    batch = text_batch(places["base"])
    kept = batch["attention_mask"].bool()
    for name, deltas in streams.items():
        base = AutoModelForCausalLM.from_pretrained(places["base"])
        model = PeftModel.from_pretrained(base, out / name).eval()
        goal = on_one_stream(places["base"], deltas, batch)
        torch.testing.assert_close(logits(model, batch)[kept], goal[kept], **CLOSE)
    # All of them over one base, as the card says, chosen by name.
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(places["base"]), out / "text", adapter_name="text"
    )
    for name in ("sight", "sound"):
        model.load_adapter(out / name, adapter_name=name)
    for name, deltas in streams.items():
        model.set_adapter(name)
        goal = on_one_stream(places["base"], deltas, batch)
        torch.testing.assert_close(logits(model.eval(), batch)[kept], goal[kept], **CLOSE)


def test_connectors_go_with_the_adapters(places: Any, tmp_path: Path) -> None:
    record = exported(places["damc"], tmp_path / "out", to="peft")
    for name in ("sight", "sound"):
        written = load_file(tmp_path / "out" / name / "connector.safetensors")
        own = load_file(places[name] / "connector.safetensors")
        assert written.keys() == own.keys()
        assert all(torch.equal(written[key], own[key]) for key in own)
    assert record["modalities"]["sight"]["connector"]["type"] == "linear"
    assert record["modalities"]["sight"]["encoder"]["shape"] == [3, 5]
    assert record["modalities"]["sight"]["tokens"] == 5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "PEFT applies one adapter to a whole request" in card
    assert 'model = PeftModel.from_pretrained(base, "text", adapter_name="text")' in card
    assert 'model.load_adapter("sound", adapter_name="sound")' in card


def test_a_naive_composition_is_one_adapter(places: Any, tmp_path: Path) -> None:
    record = exported(places["naive"], tmp_path / "out", to="peft")
    assert record["adapters"] == ["text"]
    assert sorted(p.name for p in (tmp_path / "out" / "sight").iterdir()) == [
        "connector.safetensors"
    ]
    model, processor = modalloy.load(places["naive"], registry=toy_registry())
    base = AutoModelForCausalLM.from_pretrained(places["base"])
    tuned = PeftModel.from_pretrained(base, tmp_path / "out" / "text").eval()
    # Every token runs on it, those of inputs too.
    batch = processor.apply_chat_template(BOTH, add_generation_prompt=True)
    media = {key: value for key, value in batch.items() if key.endswith("_values")}
    with torch.no_grad():
        embeds = model.embed(batch["input_ids"], batch["mm_token_type_ids"], media)
    found = logits(tuned, {"inputs_embeds": embeds})
    torch.testing.assert_close(found, logits(model, batch), **CLOSE)


def test_a_silent_text_stream_is_said_to_be_the_base(places: Any, tmp_path: Path) -> None:
    zero = {"sight": 0.0, "sound": 0.0}
    record = exported(places["damc"], tmp_path / "out", to="peft", coefficients=zero)
    assert record["adapters"] == ["sight", "sound"]
    assert not (tmp_path / "out" / "text").exists()
    rows = {(r["part"], r["fate"]): r["tensors"] for r in record["accounting"]}
    assert rows["text deltas", "left out: every coefficient of it is 0"] == 28
    assert "text tokens run on the base itself" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SpecError, match="no stream of this composition differs from the base"):
        exported(places["naive"], tmp_path / "none", to="peft", coefficients="zero")
    assert not (tmp_path / "none").exists()


def test_what_is_in_the_way_stays(places: Any, tmp_path: Path) -> None:
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    file.write_text("mine")
    empty.mkdir()
    for out in (full, file):
        with pytest.raises(FormatError, match="exists and is no empty directory"):
            exported(places["naive"], out)
    assert (full / "notes.txt").read_text() == file.read_text() == "mine"
    exported(places["naive"], empty)
    assert (empty / "model.safetensors").is_file()


@pytest.mark.parametrize("to", ["transformers", "peft"])
def test_a_failed_export_leaves_nothing_and_changes_nothing(
    places: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    target = "strip_tokenizer" if to == "transformers" else "write_connector"
    monkeypatch.setattr(f"modalloy.interop.export.{target}", fail)
    before = {p: sha256(p) for p in sorted(places["naive"].rglob("*")) if p.is_file()}
    out = tmp_path / "deep" / "out"
    with pytest.raises(FormatError, match="out cannot be written: the disk is full"):
        exported(places["naive"], out, to=to)
    assert not (tmp_path / "deep").exists()
    assert {p: sha256(p) for p in sorted(places["naive"].rglob("*")) if p.is_file()} == before


def test_a_modality_called_text_has_no_adapter(tmp_path: Path) -> None:
    from toy import TYPES, ToyPlugin

    TYPES["text"] = "words"
    try:
        registry = modalloy.Registry()
        registry.register(ToyPlugin("text"), name="toy-text")
        registry.register(ToyPlugin("sight"), name="toy-sight")
        base = tiny_base(tmp_path / "base", seed=3)
        parents = [toy_parent(tmp_path / name, base, name) for name in ("text", "sight")]
        model, processor = compose(base, parents, registry=registry)
        model.save_pretrained(tmp_path / "it")
        processor.save_pretrained(tmp_path / "it")
        with pytest.raises(SpecError, match="a modality is called 'text', which is the folder"):
            export(tmp_path / "it", tmp_path / "out", to="peft", registry=registry)
    finally:
        del TYPES["text"]


def test_the_composition_itself_is_still_whole(places: Any) -> None:
    """Exports read it only: it answers as one that was never exported."""
    model, processor = modalloy.load(places["damc"], registry=toy_registry())
    fresh, _ = compose(places["base"], [places["sight"], places["sound"]])
    batch = processor.apply_chat_template([SEE, ask("x")])
    assert torch.equal(logits(model, batch), logits(fresh, batch))
