"""Bases and deltas that do not compose: that they say so, and the experiments that show it."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from composing import compose
from modalloy.base import resolve_base
from modalloy.base_config import load_config
from modalloy.composition.caches import CACHE
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, write_adapter
from modalloy.errors import DeltaError, FormatError
from modalloy.families import base_problem, explain_absence
from modalloy.parent import TEXT_ADAPTER, read_manifest, write_manifest
from tiny import small_config, small_model, tiny_base, tiny_model
from toy import toy_parent

ATTENTION = "model.layers.0.self_attn"
MLP = "model.layers.0.mlp"
JAMBA = MappingProxyType(
    {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    }
)
DEEPSEEK = MappingProxyType(
    {
        "num_key_value_heads": 4,
        "head_dim": None,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    }
)


def jamba() -> Any:
    return small_model(small_config("jamba", **JAMBA))


def doge() -> Any:
    return small_model(small_config("doge"))


def deepseek() -> Any:
    return small_model(small_config("deepseek_v3", **DEEPSEEK))


def gpt2() -> Any:
    return small_model(small_config("gpt2", intermediate_size=None, head_dim=None))


def falcon() -> Any:
    return small_model(small_config("falcon", head_dim=None))


def neox() -> Any:
    return small_model(small_config("gpt_neox", head_dim=None))


def llama() -> Any:
    return tiny_model("llama")


def moe() -> Any:
    return tiny_model("qwen3_moe")


class TestRefusedBases:
    @pytest.mark.parametrize(
        ("kind", "architecture", "text"),
        [
            ("mamba", "MambaForCausalLM", "keep a state in place of the tokens"),
            ("mamba2", "Mamba2ForCausalLM", "take a base with attention layers"),
            ("falcon_mamba", "FalconMambaForCausalLM", "keep a state in place of the tokens"),
            ("rwkv", "RwkvForCausalLM", "keep a state in place of the tokens"),
            ("gemma3n_text", "Gemma3nForCausalLM", "must run on embeddings alone"),
            ("gemma4_text", "Gemma4ForCausalLM", "must run on embeddings alone"),
            ("deepseek_v4", "DeepseekV4ForCausalLM", "must run on embeddings alone"),
            ("cpmant", "CpmAntForCausalLM", "must run on embeddings alone"),
            ("minimax", "MiniMaxForCausalLM", "a cache of its own"),
        ],
    )
    def test_architectures(self, tmp_path: Path, kind: str, architecture: str, text: str) -> None:
        data = {**transformers.CONFIG_MAPPING[kind]().to_diff_dict(), "model_type": kind}
        config = transformers.CONFIG_MAPPING[kind].from_dict(data)
        config.architectures = [architecture]
        config.save_pretrained(tmp_path)
        before = (tmp_path / "config.json").read_bytes()
        tiny_model().save_pretrained(tmp_path / "weights")
        (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "model.safetensors")
        base = resolve_base(tmp_path)  # it may still be merged
        with pytest.raises(FormatError, match=f"compose over a model of type '{kind}': .*{text}"):
            base.model()
        assert (tmp_path / "config.json").read_bytes() == before

    def test_gemma4_without_embeddings_by_layer_is_not_among_them(self) -> None:
        kind = transformers.Gemma4TextConfig
        assert base_problem(kind(hidden_size_per_layer_input=0)) is None
        assert base_problem(kind(hidden_size_per_layer_input=8)) is not None

    @pytest.mark.parametrize(
        ("kind", "architecture"),
        [
            ("llava", "LlavaForConditionalGeneration"),
            ("qwen2_audio", "Qwen2AudioForConditionalGeneration"),
            ("git", "GitForCausalLM"),
            ("phi4_multimodal", "Phi4MultimodalForCausalLM"),
        ],
    )
    def test_multimodal_models(self, tmp_path: Path, kind: str, architecture: str) -> None:
        config = {"model_type": kind, "architectures": [architecture]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            FormatError,
            match=rf"{architecture} is not a decoder-only language model of type '{kind}'; it is a "
            "multimodal model around one. Take as the base the language model that it was tuned "
            "from, and make what was added a parent of it with `modalloy convert`",
        ):
            load_config(tmp_path)

    def test_encoder_decoders(self, tmp_path: Path) -> None:
        config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(FormatError, match="such as LlamaForCausalLM or Qwen3ForCausalLM"):
            load_config(tmp_path)


class TestWhyTheyAreRefused:
    """Experiments, on transformers alone: where one of these passes no more, so may its base."""

    def test_a_recurrent_cache_holds_no_tokens(self) -> None:
        for kind in ("mamba", "mamba2", "falcon_mamba"):
            cache = DynamicCache(config=transformers.CONFIG_MAPPING[kind]())
            with pytest.raises(ValueError, match="only be called on Attention layers"):
                cache.get_seq_length()

    def test_gemma3n_gives_other_logits_on_embeddings(self) -> None:
        config = small_config(
            "gemma3n_text",
            vocab_size_per_layer_input=320,
            hidden_size_per_layer_input=8,
            activation_sparsity_pattern=[0.0, 0.0],
            laurel_rank=8,
            num_kv_shared_layers=0,
        )
        difference = self.ids_against_embeddings(small_model(config))
        assert difference > 0.01
        assert self.ids_against_embeddings(tiny_model("gemma3")) == 0

    def ids_against_embeddings(self, model: Any) -> float:
        ids = torch.arange(3, 12)[None]
        with torch.no_grad():
            for number, one in enumerate(model.parameters()):  # some begin at zero
                noise = torch.Generator().manual_seed(number)
                one.add_(0.1 * torch.randn(one.shape, generator=noise))
            model = model.eval()
            on_ids = model(input_ids=ids).logits
            on_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
        return float((on_ids - on_embeddings).abs().max())

    def test_a_mixer_reads_the_weight_of_dt_proj_itself(self) -> None:
        model = jamba()
        called = []
        for name, module in model.named_modules():
            if name.endswith(("dt_proj", "x_proj")):
                module.register_forward_hook(lambda *_, name=name: called.append(name))
        model(input_ids=torch.arange(3, 12)[None])
        assert [name.rpartition(".")[2] for name in called] == ["x_proj"]

    @pytest.mark.parametrize(("kind", "leaf"), [("doge", "dt_proj"), ("deepseek_v3", "kv_b_proj")])
    def test_a_layer_runs_on_cached_tokens(self, kind: str, leaf: str) -> None:
        model = doge() if kind == "doge" else deepseek()
        seen = []
        layer = model.get_submodule(f"model.layers.0.self_attn.{leaf}")
        layer.register_forward_hook(lambda _, args, __: seen.append(args[0].flatten(0, -2).shape))
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.arange(3, 12)[None], **{CACHE: cache})
            model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        assert seen[1][0] > 1


class TestNoPlaceForADelta:
    @pytest.mark.parametrize(
        ("make", "module", "text"),
        [
            (
                neox,
                "gpt_neox.layers.0.attention.k_proj",
                (
                    "the base fuses q_proj, k_proj and v_proj into query_key_value, and the "
                    "adapter was made for an implementation that keeps them apart. Tune the parent "
                    "on this base, or join their pairs into one of query_key_value: A one above the"
                ),
            ),
            (
                llama,
                f"{ATTENTION}.query_key_value",
                (
                    "the base keeps q_proj, k_proj and v_proj apart, and the adapter was made for "
                    "an implementation that fuses them into query_key_value. Tune the parent on "
                    "this base, or split the pair: each of them takes all of A, and its own rows"
                ),
            ),
            (
                moe,
                f"{MLP}.experts.3.gate_proj",
                (
                    "experts are one tensor (gate_up_proj (4, 48, 32)), not linear layers; leave "
                    "them out of the parent (target_modules of its attention), or merge whole "
                    "models with `modalloy merge`"
                ),
            ),
            (
                moe,
                f"{MLP}.experts.down_proj",
                "experts are one tensor (down_proj (4, 32, 24)), not linear layers",
            ),
            (
                moe,
                "model.layers.0.block_sparse_moe.experts.1.w1",
                "experts are one tensor (mlp.experts.gate_up_proj (4, 48, 32))",
            ),
            (
                moe,
                f"{MLP}.gate",
                "it is a Qwen3MoeTopKRouter, not a linear layer; leave it out",
            ),
            (
                gpt2,
                "transformer.h.0.attn.c_attn",
                "it is a Conv1D, which holds its weight transposed, as models of GPT-2's kind do",
            ),
            (
                falcon,
                "transformer.h.0.self_attention.dense",
                "it is a FalconLinear, not a linear layer",
            ),
            (llama, "model.embed_tokens", "it is a Embedding, not a linear"),
            (jamba, "model.layers.0.mamba.dt_proj", "reads its weight past the layer, or runs it"),
            (doge, f"{ATTENTION}.dt_proj", "or runs it on cached tokens too; leave it out of"),
            (deepseek, f"{ATTENTION}.kv_b_proj", "the base runs it on cached tokens too, whose"),
            (
                llama,
                f"language_model.{ATTENTION}.q_proj",
                (
                    "the base has no linear layer of that name; the closest is "
                    f"'{ATTENTION}.q_proj'. An adapter names the modules of the model that it was "
                    "tuned in: tune the parent on this base, LlamaForCausalLM"
                ),
            ),
            (llama, "x", "the base has no linear layer of that name. An"),
        ],
    )
    def test_it_says_why(self, make: Any, module: str, text: str) -> None:
        reason = explain_absence(module, make())
        assert reason is not None
        assert text in reason

    def test_layers_beside_those_have_a_place(self) -> None:
        for model, module in (
            (jamba(), "model.layers.0.mamba.in_proj"),
            (deepseek(), f"{ATTENTION}.kv_a_proj_with_mqa"),
            (doge(), f"{ATTENTION}.q_proj"),
            (neox(), "gpt_neox.layers.0.attention.query_key_value"),
        ):
            assert explain_absence(module, model) is None

    def test_composing_says_so(self, tmp_path: Path) -> None:
        base = tiny_base(tmp_path / "base", family="qwen3_moe")
        parent = toy_parent(tmp_path / "p", base, "sight", strategy="naive")
        pair = LowRankPair(torch.ones(2, 32), torch.ones(24, 2), 1.0)
        delta = LowRankDelta({f"{MLP}.experts.0.up_proj": pair})
        write_adapter(parent / TEXT_ADAPTER, delta, base_id="base")
        write_manifest(parent, read_manifest(parent))
        with pytest.raises(
            DeltaError,
            match=r"the delta of 'model.layers.0.mlp.experts.0.up_proj' has no place: experts are "
            "one tensor",
        ):
            compose(base, [parent])
