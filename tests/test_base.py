"""Bases: finding them, opening them safely, telling them apart."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from modalloy.base import Base, check_fingerprint, fingerprint, resolve_base
from modalloy.base_config import load_config, read_config
from modalloy.errors import (
    BaseMismatchError,
    FormatError,
    MissingComponentError,
    UnknownNameError,
    UnsafePathError,
)
from modalloy.parent import Fingerprint
from tiny import tiny_base, tiny_model, tiny_tokenizer

WEIGHTS = "model.safetensors"
FOREIGN_CODE = "from pathlib import Path\nPath(__file__).with_name('canary').touch()\n"


def edit_json(file: Path, **changes: Any) -> Path:
    data = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (data | changes).items() if v is not ...}))
    return file.parent


def edit_weights(
    source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], object]
) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / WEIGHTS)
    edit(tensors)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return target


def scale(name: str, tensors: dict[str, torch.Tensor]) -> None:
    tensors[name] *= 1.02


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "llama")


class TestFingerprint:
    def test_is_the_same_however_it_is_sharded(self, llama: Path, tmp_path: Path) -> None:
        parts = tiny_base(tmp_path / "parts", max_shard_size="10KB")
        assert not (parts / WEIGHTS).exists()
        assert fingerprint(parts) == fingerprint(llama)

    @pytest.mark.parametrize("family", ["llama", "qwen3"])
    def test_is_the_same_in_float32_and_bfloat16(self, tmp_path: Path, family: str) -> None:
        half = tiny_base(tmp_path / "half", family, dtype=torch.bfloat16)
        wide = edit_weights(
            half, tmp_path / "wide", lambda t: t.update({k: v.float() for k, v in t.items()})
        )
        assert load_file(wide / WEIGHTS)["model.norm.weight"].dtype is torch.float32
        assert fingerprint(wide) == fingerprint(half)

    def test_is_the_same_for_a_copy_that_was_rounded(self, llama: Path, tmp_path: Path) -> None:
        rounded = tiny_base(tmp_path / "rounded", dtype=torch.bfloat16)
        assert fingerprint(rounded) == fingerprint(llama)

    def test_a_tied_head_may_be_stored(self, llama: Path, tmp_path: Path) -> None:
        stored = edit_weights(
            llama,
            tmp_path / "stored",
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
        )
        assert "lm_head.weight" not in load_file(llama / WEIGHTS)
        assert fingerprint(stored) == fingerprint(llama)

    def test_a_head_of_its_own_counts(self, tmp_path: Path) -> None:
        qwen = tiny_base(tmp_path / "qwen", "qwen3")
        changed = edit_weights(qwen, tmp_path / "changed", lambda t: t["lm_head.weight"].mul_(1.1))
        assert fingerprint(changed).content != fingerprint(qwen).content

    def test_any_tensor_that_was_trained_shows(self, llama: Path, tmp_path: Path) -> None:
        original = fingerprint(llama)
        for index, name in enumerate(load_file(llama / WEIGHTS)):
            tuned = edit_weights(llama, tmp_path / str(index), partial(scale, name))
            found = fingerprint(tuned)
            assert found.content != original.content, name
            assert found == attrs.evolve(original, content=found.content)

    def test_values_that_change_places_show(self, llama: Path, tmp_path: Path) -> None:
        first, second = (f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1))
        swapped = edit_weights(
            llama, tmp_path / "x", lambda t: t.update({first: t[second], second: t[first]})
        )
        assert fingerprint(swapped).content != fingerprint(llama).content

    def test_another_size_shows_in_the_structure(self, llama: Path, tmp_path: Path) -> None:
        grown = tmp_path / "grown"
        model: Any = tiny_model()
        model.resize_token_embeddings(290, mean_resizing=False)
        model.save_pretrained(grown)
        assert fingerprint(grown).structure != fingerprint(llama).structure

    def test_the_architecture_is_its_class_name(self, tmp_path: Path) -> None:
        found = fingerprint(tiny_base(tmp_path / "q", "qwen3"))
        assert found.architecture == "Qwen3ForCausalLM"

    def test_what_was_recorded_yesterday_still_holds(self, llama: Path) -> None:
        """Parents record fingerprints: another way to compute them would orphan every one."""
        assert fingerprint(llama).structure == (
            "5c24f0d49451beea0c3c29000c141b76378c982fa236daeee209573826aa4214"
        )


class TestMismatch:
    expected = Fingerprint(architecture="LlamaForCausalLM", structure="a" * 64, content="c")

    def test_the_same_passes(self) -> None:
        check_fingerprint("p", self.expected, attrs.evolve(self.expected))

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            (
                {"architecture": "Qwen3ForCausalLM", "structure": "b", "content": "d"},
                "the architecture differs: this is another kind of model",
            ),
            (
                {"structure": "b", "content": "d"},
                "the names and shapes of the tensors differ: this is a model of another size",
            ),
            ({"content": "d"}, "the weights differ: this is a fine-tuned, merged, quantised or"),
        ],
    )
    def test_what_differs_is_said(self, changes: dict[str, str], text: str) -> None:
        found = attrs.evolve(self.expected, **changes)
        with pytest.raises(BaseMismatchError) as caught:
            check_fingerprint("vision-x", self.expected, found)
        message = str(caught.value)
        assert message.startswith(
            "parent 'vision-x' was tuned from another base: "
            f"expected LlamaForCausalLM/aaaaaaaaaaaa/c, found {found} "
        )
        assert text in message
        assert message.endswith("or a parent that was tuned from this one")
        assert (caught.value.parent, caught.value.found) == ("vision-x", str(found))


class TestResolve:
    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_directory(self, llama: Path, kind: type) -> None:
        base = resolve_base(kind(llama))
        assert (base.id, base.path) == ("llama", llama)
        assert base.fingerprint is base.fingerprint

    def test_a_hub_id_is_fetched_without_pickles(
        self, llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = {}

        def fetch(repo: str, **options: Any) -> str:
            asked[repo] = options
            return str(llama)

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        assert resolve_base("org/name", revision="v1") == Base("org/name", llama)
        options = asked["org/name"]
        assert options["revision"] == "v1"
        assert set(options["allow_patterns"]) == {
            "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"
        }  # fmt: skip

    def test_a_hub_id_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.errors import LocalEntryNotFoundError

        def fetch(*_: object, **__: object) -> str:
            raise LocalEntryNotFoundError("no connection")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        with pytest.raises(MissingComponentError) as caught:
            resolve_base("org/name")
        assert caught.value.component == "org/name"
        assert "neither a directory nor in the Hub cache" in str(caught.value)
        assert "(no connection); go online, fix the id" in str(caught.value)

    @pytest.mark.parametrize("name", ["smolm2", "a/b/c", "./missing/x", "../x", Path("org/name")])
    def test_anything_else_is_unknown(self, name: str | Path) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown base .*; known: smollm2\..* Hub id"):
            resolve_base(name)

    def test_an_index_that_leads_outside(self, llama: Path) -> None:
        (llama / WEIGHTS).unlink()
        (llama / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
        with pytest.raises(UnsafePathError):
            resolve_base(llama)


class TestOpening:
    def test_model_and_tokenizer(self, llama: Path) -> None:
        base = resolve_base(llama)
        model, tokenizer = base.model(torch.bfloat16), base.tokenizer()
        assert model.dtype is torch.bfloat16
        assert not model.training
        text = "what is the time?"
        assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
        ids = torch.tensor([tokenizer(text).input_ids])
        assert torch.equal(base.model()(ids).logits, tiny_model()(ids).logits)

    def test_a_missing_tensor_is_no_random_one(self, llama: Path, tmp_path: Path) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        cut = edit_weights(llama, tmp_path / "cut", lambda t: t.pop(name))
        with pytest.raises(FormatError, match=f"lacks 1 tensors of LlamaForCausalLM.*'{name}'"):
            resolve_base(cut).model()

    def test_code_that_comes_with_a_known_model_is_not_run(self, llama: Path) -> None:
        (llama / "foreign.py").write_text(FOREIGN_CODE)
        edit_json(
            llama / "config.json",
            auto_map={"AutoConfig": "foreign.C", "AutoModelForCausalLM": "foreign.M"},
            trust_remote_code=True,
            _attn_implementation="org/kernel",
            _attn_implementation_internal="org/kernel",
        )
        base = resolve_base(llama)
        assert type(base.model()).__name__ == "LlamaForCausalLM"
        assert base.model().config._attn_implementation == "sdpa"
        assert not hasattr(base.config(), "auto_map")
        assert not (llama / "canary").exists()

    def test_a_tokenizer_with_code_of_its_own(self, llama: Path) -> None:
        (llama / "foreign.py").write_text(FOREIGN_CODE)
        edit_json(
            llama / "tokenizer_config.json",
            tokenizer_class="ForeignTokenizer",
            auto_map={"AutoTokenizer": ["foreign.T", None]},
        )
        with pytest.raises(FormatError, match="needs code of its own, which is never run"):
            resolve_base(llama).tokenizer()
        assert not (llama / "canary").exists()


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            (
                {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.C"}},
                "model type 'foreign' (LlamaForCausalLM) is not part of transformers",
            ),
            (
                {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
                "T5ForConditionalGeneration is not a decoder-only language model of type 't5'",
            ),
            (
                {"model_type": "bart", "architectures": ["BartForCausalLM"]},
                "BartForCausalLM is not a decoder-only language model of type 'bart'",
            ),
            (
                {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
                "BertLMHeadModel is not a decoder-only language model of type 'bert'",
            ),
            (
                {"architectures": ["LlamaForSequenceClassification"]},
                "LlamaForSequenceClassification is not a decoder-only language model of",
            ),
            (
                {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
                "Gemma3ForConditionalGeneration is not a decoder-only language model of",
            ),
            (
                {"architectures": ["Qwen3ForCausalLM"]},
                "Qwen3ForCausalLM is not a decoder-only language model of type 'llama'",
            ),
            ({"is_encoder_decoder": True}, "is not a decoder-only"),
            ({"quantization_config": {"quant_method": "gptq"}}, "the base is quantised; deltas"),
            ({"architectures": None}, "'architectures' must name the model's class, found None"),
            ({"hidden_size": 33}, "does not configure a llama model"),
        ],
    )
    def test_what_cannot_be_a_base(self, llama: Path, changes: dict[str, Any], text: str) -> None:
        edit_json(llama / "config.json", **changes)
        with pytest.raises(FormatError) as caught:
            resolve_base(llama)
        assert text in str(caught.value)
        assert caught.value.path == llama / "config.json"

    @pytest.mark.parametrize(("text", "problem"), [("{", "not valid JSON"), ("[]", "found list")])
    def test_a_damaged_file(self, llama: Path, text: str, problem: str) -> None:
        (llama / "config.json").write_text(text)
        with pytest.raises(FormatError, match=problem):
            load_config(llama)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="is not a Hugging Face model directory: it has no c"):
            load_config(tmp_path)

    def test_keys_that_choose_code_are_left_out_at_every_depth(self, llama: Path) -> None:
        evil = {"auto_map": {}, "_attn_implementation_internal": "o/k", "experts_implementation": 1}
        edit_json(llama / "config.json", text_config={"keep": [evil | {"keep": 1}]}, **evil)
        data = read_config(llama)
        assert data["text_config"] == {"keep": [{"keep": 1}]}
        assert not evil.keys() & data.keys()
