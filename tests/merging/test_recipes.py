"""Recipes: what is read, and what each mistake is told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import modalloy
from merging.models import assert_same, make_models, read, recipe
from modalloy.errors import FormatError, SpecError, UnknownNameError
from modalloy.merging.recipe import parse_recipe, read_recipe
from modalloy.merging.rules import kept_ranks, slerp_weights
from modalloy.merging.settings import depth_of, find_setting
from modalloy.merging.sources import make_labels
from modalloy.tensor_method import Parameter, TensorMethod

MERGEKIT = """
models:
  - model: org/base
  - model: org/math
    parameters:
      density: [1, 0.7, 0.1] # a gradient
      weight: 1.0
  - model: org/code
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
tokenizer_source: base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""


def test_a_recipe_of_mergekits_documentation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(MERGEKIT)
    found = read_recipe(path)
    assert (found.merge_method, found.base_model, found.written) == ("ties", "org/base", "F16")
    assert [model.model for model in found.models] == ["org/base", "org/math", "org/code"]
    assert found.models[1].parameters["density"] == [1, 0.7, 0.1]
    assert parse_recipe(found.to_dict()) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_methode": "ties"}, r"merge_methode is not a known key .* mean 'merge_method'\?"),
        ({"merge_method": None}, "merge_method"),
        ({"models": []}, "'models' must list a model at least"),
        ({"models": [{"modell": "a"}]}, r"models.0.modell is not a known key"),
        ({"models": "a"}, "models must be list, found 'a'"),
        ({"slices": [1]}, r"'slices' \(merging layers of different places\) is not done here"),
        (
            {"dtype": "bflaot16"},
            r"dtype must be one of .* found 'bflaot16'. Did you mean 'bfloat16'",
        ),
        (
            {"out_dtype": "int8"},
            "out_dtype must be one of bfloat16, float16, float32; found 'int8'",
        ),
        ({"tokenizer_source": "union"}, "tokenizer_source 'union': only 'base' is done"),
        ({"parameters": [1]}, "parameters"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(change: dict[str, Any], message: str) -> None:
    data = {"merge_method": "ties", "models": [{"model": "a"}], "base_model": "b"} | change
    with pytest.raises(FormatError, match=message):
        parse_recipe({key: value for key, value in data.items() if value is not None}, "r.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "is not valid YAML"),
        ("- a", "expected a mapping of keys, found list"),
        ("!!python/object/apply:os.system ['touch canary']", "is not valid YAML"),
    ],
)
def test_a_file_that_holds_no_recipe_is_refused_and_runs_nothing(
    tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yml").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_recipe(tmp_path / "r.yml")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yml"]


