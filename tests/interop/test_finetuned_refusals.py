"""What the conversion of whole models refuses, and in which words."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interop.wholes import edit_config, whole_model
from modalloy.errors import (
    BaseMismatchError,
    DeltaError,
    FormatError,
    ModalloyError,
    SpecError,
    UnsafePathError,
)
from modalloy.interop.convert import convert
from tiny import tiny_base

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tiny bases and models, made once; tests work on copies."""
    root = tmp_path_factory.mktemp("wholes")
    found = {"base": tiny_base(root / "base", family="qwen2", seed=3)}
    found["untied"] = tiny_base(root / "untied", family="qwen3", seed=3)
    for name in ("llava", "qwen2_audio"):
        whole_model(root / name, name, found["base"])
        found[name] = root / name
    whole_model(root / "qwen3_vl", "qwen3_vl", found["untied"])
    found["qwen3_vl"] = root / "qwen3_vl"
    return found


def copied(places: Mapping[str, Path], name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(places[name], tmp_path / "model"))


def edited(path: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def refused(
    source: Path, base: Path, tmp_path: Path, error: Any, message: str, **options: Any
) -> None:
    out = tmp_path / "out"
    with pytest.raises(error, match=message) as caught:
        convert(source, out, base=base, **options)
    assert isinstance(caught.value, ModalloyError)
    assert not list(tmp_path.glob("*out*")), "something was left behind"


def test_another_base_is_told_by_its_weights(places: Mapping[str, Path], tmp_path: Path) -> None:
    other = tiny_base(tmp_path / "other", family="qwen2", seed=4)
    message = r"was not tuned from the base 'other': the cosine of their weights is -?0\.0"
    refused(places["llava"], other, tmp_path, BaseMismatchError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 8}, "num_attention_heads 4 and 8"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps 1e-06 and 0.1"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            "rope_parameters .*10000.0.* and .*7.0",
        ),
    ],
)
def test_a_base_of_the_same_shapes_and_another_arithmetic_is_refused(
    places: Mapping[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = Path(shutil.copytree(places["base"], tmp_path / "base"))
    edit_config(base, **changes)
    refused(places["llava"], base, tmp_path, BaseMismatchError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
            "rope_parameters .*'linear'.* and .*'default'",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_parameters .*'linear'.* and"),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "layer_types .* and .*; sliding_window 4 and None",
        ),
        ({"hidden_act": "gelu"}, "hidden_act gelu and silu"),
    ],
)
def test_a_model_that_computes_otherwise_than_its_base_is_refused(
    places: Mapping[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = copied(places, "llava", tmp_path)
    text = json.loads((model / "config.json").read_text())["text_config"]
    if "rope_scaling" in changes:
        text.pop("rope_parameters")
    edit_config(model, text_config={**text, **changes})
    refused(model, places["base"], tmp_path, BaseMismatchError, message)


def test_a_base_of_another_family_or_size_is_refused(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    llama = tiny_base(tmp_path / "llama", family="llama")
    refused(places["llava"], llama, tmp_path, BaseMismatchError, "model_type 'qwen2' and 'llama'")

    def narrow(tensors: Tensors) -> None:
        name = "language_model.model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name][:40].clone()

    model = edited(copied(places, "llava", tmp_path), narrow)
    message = r"up_proj.weight' is \(40, 32\), the base 'base' has \(48, 32\)"
    refused(model, places["base"], tmp_path, BaseMismatchError, message)


def grow(tensors: Tensors) -> None:
    rows = torch.randn(10, tensors[EMBEDDING].shape[1])
    tensors[EMBEDDING] = torch.cat([tensors[EMBEDDING], rows])


def test_further_rows_of_the_vocabulary_are_left_out_where_words_agree(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    model = edited(copied(places, "llava", tmp_path), grow)
    made = convert(model, tmp_path / "out", base=places["base"])
    (row,) = [row for row in made.accounting if row.tensor == EMBEDDING]
    assert row.reason == "differs from the base; 10 rows of further words left out"
    found = load_file(tmp_path / "out" / "text_weights" / "model.safetensors")
    goal = load_file(model / "model.safetensors")[EMBEDDING][:-10]
    assert torch.equal(found["model.embed_tokens.weight"], goal)


def test_missing_rows_are_the_bases(places: Mapping[str, Path], tmp_path: Path) -> None:
    def shrink(tensors: Tensors) -> None:
        tensors[EMBEDDING] = tensors[EMBEDDING][:-10].clone()

    model = edited(copied(places, "llava", tmp_path), shrink)
    convert(model, tmp_path / "out", base=places["base"])
    found = load_file(tmp_path / "out" / "text_weights" / "model.safetensors")
    plain = load_file(places["base"] / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found["model.embed_tokens.weight"][-10:], plain[-10:])
    assert not torch.equal(found["model.embed_tokens.weight"][:10], plain[:10])


@pytest.mark.parametrize("other", ["none", "words"])
def test_a_resized_vocabulary_is_refused_where_words_may_differ(
    places: Mapping[str, Path], tmp_path: Path, other: str
) -> None:
    model = edited(copied(places, "llava", tmp_path), grow)
    path = model / "tokenizer.json"
    if other == "none":
        path.unlink()
        message = r"has 330 rows, the base 'base' 320, and .*/model has no tokenizer.json to see"
    else:
        data = json.loads(path.read_text())
        words = data["model"]["vocab"]
        one, two = list(words)[5:7]
        words[one], words[two] = words[two], words[one]
        path.write_text(json.dumps(data))
        message = "the tokenizers give other ids to the same words"
    refused(model, places["base"], tmp_path, BaseMismatchError, message)


def test_heads_tied_in_one_and_not_in_the_other_are_refused(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    def untie(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[HEAD] + 0.01

    model = edited(copied(places, "qwen2_audio", tmp_path), untie)
    message = "differs from the embedding, and the base ties its head"
    refused(model, places["base"], tmp_path, DeltaError, message)
    shutil.rmtree(model)
    model = edited(copied(places, "qwen3_vl", tmp_path), lambda t: t.pop("lm_head.weight"))
    message = "has no 'lm_head.weight': it ties its head to its embedding"
    refused(model, places["untied"], tmp_path, DeltaError, message)


def test_missing_shards_are_told(places: Mapping[str, Path], tmp_path: Path) -> None:
    def halve(tensors: Tensors) -> None:
        for name in [n for n in tensors if ".layers.1." in n and n.startswith("language_model")]:
            del tensors[name]

    model = edited(copied(places, "llava", tmp_path), halve)
    message = r"12 of the 26 tensors of its language model are missing, such as 'model.layers.1"
    refused(model, places["base"], tmp_path, FormatError, message)
    shutil.rmtree(model)
    model = copied(places, "llava", tmp_path)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    files[EMBEDDING] = "model-00002-of-00002.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    message = "1 of 2 shards are missing: 'model-00002-of-00002.safetensors'"
    refused(model, places["base"], tmp_path, FormatError, message)


def test_a_projector_or_tower_that_does_not_fit_is_refused(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    name = "multi_modal_projector.linear_1"
    model = edited(copied(places, "llava", tmp_path), lambda t: t.pop(f"{name}.bias"))
    message = "the projector lacks projection.0.bias"
    refused(model, places["base"], tmp_path, FormatError, message)
    shutil.rmtree(model)

    def narrow(tensors: Tensors) -> None:
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"][:, :8].clone()

    model = edited(copied(places, "llava", tmp_path), narrow)
    message = r"linear_1.weight' is \(32, 8\), its tower has 16 features a token"
    refused(model, places["base"], tmp_path, FormatError, message)
    shutil.rmtree(model)
    model = copied(places, "llava", tmp_path)
    edit_config(model, projector_hidden_act="relu")
    message = "the projector has activation 'relu' and bias True"
    refused(model, places["base"], tmp_path, SpecError, message)
    edit_config(model, projector_hidden_act="gelu", vision_feature_layer=[-2, -5])
    message = r"its features are of several layers of the tower \(\[-2, -5\]\)"
    refused(model, places["base"], tmp_path, SpecError, message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"energy": 0.5}])
def test_values_that_are_no_numbers_are_refused(
    places: Mapping[str, Path], tmp_path: Path, value: float, options: Any
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["language_model.model.layers.1.self_attn.q_proj.weight"][3, 5] = value

    model = edited(copied(places, "llava", tmp_path), spoil)
    message = "q_proj.weight' holds values that are no numbers"
    refused(model, places["base"], tmp_path, DeltaError, message, **options)


def test_a_tower_that_is_not_as_configured_is_refused(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    def drop(tensors: Tensors, start: str) -> None:
        for name in [n for n in tensors if n.startswith(start)]:
            del tensors[name]

    model = edited(copied(places, "llava", tmp_path), lambda t: drop(t, "vision_tower."))
    message = "holds no tensor of its tower"
    refused(model, places["base"], tmp_path, FormatError, message)
    shutil.rmtree(model)
    layer = "vision_tower.encoder.layers.1."
    model = edited(copied(places, "llava", tmp_path), lambda t: drop(t, layer))
    message = r"'model.encoder.layers.1.layer_norm1.bias' of its tower is missing, its config"
    refused(model, places["base"], tmp_path, FormatError, message)
    shutil.rmtree(model)
    model = copied(places, "llava", tmp_path)
    vision = json.loads((model / "config.json").read_text())["vision_config"]
    for changes, error, message in (
        ({"image_size": 56}, FormatError, r"is \(5, 16\), its config.json makes it \(17, 16\)"),
        ({"num_hidden_layers": 5}, FormatError, "is missing, its config.json makes it"),
        ({"patch_size": 0}, SpecError, "patch_size must be a positive whole number, found 0"),
    ):
        edit_config(model, vision_config={**vision, **changes})
        refused(model, places["base"], tmp_path, error, message)
    edit_config(model, vision_config=vision, vision_feature_layer=-50)
    message = "vision_feature_layer is -50, its tower has 3 layers"
    refused(model, places["base"], tmp_path, SpecError, message)


def test_nothing_is_written_into_what_is_read(places: Mapping[str, Path], tmp_path: Path) -> None:
    model = copied(places, "llava", tmp_path)
    for out, base in ((model / "x" / "y", places["base"]), (model / "base" / "x", model / "base")):
        if base.parent == model:
            shutil.copytree(places["base"], base)
        with pytest.raises(FormatError, match="which is only read; write somewhere else"):
            convert(model, out, base=base)
        assert not out.parent.exists() or out.parent == base
    convert(model, tmp_path / "deep" / "er" / "parent", base=places["base"])
    other = tiny_base(tmp_path / "other", family="qwen2", seed=4)
    with pytest.raises(BaseMismatchError):
        convert(model, tmp_path / "new" / "er" / "parent", base=other)
    assert not (tmp_path / "new").exists()


def test_a_tensor_of_no_part_is_refused(places: Mapping[str, Path], tmp_path: Path) -> None:
    model = edited(
        copied(places, "llava", tmp_path), lambda t: t.update({"gate.weight": torch.zeros(3)})
    )
    message = r"1 of 86 tensors have no place and would be lost: 'gate.weight'"
    refused(model, places["base"], tmp_path, DeltaError, message)


def test_a_frozen_language_model_is_no_delta(places: Mapping[str, Path], tmp_path: Path) -> None:
    whole_model(tmp_path / "model", "llava", places["base"], noise=0.0)
    message = "its language model is the base's to the bit, so there is no delta"
    refused(tmp_path / "model", places["base"], tmp_path, DeltaError, message)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modality": "audio"}, SpecError, "a 'llava' model has no modality 'audio', only vision"),
        ({"image_size": 56}, SpecError, "image_size does not apply, its tower sees squares of 28"),
        ({"seconds": 3.0}, SpecError, "seconds does not apply, it hears no sounds"),
        ({"components": "x"}, SpecError, "'components' does not apply; leave it out"),
        ({"rank": 0}, SpecError, "rank must be a positive integer, found 0"),
        ({"energy": 2.0}, SpecError, "energy must be above 0 and at most 1, found 2.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    places: Mapping[str, Path], tmp_path: Path, options: Any, error: Any, message: str
) -> None:
    refused(places["llava"], places["base"], tmp_path, error, message, **options)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 0.0, -1.0, 31.0])
def test_windows_that_a_tower_does_not_take_are_refused(
    places: Mapping[str, Path], tmp_path: Path, seconds: float
) -> None:
    message = "seconds must be from 0.04 to 0.4, which its tower takes"
    source, base = places["qwen2_audio"], places["base"]
    refused(source, base, tmp_path, SpecError, message, seconds=seconds)


def test_a_model_without_its_base_or_of_no_known_family_is_refused(
    places: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="give that with --base"):
        convert(places["llava"], tmp_path / "out")
    model = copied(places, "llava", tmp_path)
    edit_config(model, model_type="idefics3")
    message = "'idefics3' models are not converted whole; those that are: llava, llava_next"
    refused(model, places["base"], tmp_path, FormatError, message)
    edit_config(model, model_type="strange", auto_map={"AutoModel": "evil.Evil"})
    message = "model type 'strange' is not part of transformers; code that comes with a model"
    refused(model, places["base"], tmp_path, FormatError, message)
    edit_config(model, model_type="llava", quantization_config={"bits": 4})
    refused(model, places["base"], tmp_path, FormatError, "the model is quantised")


@pytest.mark.parametrize("files", [1, 3])
def test_pickles_are_read_where_they_may_be(
    places: Mapping[str, Path], tmp_path: Path, files: int
) -> None:
    model = copied(places, "llava", tmp_path)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = [f"pytorch_model-{n:05d}-of-{files:05d}.bin" for n in range(1, files + 1)]
    names = names if files > 1 else ["pytorch_model.bin"]
    owner = {name: names[number % files] for number, name in enumerate(tensors)}
    for name in names:
        torch.save({n: t for n, t in tensors.items() if owner[n] == name}, model / name)
    if files > 1:
        index = model / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": owner}))
    refused(model, places["base"], tmp_path, FormatError, "--allow-pickle")
    convert(model, tmp_path / "pickled", base=places["base"], allow_pickle=True)
    convert(places["llava"], tmp_path / "safe", base=places["base"])
    for name in ("text_weights/model.safetensors", "encoder.safetensors", "connector.safetensors"):
        found, goal = (load_file(tmp_path / one / name) for one in ("pickled", "safe"))
        assert found.keys() == goal.keys()
        assert all(torch.equal(found[key], goal[key]) for key in goal)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("../secret.bin", UnsafePathError, "climbs out of its directory"),
        ("other.safetensors", UnsafePathError, "does not end with '.bin'"),
        ("other.bin", FormatError, "1 of 1 files are missing, such as 'other.bin'"),
    ],
)
def test_an_index_of_pickles_that_leads_elsewhere_is_refused(
    places: Mapping[str, Path], tmp_path: Path, name: str, error: Any, message: str
) -> None:
    model = copied(places, "llava", tmp_path)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "secret.bin")
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused(model, places["base"], tmp_path, error, message, allow_pickle=True)


def test_a_parent_tuned_whole_is_inspected(
    places: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from modalloy.cli.inspect import command

    convert(places["llava"], tmp_path / "parent", base=places["base"])
    command(str(tmp_path / "parent"))
    shown = capsys.readouterr().out
    assert re.search(r"text_weights +26 +whole +[\d,]+ +F32", shown)
