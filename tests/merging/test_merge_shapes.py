"""Tensors that only some models have, or have in other shapes: what becomes of them."""

from pathlib import Path

import pytest
import torch

import modalloy
from merging.models import SHAPES, make_models, read, recipe, save
from modalloy.errors import DeltaError, FormatError


def test_a_tensor_that_some_lack_is_merged_from_the_others(tmp_path: Path) -> None:
    _, models = make_models(tmp_path, 2, torch.float32)
    less = read(models[1])
    name = "model.layers.1.mlp.up_proj.weight"
    del less[name]
    save(models[1], less)
    result = modalloy.merge(recipe("linear", None, models, {"weight": 0.5}), tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")[name], read(models[0])[name])
    rows = {row["fate"]: row for row in result.record["accounting"]}
    assert rows["merged from a; b lacks it"]["names"] == [name]
    assert rows["merged from a, b"]["tensors"] == len(SHAPES) - 1


def test_what_the_output_lacks_is_skipped_and_said(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    more = read(models[0]) | {"vision_tower.weight": torch.ones(3)}
    save(models[0], more)
    result = modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")
    assert "vision_tower.weight" not in read(tmp_path / "out")
    row = result.record["accounting"][-1]
    assert (row["source"], row["names"]) == ("a", ["vision_tower.weight"])
    assert row["fate"] == "skipped: the output has no such tensor"


def test_another_arithmetic_is_said(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 2)
    save(base, read(base), rope_theta=10_000.0, head_dim=4)
    save(models[0], read(models[0]), rope_theta=1e6, head_dim=4)
    result = modalloy.merge(recipe("linear", base, models, {"weight": 0.5}), tmp_path / "out")
    told = [row for row in result.record["accounting"] if row["source"] in ("a", "b")]
    assert [(row["source"], row["fate"]) for row in told] == [
        ("a", "it computes otherwise than the output: rope_theta 1000000.0, the output 10000.0")
    ]


def test_rows_of_a_vocabulary_are_merged_by_those_who_have_them(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 2, torch.float32)
    name = "model.embed_tokens.weight"
    short, long = read(models[0]), read(models[1])
    short[name], long[name] = (
        short[name][:30].clone(),
        torch.cat([long[name], torch.ones(2, 24)]),
    )
    save(models[0], short, vocab_size=30)
    save(models[1], long, vocab_size=42)
    plain = recipe("task_arithmetic", base, models, {"weight": 0.5})
    result = modalloy.merge(plain, tmp_path / "out")
    start, found = read(base)[name], read(tmp_path / "out")[name]
    deltas = [short[name] - start[:30], long[name][:40] - start]
    expected = start + 0.5 * deltas[1]
    expected[:30] = start[:30] + (0.5 * deltas[0] + 0.5 * deltas[1][:30])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    fates = {(row["source"], row["fate"]) for row in result.record["accounting"]}
    assert ("a", "has 30 rows, the output 40: others alone merged below") in fates
    assert ("b", "has 42 rows, the output 40: given up") in fates


def test_rows_that_nobody_has_are_the_bases(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1, torch.float32)
    name = "model.embed_tokens.weight"
    short = read(models[0])
    short[name] = short[name][:30].clone()
    save(models[0], short)
    modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")[name][30:], read(base)[name][30:])


@pytest.mark.parametrize("stored", [True, False])
def test_a_tied_head_is_not_written(tmp_path: Path, *, stored: bool) -> None:
    base, models = make_models(tmp_path, 1)
    for directory in (base, *models):
        tensors = read(directory)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if not stored:
            del tensors["lm_head.weight"]
        save(directory, tensors, tie_word_embeddings=True)
    modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")
    assert sorted(read(tmp_path / "out")) == sorted(SHAPES.keys() - {"lm_head.weight"})


def test_the_head_of_a_tied_model_is_its_embedding(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1, torch.float32)
    tensors = read(models[0])
    del tensors["lm_head.weight"]
    save(models[0], tensors, tie_word_embeddings=True)
    plain = recipe("task_arithmetic", base, models, {"weight": 1})
    modalloy.merge(plain, tmp_path / "out")
    found = read(tmp_path / "out")["lm_head.weight"]
    torch.testing.assert_close(found, tensors["model.embed_tokens.weight"], rtol=1e-5, atol=1e-7)


def test_integers_are_the_donors(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    for number, directory in enumerate((base, *models)):
        save(directory, read(directory) | {"model.ids": torch.arange(5) + number})
    result = modalloy.merge(
        recipe("linear", None, [models[0], base], {"weight": 1}), tmp_path / "out"
    )
    assert read(tmp_path / "out")["model.ids"].tolist() == [1, 2, 3, 4, 5]
    fates = [row["fate"] for row in result.record["accounting"]]
    assert "copied from the donor: I64 is not merged" in fates


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    tensors = read(models[0])
    tensors["model.norm.weight"] = torch.ones(25, dtype=torch.bfloat16)
    save(models[0], tensors)
    with pytest.raises(DeltaError, match=r"model.norm.weight: a has \(25,\), the output \(24,\)"):
        modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")


def test_a_model_that_shares_nothing_is_refused(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    save(models[0], {f"language_model.{n}": t for n, t in read(models[0]).items()})
    with pytest.raises(DeltaError, match="10 of its 10 tensors find no place in the output"):
        modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")


def test_8_bit_and_quantised_weights_are_refused(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    tensors = read(models[0])
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save(models[0], tensors)
    with pytest.raises(DeltaError, match="F8_E4M3 is not merged"):
        modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")
    save(models[0], read(base), quantization_config={"bits": 4})
    with pytest.raises(FormatError, match="quantised; take the plain weights"):
        modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "ties", "della", "dare_ties", "slerp"])
def test_scalars_and_empty_tensors_are_merged_or_copied(tmp_path: Path, method: str) -> None:
    base, models = make_models(tmp_path, 1, torch.float32)
    for number, directory in enumerate((base, *models)):
        odd = {"model.scale": torch.tensor(1.0 + number), "model.none": torch.zeros(0, 24)}
        save(directory, read(directory) | odd | {"model.flat": torch.zeros(3, 0)})
    own = {} if method == "slerp" else {"weight": 1.0, "density": 0.999, "epsilon": 0.0001}
    known = {
        "linear": {"weight"},
        "ties": {"weight", "density"},
        "dare_ties": {"weight", "density"},
    }
    own = {key: value for key, value in own.items() if key in known.get(method, own)}
    more = {"parameters": {"t": 1.0}} if method == "slerp" else {}
    modalloy.merge(recipe(method, base, models, own, **more), tmp_path / "out")
    found = read(tmp_path / "out")
    assert float(found["model.scale"]) == pytest.approx(2, abs=0.01)
    assert (found["model.none"].shape, found["model.flat"].shape) == ((0, 24), (3, 0))