@pytest.mark.parametrize(
    ("method", "own", "message"),
    [
        ("ties", {"weigth": 1}, r"no parameter 'weigth'; it takes .* Did you mean 'weight'\?"),
        ("ties", {"weight": "half"}, "parameter 'weight' must be a finite number, found 'half'"),
        ("ties", {"weight": True}, "parameter 'weight' must be a finite number, found True"),
        ("ties", {"weight": float("nan")}, "must be a finite number, found nan"),
        ("ties", {"weight": 10**400}, "must be a finite number, found 1000"),
        ("ties", {"weight": 1e39}, r"must be a finite number, found 1e\+39"),
        ("ties", {"weight": 1, "density": 1.5}, "'density' must be from 0 to 1, found 1.5"),
        ("ties", {"weight": []}, "a gradient needs a value at least"),
        ("ties", {"weight": [1, [2]]}, "a list within a list means nothing"),
        ("ties", {"weight": {"value": [{"value": 1}]}}, "a filter within a filter means nothing"),
        ("ties", {"weight": {"value": {"value": 1}}}, "a filter within a filter means nothing"),
        ("ties", {"weight": [1, {"value": 2}]}, "filters and plain values stand in one list"),
        (
            "ties",
            {"weight": {"filtre": "x", "value": 1}},
            r"found filtre, value. Did you mean 'filter'",
        ),
        ("ties", {"weight": {"filter": 3, "value": 1}}, "'filter' must be part of a tensor's name"),
        ("ties", {}, r"needs the parameter 'weight' for model '.*a', and the recipe says none for"),
        (
            "ties",
            {"weight": {"filter": "mlp", "value": 1}},
            r"says none for lm_head.weight",
        ),
        ("linear", {"weight": 0}, "the weights 0.0, 0.0 sum to 0|the weights 0, 0 sum to 0"),
        ("della", {"weight": 1, "density": 0.1}, "density 0.1 less or more epsilon 0.15 must lie"),
        ("slerp", {}, "merges the base and one other model, the recipe lists 2"),
        ("passthrough", {}, "merges 1 model at most, the recipe lists 2"),
    ],
)
def test_a_mistake_in_a_setting_is_named_before_anything_is_written(
    tmp_path: Path, method: str, own: dict[str, Any], message: str
) -> None:
    base, models = make_models(tmp_path, 2)
    with pytest.raises(SpecError, match=message):
        modalloy.merge(recipe(method, base, models, own), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_switch_is_true_or_false(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    plain = recipe("ties", base, models, {"weight": 1}, parameters={"normalize": 1})
    with pytest.raises(SpecError, match="recipe: parameter 'normalize' must be true or false"):
        modalloy.merge(plain, tmp_path / "out")


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    for name, weight in (("text", ["1e-1", "2e-1"]), ("number", [0.1, 0.2])):
        plain = recipe("task_arithmetic", base, models, {"weight": weight})
        modalloy.merge(plain, tmp_path / name)
    assert_same(read(tmp_path / "text"), read(tmp_path / "number"))


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    with pytest.raises(SpecError, match=r"device 'meat' cannot be used: .*; 'cpu' can always be"):
        modalloy.merge(recipe("ties", base, models, {"weight": 1}), tmp_path / "out", device="meat")


def test_settings_that_mergekit_knows_are_known(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 2)
    plain = recipe("task_arithmetic", base, models, {"weight": 0.5, "density": 1})
    plain |= {"parameters": {"rescale": False, "int8_mask": True}}
    modalloy.merge(plain, tmp_path / "out")
    with pytest.raises(SpecError, match="'rescale' can only be False, which is what is done"):
        modalloy.merge(plain | {"parameters": {"rescale": True}}, tmp_path / "two")
    parse_recipe(plain | {"parameters": None, "models": [{"model": "a", "parameters": None}]})


def test_whether_a_base_that_is_not_listed_is_averaged_has_to_be_said(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    plain = recipe("linear", base, models, parameters={"weight": 0.5})
    with pytest.raises(SpecError, match="'weight' is set for all models, and the base is"):
        modalloy.merge(plain, tmp_path / "out")
    listed = [{"model": f"{base}/"}, *plain["models"]]
    modalloy.merge(plain | {"models": listed}, tmp_path / "out")
    start, end = read(base), read(models[0])
    name = "model.norm.weight"
    mean = ((start[name].float() + end[name].float()) / 2).bfloat16()
    assert torch.equal(read(tmp_path / "out")[name], mean)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_text(
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 1, weight: 2}}]\n"
    )
    with pytest.raises(FormatError, match="the key 'weight' stands twice"):
        read_recipe(path)


def test_labels_are_short_and_unlike() -> None:
    assert make_labels(["x/a", "y/b"]) == ["a", "b"]
    assert make_labels(["x/a", "y/a"]) == ["x/a", "y/a"]
    labels = make_labels(["z/a#2", "a", "a", "a"])
    assert len(set(labels)) == 4
    with pytest.raises(SpecError, match="give it a name that can be printed"):
        make_labels(["a\nb"])


def test_methods_are_named_and_need_their_models(tmp_path: Path) -> None:
    base, models = make_models(tmp_path, 1)
    with pytest.raises(UnknownNameError, match=r"unknown tensor method 'tise'.* mean 'ties'"):
        modalloy.merge(recipe("tise", base, models), tmp_path / "out")
    with pytest.raises(SpecError, match="needs a 'base_model'"):
        modalloy.merge(recipe("ties", None, models, {"weight": 1}), tmp_path / "out")
    with pytest.raises(SpecError, match="the recipe lists the base alone"):
        modalloy.merge(recipe("ties", base, [base], {"weight": 1}), tmp_path / "out")


