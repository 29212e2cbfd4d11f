"""Adapters: what peft writes we read, what we write peft opens, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import modalloy
from modalloy.base import resolve_base
from modalloy.deltas.lowrank import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LowRankDelta,
    LowRankPair,
    read_adapter,
    write_adapter,
)
from modalloy.errors import DeltaError, FormatError
from modalloy.parent import TEXT_ADAPTER, read_manifest, write_manifest
from tiny import tiny_base, tiny_model
from toy import ask, random_delta, toy_parent, toy_registry

# peft asks transformers under a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CLOSE: Any = {"rtol": 1e-4, "atol": 1e-5}
IDS = torch.arange(3, 23).view(2, 10)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def with_dense(delta: LowRankDelta) -> torch.Tensor:
    """Logits of the tiny model with the delta added to its weights."""
    model: Any = tiny_model(seed=3)
    with torch.no_grad():
        for name, pair in delta.pairs.items():
            model.get_submodule(name).weight += pair.dense()
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def opened_by_peft(directory: Path) -> torch.Tensor:
    model: Any = PeftModel.from_pretrained(tiny_model(seed=3), str(directory)).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def saved_by_peft(directory: Path, **settings: Any) -> Path:
    """An adapter that peft made and saved, its B no longer zero."""
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION}
    model: Any = get_peft_model(tiny_model(seed=3), LoraConfig(**defaults | settings))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    model.save_pretrained(str(directory))
    return directory


def edit(directory: Path, **changes: Any) -> None:
    file = directory / CONFIG_FILE
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v != "drop"}))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "a", random_delta(tiny_model(seed=3), 1), base_id="tiny")
    return tmp_path / "a"


@pytest.mark.parametrize("subset", [False, True])
def test_peft_opens_what_we_write(tmp_path: Path, subset: bool) -> None:  # noqa: FBT001
    delta = random_delta(tiny_model(seed=3), 1)
    if subset:  # one layer's pairs: peft must put none on the other layer, nor miss any (a warning)
        delta = LowRankDelta({k: v for k, v in delta.pairs.items() if ".layers.1." in k})
    write_adapter(tmp_path / "a", delta, base_id="tiny")
    goal = with_dense(delta)
    assert not torch.allclose(goal, with_dense(LowRankDelta({})), atol=0.1)
    torch.testing.assert_close(opened_by_peft(tmp_path / "a"), goal, **CLOSE)
    names = PeftModel.from_pretrained(tiny_model(seed=3), str(tmp_path / "a")).state_dict()
    touched = {n.split(".lora_A")[0].removeprefix("base_model.model.") for n in names if "_A" in n}
    assert touched == set(delta)


def test_what_we_write_reads_back_the_same(adapter: Path) -> None:
    delta, again = random_delta(tiny_model(seed=3), 1), read_adapter(adapter)
    assert list(again) == sorted(delta.pairs)
    for name, pair in delta.pairs.items():
        assert torch.equal(again.pairs[name].A, pair.A)
        assert torch.equal(again.pairs[name].B, pair.B)
        assert math.isclose(again.pairs[name].scale, pair.scale, rel_tol=1e-15)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 3}},
        {"alpha_pattern": {r"layers\.0\.self_attn\.o_proj": 11}},
        {"use_rslora": True, "rank_pattern": {"k_proj": 9}},
        {"target_modules": "all-linear"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_we_read_what_peft_writes(tmp_path: Path, settings: dict[str, Any]) -> None:
    directory = saved_by_peft(tmp_path / "a", **settings)
    torch.testing.assert_close(
        with_dense(read_adapter(directory)), opened_by_peft(directory), **CLOSE
    )


def test_a_peft_adapter_gives_its_logits_in_a_composition(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", seed=3)
    parent = toy_parent(tmp_path / "p", base, "sight", strategy="naive")
    saved_by_peft(
        parent / TEXT_ADAPTER,
        use_rslora=True,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 3},
    )
    write_manifest(parent, read_manifest(parent))
    coefficients = {frozenset[str](): {"sight": 1.0}}
    model, processor = modalloy.compose(
        base, parents=[parent], coefficients=coefficients, registry=toy_registry("sight")
    )
    ids = processor.apply_chat_template(ask("what is a"))["input_ids"]
    peft: Any = PeftModel.from_pretrained(
        resolve_base(base).model(torch.float32), str(parent / TEXT_ADAPTER)
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, peft(input_ids=ids).logits, **CLOSE)


def test_norm_and_size() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 8, generator=generator), torch.randn(6, 3, generator=generator)
    pair = LowRankPair(a, b, -1.5)
    assert math.isclose(pair.norm(), pair.dense().norm().item(), rel_tol=1e-5)
    delta = LowRankDelta({"y": pair, "x": pair})
    assert (list(delta), delta.parameters) == (["x", "y"], 2 * (24 + 18))
    assert math.isclose(delta.norm(), math.sqrt(2) * pair.norm())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "use_dora is set (DoRA rescales the whole weight"),
        ({"lora_bias": True}, "lora_bias is set (lora_B has a bias)"),
        ({"bias": "all"}, "bias is 'all'; biases of the base were tuned"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set (whole modules were trained"),
        ({"trainable_token_indices": [1]}, "rows of the embedding were trained"),
        ({"target_parameters": ["x"]}, "parameters outside linear layers were tuned"),
        ({"layer_replication": [[0, 1]]}, "layers of the base were replicated"),
        ({"fan_in_fan_out": True}, "weights are stored transposed"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changed the base's own weights"),
        ({"init_lora_weights": "OLoRA"}, "which changed the base's own weights"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
    ],
)
def test_what_no_pair_can_hold_is_refused(
    adapter: Path, changes: dict[str, Any], reason: str
) -> None:
    edit(adapter, **changes)
    with pytest.raises(DeltaError) as caught:
        read_adapter(adapter)
    assert reason in str(caught.value)
    assert str(adapter / CONFIG_FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases of the base were tuned"),
        ({"modules_to_save": ["lm_head"]}, "whole modules were trained"),
        ({"target_modules": ["embed_tokens"]}, "is not a LoRA factor of a linear layer"),
        ({"init_lora_weights": "pissa"}, "changed the base's own weights"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_the_same_as_peft_itself_saves_it(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DeltaError, match=reason):
        read_adapter(saved_by_peft(tmp_path / "a", **settings))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r": "drop"}, "r must be a positive integer, found None"),
        ({"r": 0}, "r must be a positive integer, found 0"),
        ({"r": 64}, "has rank 4, adapter_config.json says 64"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number, found '8'"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a finite number, found nan"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be a mapping, found ['q_proj']"),
        ({"rank_pattern": {"q_proj": 1.5}}, "q_proj must be a positive integer, found 1.5"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern has '(', which is no regular expression"),
    ],
)
def test_a_malformed_configuration(adapter: Path, changes: dict[str, Any], reason: str) -> None:
    edit(adapter, **changes)
    with pytest.raises(FormatError) as caught:
        read_adapter(adapter)
    assert reason in str(caught.value)


def test_damaged_files(adapter: Path) -> None:
    weights, config = adapter / WEIGHTS_FILE, adapter / CONFIG_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(FormatError, match=r"adapter_model\.safetensors cannot be read as safeten"):
        read_adapter(adapter)
    weights.unlink()
    with pytest.raises(FormatError, match=r"adapter_model\.bin must be saved as safetensors"):
        read_adapter(adapter)
    weights.write_bytes(whole)
    config.write_text("[1]")
    with pytest.raises(
        FormatError, match=r"adapter_config\.json: expected a JSON object, found list"
    ):
        read_adapter(adapter)
    config.write_text("{}")
    with pytest.raises(DeltaError, match="peft_type is None"):
        read_adapter(adapter)
    config.write_text("{")
    with pytest.raises(FormatError, match=r"adapter_config\.json is not valid JSON: Expecting"):
        read_adapter(adapter)


def test_tensors_that_do_not_belong(adapter: Path) -> None:
    file = adapter / WEIGHTS_FILE
    tensors = load_file(file)
    first = min(tensors)
    save_file({k: v for k, v in tensors.items() if k != first}, file)
    with pytest.raises(FormatError, match=r"down_proj has no lora_A"):
        read_adapter(adapter)
    save_file({**tensors, first: tensors[first][:2].clone()}, file)
    with pytest.raises(FormatError, match=r"lora_A \(2, 48\) and lora_B \(32, 4\) do not multiply"):
        read_adapter(adapter)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(2)}, file)
    with pytest.raises(DeltaError, match=r"'base_model\.model\.lm_head\.weight' is not a LoRA fac"):
        read_adapter(adapter)
    save_file({}, file)
    with pytest.raises(FormatError, match="holds no tensors"):
        read_adapter(adapter)
