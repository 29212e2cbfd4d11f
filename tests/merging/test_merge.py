"""``modalloy.merge``: what is merged, that no bit depends on how, and what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import modalloy
from merging.models import assert_same, draw, make_models, read, recipe, save
from modalloy.errors import DeltaError, FormatError, MissingComponentError, SpecError
from modalloy.merging import operands
from modalloy.merging.rules import Deltas, Rule, Slerp, Weighted, Whole
from modalloy.merging.streaming import random_key
from modalloy.merging.whole import apply_rule

OWN = {
    "linear": {"weight": 0.3},
    "task_arithmetic": {"weight": 0.3},
    "ties": {"weight": 0.4, "density": 0.3},
    "dare_linear": {"weight": 0.3, "density": 0.4},
    "dare_ties": {"weight": 0.3, "density": 0.4},
    "breadcrumbs": {"weight": 0.3, "density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"weight": 0.3, "density": 0.5, "gamma": 0.1},
    "della": {"weight": 0.3, "density": 0.5, "epsilon": 0.2},
    "della_linear": {"weight": 0.3, "density": 0.5, "epsilon": 0.2},
    "swudi": {},
}
"""Settings of every model, by method."""


def rule_of(method: str, count: int) -> Rule:
    weights = (OWN[method].get("weight", 1.0),) * count
    density = (OWN[method].get("density", 1.0),) * count
    if method == "linear":
        return Weighted(weights=weights, divisor=sum(weights))
    return Deltas(
        weights=weights,
        density=density if method.startswith(("ties", "bread")) else None,
        outliers=(0.1,) * count if method.startswith("bread") else None,
        keep=density if method.startswith(("dare", "della")) else None,
        spread=(0.2,) * count if method.startswith("della") else None,
        elect=method in ("ties", "dare_ties", "breadcrumbs_ties", "della"),
        normalize=method in ("ties", "della"),
    )


@pytest.mark.parametrize("method", [name for name in OWN if name != "swudi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_merge_is_what_the_rule_says_of_each_tensor(
    tmp_path: Path, method: str, dtype: torch.dtype
) -> None:
    base, models = make_models(tmp_path, dtype=dtype)
    modalloy.merge(recipe(method, base, models, OWN[method]), tmp_path / "out", seed=7)
    found, start = read(tmp_path / "out"), read(base)
    parts = [read(model) for model in models]
    for name, tensor in start.items():
        keys = [random_key(7, name, label) for label in "abc"]
        expected = apply_rule(rule_of(method, 3), tensor, [p[name] for p in parts], keys=keys)
        assert torch.equal(found[name].view(torch.uint8), expected.view(torch.uint8)), name
        assert not torch.equal(found[name], tensor), name


def test_ties_of_equal_magnitudes_keeps_all_of_them_and_sums_with_the_winning_sign(
    tmp_path: Path,
) -> None:
    """By hand: a trimmed mean of what agrees in sign."""
    shapes = {"model.norm.weight": (4,)}
    zero = {"model.norm.weight": torch.zeros(4)}
    rows = ([4.0, 1.0, -3.0, 0.5], [2.0, -3.0, 3.0, 0.1], [-5.0, 0.2, 4.0, 0.0])
    base = save(tmp_path / "base", zero)
    models = [
        save(tmp_path / chr(97 + i), {name: torch.tensor(row) for name in shapes})
        for i, row in enumerate(rows)
    ]
    own = {"weight": 1, "density": 0.5}
    modalloy.merge(recipe("ties", base, models, own), tmp_path / "out")
    # Kept: 4 -3 | -3 3 (2 is third) | -5 4; sums -1, -3, 4, 0; agreeing means -5, -3, 3.5, 0.
    assert read(tmp_path / "out")["model.norm.weight"].tolist() == [-5.0, -3.0, 3.5, 0.0]


def test_slerp_goes_along_the_arc(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1, torch.float32)
    plain = recipe("slerp", base, models, parameters={"t": 0.25})
    modalloy.merge(plain, tmp_path / "out")
    found, start, end = (read(path) for path in (tmp_path / "out", base, models[0]))
    for name, tensor in found.items():
        a, b = start[name].double().ravel(), end[name].double().ravel()
        angle = torch.acos((a @ b) / a.norm() / b.norm())
        arc = (torch.sin(0.75 * angle) * a + torch.sin(0.25 * angle) * b) / torch.sin(angle)
        torch.testing.assert_close(tensor.double().ravel(), arc, rtol=2e-6, atol=1e-8)
        reference = apply_rule(Slerp(t=0.25), start[name], [end[name]])
        torch.testing.assert_close(tensor, reference, rtol=1e-6, atol=1e-9)


def test_passthrough_copies_and_scales(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    modalloy.merge(recipe("passthrough", None, models), tmp_path / "same")
    assert_same(read(tmp_path / "same"), read(models[0]))
    plain = recipe(
        "passthrough", base, models, {"scale": [{"filter": "up", "value": 2}, {"value": 1}]}
    )
    modalloy.merge(plain, tmp_path / "scaled")
    for name, tensor in read(tmp_path / "scaled").items():
        assert torch.equal(tensor, read(models[0])[name] * (2 if "up" in name else 1))


def test_swudi_merges_matrices_and_averages_the_rest(tmp_path: Path) -> None:
    from modalloy.merging.methods import mean, swudi_dense

    base, models = make_models(tmp_path, dtype=torch.float32)
    modalloy.merge(recipe("swudi", base, models), tmp_path / "out")
    start, parts = read(base), [read(model) for model in models]
    for name, tensor in read(tmp_path / "out").items():
        deltas = [part[name] - start[name] for part in parts]
        merged = swudi_dense(deltas) if tensor.ndim == 2 else mean(deltas)
        assert torch.equal(tensor, start[name] + merged)
        assert not torch.equal(swudi_dense(deltas), mean(deltas)) or tensor.ndim == 1


@pytest.mark.parametrize("method", list(OWN))
def test_no_bit_depends_on_order_workers_chunks_or_shards(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, models = make_models(tmp_path)
    plain = recipe(method, base, models, OWN[method])
    modalloy.merge(plain, tmp_path / "one", workers=1)
    expected = read(tmp_path / "one")
    monkeypatch.setattr(operands, "CHUNK", 100)
    turned = recipe(method, base, models[::-1], OWN[method])
    modalloy.merge(turned, tmp_path / "two", workers=5, shard_size=3000)
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 2
    assert_same(read(tmp_path / "two"), expected)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "breadcrumbs"])
def test_equal_models_give_the_model_and_weights_of_zero_the_base(
    tmp_path: Path, method: str
) -> None:
    base, (model, *_) = make_models(tmp_path, dtype=torch.float32)
    copies = [shutil.copytree(model, tmp_path / f"copy{i}") for i in range(2)]
    whole = {"density": 1.0} if method in ("ties", "breadcrumbs") else {}
    settings = {"normalize": True}
    plain = recipe(method, base, copies, {"weight": 0.5, **whole}, parameters=settings)
    modalloy.merge(plain, tmp_path / "same")
    for name, tensor in read(tmp_path / "same").items():
        torch.testing.assert_close(tensor, read(model)[name], rtol=1e-6, atol=1e-8)
    if method != "linear":
        modalloy.merge(recipe(method, base, copies, {"weight": 0.0, **whole}), tmp_path / "none")
        assert_same(read(tmp_path / "none"), read(base))


def test_random_methods_keep_the_expected_delta_and_follow_the_seed(tmp_path: Path) -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": (300, 400)}
    base = save(tmp_path / "base", draw(0, dtype=torch.float32, shapes=shapes))
    tuned = {name: tensor + 1 for name, tensor in read(base).items()}
    model = save(tmp_path / "a", tuned)
    own = {"weight": 1, "density": 0.3}
    for method, more in (("dare_linear", {}), ("della_linear", {"epsilon": 0.2})):
        seeds = []
        for seed in (0, 1):
            out = tmp_path / f"{method}{seed}"
            modalloy.merge(recipe(method, base, [model], own | more), out, seed=seed)
            delta = read(out)[next(iter(shapes))] - read(base)[next(iter(shapes))]
            seeds.append(delta)
            assert float(delta.mean()) == pytest.approx(1, abs=0.05)
            assert float((delta != 0).float().mean()) == pytest.approx(0.3, abs=0.01)
        assert not torch.equal(*seeds)


def test_della_drops_small_values_of_a_row_more_often(tmp_path: Path) -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": (2000, 20)}
    base = save(tmp_path / "base", {name: torch.zeros(shape) for name, shape in shapes.items()})
    rise = torch.arange(1, 21).float().expand(2000, 20).contiguous()
    model = save(tmp_path / "a", dict.fromkeys(shapes, rise))
    own = {"weight": 1, "density": 0.5, "epsilon": 0.4}
    modalloy.merge(recipe("della_linear", base, [model], own), tmp_path / "out")
    merged = read(tmp_path / "out")[next(iter(shapes))]
    kept = (merged != 0).float().mean(0)
    assert float(kept[0]) == pytest.approx(0.1, abs=0.03)
    assert float(kept[19]) == pytest.approx(0.9, abs=0.03)
    assert float(merged[:, 0].mean()) == pytest.approx(1, abs=0.25)


def test_gradients_and_filters_reach_their_tensors(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1, torch.float32)
    weight = [
        {"filter": "q_proj", "value": 0.5},
        {"filter": "up_proj", "value": [0, 1]},
        {"value": 0.1},
    ]
    modalloy.merge(recipe("task_arithmetic", base, models, {"weight": weight}), tmp_path / "out")
    start, end = read(base), read(models[0])
    for name, tensor in read(tmp_path / "out").items():
        value = 0.5 if "q_proj" in name else 0.1
        if "up_proj" in name:
            value = int(name.split(".")[2]) / 2
        expected = start[name] + np.float32(value) * (end[name] - start[name])
        assert torch.equal(tensor, expected), name


def test_a_models_setting_goes_before_the_recipes(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 2, torch.float32)
    plain = recipe("task_arithmetic", base, models, parameters={"weight": 0.5})
    plain["models"][1]["parameters"] = {"weight": 0}
    modalloy.merge(plain, tmp_path / "out")
    start, end = read(base), read(models[0])
    for name, tensor in read(tmp_path / "out").items():
        assert torch.equal(tensor, start[name] + 0.5 * (end[name] - start[name]))


def test_the_output_opens_with_transformers_in_shards_and_with_its_tokenizer(
    tmp_path: Path,
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tiny import tiny_base

    base = tiny_base(tmp_path / "base", family="qwen3")
    model = shutil.copytree(base, tmp_path / "tuned")
    tuned = {n: t + 0.01 for n, t in load_file(base / "model.safetensors").items()}
    save_file(tuned, model / "model.safetensors", metadata={"format": "pt"})
    plain = recipe(
        "ties", base, [model], {"weight": 1}, out_dtype="float32", tokenizer_source="base"
    )
    result = modalloy.merge(plain, tmp_path / "out", shard_size=30_000)
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in tuned.values())
    opened, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert AutoConfig.from_pretrained(out).dtype == torch.float32
    found = opened.state_dict()
    for name, tensor in tuned.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=1e-5, atol=1e-6)
    assert AutoTokenizer.from_pretrained(out)("the")["input_ids"]
    record = json.loads((out / "modalloy.json").read_text())
    assert record == result.record
    assert record["recipe"]["merge_method"] == "ties"
    card = (out / "README.md").read_text()
    assert "merge_method: ties" in card
    assert not (out / "merge.journal").exists()


def test_a_damaged_or_missing_model_is_named(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    file = models[0] / "model.safetensors"
    plain = recipe("ties", base, models, {"weight": 1})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"a/model.safetensors cannot be read as safetensors"):
        modalloy.merge(plain, tmp_path / "out")
    with pytest.raises(
        MissingComponentError, match="'nowhere' is neither a directory, nor a Hub id"
    ):
        modalloy.merge(recipe("ties", base, [Path("nowhere")], {"weight": 1}), tmp_path / "out")
    with pytest.raises(MissingComponentError, match="list the adapter's own directory as a model"):
        modalloy.merge(recipe("ties", base, [Path(f"{base}+x")], {"weight": 1}), tmp_path / "out")


def test_code_of_a_donors_configuration_does_not_travel(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    save(base, read(base), auto_map={"AutoConfig": "x.Y"}, trust_remote_code=True)
    modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.keys().isdisjoint({"auto_map", "trust_remote_code"})


def test_a_plugins_method_is_used_by_name(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from modalloy import API_VERSION, Parameter, Registry, TensorMethod, hookimpl

    def greatest(*, weight: tuple[float, ...]) -> Whole:
        def function(_: Any, models: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.stack([w * m for w, m in zip(weight, models, strict=True)]).amax(0)

        return Whole(function=function)

    @hookimpl
    def register_tensor_methods(register: Any) -> None:
        register(
            TensorMethod(
                name="greatest",
                api_version=API_VERSION,
                summary="The greatest value.",
                over="models",
                rule=greatest,
                parameters=(Parameter(name="weight", default=1.0, by_model=True),),
            )
        )

    registry = Registry.discover()
    plugin = SimpleNamespace(register_tensor_methods=register_tensor_methods)
    assert registry.register(plugin, name="toy").tensor_methods == ("greatest",)
    _, models = make_models(tmp_path)
    modalloy.merge(recipe("greatest", None, models), tmp_path / "out", registry=registry)
    parts = [read(model) for model in models]
    for name, tensor in read(tmp_path / "out").items():
        assert torch.equal(tensor, torch.stack([part[name] for part in parts]).amax(0))


def test_another_device_takes_tensors_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, models = make_models(tmp_path)
    plain = recipe("dare_ties", base, models, OWN["dare_ties"])
    modalloy.merge(plain, tmp_path / "streamed")
    modalloy.merge(plain, tmp_path / "whole", device="cpu:0")
    assert_same(read(tmp_path / "whole"), read(tmp_path / "streamed"))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "della", "breadcrumbs"])
def test_what_is_no_number_does_not_disappear(tmp_path: Path, method: str) -> None:
    base, models = make_models(tmp_path)
    tensors = read(models[1])
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][3] = float("nan")
    save(models[1], tensors)
    own = OWN[method] | ({"density": 1.0} if "density" in OWN[method] else {})
    modalloy.merge(recipe(method, base, models, own), tmp_path / "out")
    found = read(tmp_path / "out")[name].isnan()
    assert bool(found[3].all())
    assert int(found.sum()) == 24


def test_a_density_that_rounds_to_nothing_gives_the_base(tmp_path: Path) -> None:
    base, models = make_models(tmp_path)
    own = {"weight": 1, "density": 1e-40}
    modalloy.merge(recipe("dare_linear", base, models, own), tmp_path / "out")
    assert_same(read(tmp_path / "out"), read(base))


def test_tensors_taken_whole_are_those_that_are_streamed(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 2)
    name = "model.embed_tokens.weight"
    short = read(models[0])
    short[name] = short[name][:30].clone()
    save(models[0], short)
    for directory in (base, *models):
        save(directory, read(directory) | {"model.scale": torch.tensor(1.0)})
    for method in ("dare_ties", "della"):
        plain = recipe(method, base, models, OWN[method])
        modalloy.merge(plain, tmp_path / f"{method}-streamed")
        modalloy.merge(plain, tmp_path / f"{method}-whole", device="cpu:0")
        assert_same(read(tmp_path / f"{method}-whole"), read(tmp_path / f"{method}-streamed"))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Weighted(weights=(1.0,)), "its rule has 1 weights for 3 models"),
        (Weighted(weights=(1.0,) * 3, divisor=0), "its rule divides by 0"),
        (Slerp(t=0.5), "Slerp, which merges one model with the base, of 3"),
        (Deltas(weights=(1.0,) * 3, keep=(0.5,)), "its rule has 1 keep for 3 models"),
        (Deltas(weights=(1.0,) * 3, spread=(0.1,) * 3), "a spread without keep"),
        (None, "its rule is NoneType, expected one of modalloy.merging.rules"),
        (Whole(function=lambda base, _: base[:1]), r"returned \(1,( 24)?\), expected a tensor"),
        (Whole(function=lambda *_: None), "returned NoneType, expected a tensor"),
    ],
)
def test_a_plugins_wrong_rule_is_told_and_not_carried_out(
    tmp_path: Path, rule: Any, message: str
) -> None:
    from types import SimpleNamespace

    from modalloy import API_VERSION, Registry, TensorMethod, hookimpl

    @hookimpl
    def register_tensor_methods(register: Any) -> None:
        register(
            TensorMethod(
                name="wrong",
                api_version=API_VERSION,
                summary="",
                over="deltas",
                rule=lambda: rule,
            )
        )

    registry = Registry.discover()
    registry.register(SimpleNamespace(register_tensor_methods=register_tensor_methods), name="toy")
    base, models = make_models(tmp_path)
    with pytest.raises((SpecError, DeltaError), match=message):
        modalloy.merge(recipe("wrong", base, models), tmp_path / "out", registry=registry)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_read_is_named_before_the_merge(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    (base / "tokenizer.json").symlink_to(base / "nowhere")
    with pytest.raises(FormatError, match=r"tokenizer.json is no file that can be read"):
        modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")