@pytest.mark.parametrize(
    ("elements", "density", "outliers", "expected"),
    [
        (10, 0.25, None, (1, 2)),
        (10, 0.01, None, (1, 1)),
        (10, 0.0, None, (0, 0)),
        (10, 1.0, None, (1, 10)),
        (10, 0.5, 0.2, (3, 7)),
        (10, 0.9, 0.3, (2, 10)),
        (10, 0.05, 0.1, (0, 0)),
    ],
)
def test_what_is_kept_by_rank(
    elements: int, density: float, outliers: float | None, expected: tuple[int, int]
) -> None:
    assert kept_ranks(elements, density, outliers) == expected


def test_slerp_of_parallel_and_of_empty_tensors_is_linear() -> None:
    assert slerp_weights(0.3, 4.0, 9.0, 6.0) == (0.7, 0.3)
    assert slerp_weights(0.3, 0.0, 1.0, 0.0) == pytest.approx((0.8910, 0.4540), abs=1e-4)


def test_gradients_run_from_the_first_layer_to_the_last() -> None:
    names = [f"model.layers.{n}.mlp.weight" for n in range(5)]
    assert [depth_of(name, 5) for name in names] == [0, 0.25, 0.5, 0.75, 1]
    assert (depth_of("model.norm.weight", 5), depth_of("model.layers.0.x", 1)) == (0, 1)
    weight = Parameter(name="weight", by_model=True)
    scopes = [{"weight": [0, 1, 0]}]
    assert [find_setting(weight, scopes, n, depth_of(n, 5)) for n in names] == [0, 0.5, 1, 0.5, 0]
    scopes = [{"weight": [{"filter": "mlp", "value": [2, 4]}]}, {"weight": 7}]
    assert find_setting(weight, scopes, "mlp", 0.5) == 3
    assert find_setting(weight, scopes, "attn", 0.5) == 7
    assert find_setting(weight, [{"weight": {"value": 5}}], "attn", 0.5) == 5


def test_a_method_is_declared_whole() -> None:
    fields: dict[str, Any] = {"name": "x", "api_version": 1, "summary": "", "rule": "a.b:c"}
    with pytest.raises(SpecError, match="over must be one of deltas, models, pair; got 'all'"):
        TensorMethod(**fields, over="all")


class TestCommand:
    def run(self, *words: Any, command: str = "merge") -> tuple[int, str, str]:
        code = "from modalloy.cli.main import run; run()"
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-c", code, command, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def test_it_merges_and_says_what_became_of_every_tensor(self, tmp_path: Path) -> None:
        base, models = make_models(tmp_path, 2)
        path = tmp_path / "r.yml"
        path.write_text(yaml.safe_dump(recipe("ties", base, models, {"weight": 1})))
        code, out, err = self.run(path, tmp_path / "out")
        assert code == 0, err
        assert "merged from a, b" in out
        assert "merged and saved in" in out
        assert "merging: " in err
        code, out, _ = self.run(path, tmp_path / "two", "--json", "--shard-size", "5KB")
        assert code == 0
        record = json.loads(out)
        assert record["accounting"][0]["fate"] == "merged from a, b"
        assert record["model"] == str(tmp_path / "two")
        shown = self.run(tmp_path / "two", "--json", command="inspect")
        assert json.loads(shown[1]) == {
            k: v for k, v in record.items() if k in json.loads(shown[1])
        }
        assert "merged from a, b" in self.run(tmp_path / "two", command="inspect")[1]

    def test_mistakes_end_with_their_codes(self, tmp_path: Path) -> None:
        code, out, err = self.run(tmp_path / "none.yml", tmp_path / "out")
        assert (code, out) == (1, "")
        assert "none.yml cannot be read" in err
        code, _, err = self.run(tmp_path / "none.yml", tmp_path / "out", "--shard-size", "x")
        assert code == 1
        assert "--shard-size must be such as 5GB or 500MB, found 'x'" in err
        code, _, _ = self.run(tmp_path / "none.yml", tmp_path / "out", "--workers", "0")
        assert code == 2


def test_a_recipe_that_is_too_large_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text("#" * (2**20 + 1))
    with pytest.raises(FormatError, match=r"recipe\.yml has more than 1048576 bytes; is it a rec"):
        read_recipe(file)
