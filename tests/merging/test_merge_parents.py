"""What may be merged beside whole models: adapters, and parents of a modality."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import modalloy
from merging.models import assert_same, make_models, read, recipe, save, write_pair
from modalloy.errors import BaseMismatchError, DeltaError, UnsafePathError
from modalloy.merging import operands
from modalloy.merging.rules import Deltas
from modalloy.merging.whole import apply_rule


def test_an_adapter_is_its_product_added_to_the_base(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1, torch.float32)
    adapter = write_pair(tmp_path / "adapter")
    own = {"weight": 0.5}
    for method in ("task_arithmetic", "linear"):
        out = tmp_path / method
        plain = recipe(method, base, [adapter, *models], own)
        modalloy.merge(plain, out)
        start, other = read(base), read(models[0])
        for name, tensor in read(out).items():
            delta = delta_of(name, start[name])
            expected = start[name] + 0.5 * delta + 0.5 * (other[name] - start[name])
            torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)


def test_the_streams_of_an_adapter_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operands, "CHUNK", 100)
    base, models = make_models(tmp_path, 2, torch.float32)
    adapter = write_pair(tmp_path / "z")
    own = {"weight": 0.5, "density": 0.4}
    modalloy.merge(recipe("ties", base, [*models, adapter], own), tmp_path / "out")
    start, parts = read(base), [read(model) for model in models]
    rule = Deltas(weights=(0.5,) * 3, density=(0.4,) * 3, elect=True, normalize=True)
    name = "model.layers.1.mlp.up_proj.weight"
    expected = apply_rule(
        rule,
        start[name],
        [*(part[name] for part in parts), delta_of(name, start[name])],
        is_delta=[False, False, True],
    )
    torch.testing.assert_close(read(tmp_path / "out")[name], expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_with_no_place_is_refused(tmp_path: Path) -> None:
    base, _ = make_models(tmp_path, 1)
    adapter = write_pair(tmp_path / "adapter", prefix="language_model.")
    with pytest.raises(DeltaError, match=r"1 of its 1 tensors find no place .* 'language_model"):
        modalloy.merge(recipe("task_arithmetic", base, [adapter], {"weight": 1}), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_parent_brings_its_text_delta(tmp_path: Path) -> None:
    from tiny import tiny_base
    from toy import toy_parent

    base = tiny_base(tmp_path / "base")
    parent = toy_parent(tmp_path / "parent", base, "red", strategy="decoupled")
    result = modalloy.merge(
        recipe("task_arithmetic", base, [parent], {"weight": 1}), tmp_path / "out"
    )
    from modalloy.deltas.lowrank import read_adapter

    delta = read_adapter(parent / "text_adapter")
    found, start = read(tmp_path / "out"), read(base)
    for module, pair in delta.pairs.items():
        expected = (start[f"{module}.weight"].float() + pair.dense()).to(torch.float32)
        got = found[f"{module}.weight"].float()
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3)
    fates = [row["fate"] for row in result.record["accounting"]]
    assert any("text stream is merged" in fate for fate in fates)
    assert any("encoder and connector are left out" in fate for fate in fates)


def test_a_parent_of_another_base_is_refused(tmp_path: Path) -> None:
    from tiny import tiny_base
    from toy import toy_parent

    base = tiny_base(tmp_path / "base")
    other = tiny_base(tmp_path / "other", seed=5)
    parent = toy_parent(tmp_path / "parent", other, "red", strategy="naive")
    with pytest.raises(BaseMismatchError, match="the weights differ"):
        modalloy.merge(recipe("ties", base, [parent], {"weight": 1}), tmp_path / "out")


def delta_of(name: str, like: torch.Tensor) -> torch.Tensor:
    if name != "model.layers.1.mlp.up_proj.weight":
        return torch.zeros_like(like)
    generator = torch.Generator().manual_seed(9)
    a = torch.randn(3, 24, generator=generator)
    b = torch.randn(70, 3, generator=generator)
    return 2.0 * (b @ a)


def test_an_adapter_through_a_link_out_of_its_directory_is_refused(tmp_path: Path) -> None:
    base, _ = make_models(tmp_path, 1)
    adapter = write_pair(tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UnsafePathError, match="leads outside its directory"):
        modalloy.merge(recipe("ties", base, [adapter], {"weight": 1}), tmp_path / "out")


def test_an_adapter_over_integers_is_refused(tmp_path: Path) -> None:
    base, _ = make_models(tmp_path, 1)
    tensors = read(base)
    name = "model.layers.1.mlp.up_proj.weight"
    save(base, tensors | {name: tensors[name].to(torch.int8)})
    adapter = write_pair(tmp_path / "adapter")
    with pytest.raises(DeltaError, match="floating point in some models and not in others"):
        modalloy.merge(recipe("ties", base, [adapter], {"weight": 1}), tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "own", "more"),
    [
        ("linear", {"weight": 0.5}, {}),
        ("task_arithmetic", {"weight": 0.5}, {"normalize": True}),
        ("ties", {"weight": 0.5, "density": 0.4}, {}),
        ("passthrough", {"scale": 2.0}, {}),
    ],
)
def test_an_adapter_is_the_model_that_it_makes_of_the_base(
    tmp_path: Path, method: str, own: dict[str, float], more: dict[str, bool]
) -> None:
    base, models = make_models(tmp_path, 1, torch.float32)
    adapter = write_pair(tmp_path / "z" / "x")
    modalloy.merge(recipe("task_arithmetic", base, [adapter], {"weight": 1}), tmp_path / "y" / "x")
    others = [] if method == "passthrough" else models
    for name, one in (("adapter", adapter), ("folded", tmp_path / "y" / "x")):
        plain = recipe(method, base, [*others, one], own, parameters=more)
        modalloy.merge(plain, tmp_path / name)
    folded = read(tmp_path / "folded")
    for name, tensor in read(tmp_path / "adapter").items():
        torch.testing.assert_close(tensor, folded[name], rtol=1e-6, atol=1e-7)


def test_what_an_adapter_does_not_touch_is_written_in_the_dtype_asked_for(tmp_path: Path) -> None:
    base, _ = make_models(tmp_path, 1, torch.float32)
    adapter = write_pair(tmp_path / "adapter")
    plain = recipe("task_arithmetic", base, [adapter], {"weight": 1}, out_dtype="bfloat16")
    modalloy.merge(plain, tmp_path / "out")
    found, start = read(tmp_path / "out"), read(base)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found["model.norm.weight"], start["model.norm.weight"].bfloat16())


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear"])
def test_a_parent_tuned_whole_merges_as_the_model_that_it_is(tmp_path: Path, method: str) -> None:
    import shutil

    from modalloy.parent import read_manifest, write_manifest
    from tiny import tiny_base
    from toy import toy_parent

    base = tiny_base(tmp_path / "base", family="qwen3")
    plain = read(base)
    generator = torch.Generator().manual_seed(1)
    tuned = {
        name: tensor + torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in plain.items()
        if ".1." in name or "norm" in name
    }
    parent = toy_parent(tmp_path / "parent", base, "red", strategy="naive")
    shutil.rmtree(parent / "text_adapter")
    (parent / "text_weights").mkdir()
    save_file(tuned, parent / "text_weights" / "model.safetensors")
    write_manifest(parent, read_manifest(parent))
    model = tiny_base(tmp_path / "model", family="qwen3")
    save_file({**plain, **tuned}, model / "model.safetensors")
    other = tiny_base(tmp_path / "other", family="qwen3", seed=4)
    settings = {"weight": 0.5} | ({"density": 0.4} if method == "ties" else {})
    for name, first in (("p", parent), ("m", model)):
        modalloy.merge(recipe(method, base, [first, other], settings), tmp_path / name)
    found, goal = read(tmp_path / "p"), read(tmp_path / "m")
    assert_same(found, goal)
    assert any(not torch.equal(found[name], plain[name]) for name in tuned)


def test_a_parent_with_nothing_to_merge_is_refused(tmp_path: Path) -> None:
    import shutil

    from modalloy.parent import read_manifest, write_manifest
    from tiny import tiny_base
    from toy import toy_parent

    base = tiny_base(tmp_path / "base")
    parent = toy_parent(tmp_path / "parent", base, "red", strategy="naive")
    shutil.rmtree(parent / "text_adapter")
    write_manifest(parent, read_manifest(parent))
    with pytest.raises(DeltaError, match="has neither text_adapter nor text_weights"):
        modalloy.merge(recipe("ties", base, [parent], {"weight": 1}), tmp_path / "out")
