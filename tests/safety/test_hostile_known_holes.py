"""What is not refused as it should be yet; each test passes once its hole is closed."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from modalloy.errors import FormatError, ModalloyError, SpecError, UnsafePathError
from modalloy.parent import sha256
from safety.entries import compose, load, use_and_save
from safety.hostile import WEIGHTS, Box, scaled_weights

MakeBox = Callable[[str], Box]


def hole(where: str, raises: Any = None) -> Any:
    return pytest.mark.xfail(strict=True, raises=raises, reason=f"open: {where}")


@hole("composition/configuration.py: names of modalities are not checked; extras.py writes there")
def test_a_modality_whose_name_is_a_path(box: MakeBox) -> None:
    """On saving, its encoder goes to the path that its name is."""
    inside = box("composition")
    name = str(inside.outside.path / "evil")
    file = inside.model / "encoders" / f"{name.strip('/')}.safetensors"
    file.parent.mkdir(parents=True)
    shutil.copy(inside.model / WEIGHTS, file)
    for target in ("config.json", "processor_config.json"):
        path = inside.model / target
        path.write_text(path.read_text().replace('"sight"', json.dumps(name)))
    inside.edit("modalloy.json", lambda data: data["parents"][0].update(
        modality=name, files={"encoder.safetensors": sha256(file)}
    ))  # fmt: skip
    stored = load_file(inside.model / WEIGHTS)
    renamed = {
        key.replace(".sight", f".{name}") if key.endswith(".sight") else
        key.replace("connectors.sight.", f"connectors.{name}."): value
        for key, value in stored.items()
    }  # fmt: skip
    save_file(renamed, inside.model / WEIGHTS, metadata={"format": "pt"})

    def save() -> None:
        composition = load(inside.model)
        composition.model.save_pretrained(inside.out)

    inside.refuses(save, FormatError, name)


@hole("composition/directory.py: _check_installed shows a modality's name as something to install")
def test_a_modality_whose_name_is_an_address(box: MakeBox) -> None:
    inside = box("composition")

    def change(data: Any) -> None:
        entry = data["modalities"].pop("sight")
        entry["connector"]["type"], entry["requires"] = "nope", None
        data["modalities"]["git+https://evil.example/x"] = entry

    inside.edit("config.json", change)
    with inside.watched(), pytest.raises(ModalloyError) as caught:
        load(inside.model)
    assert 'pip install "git+' not in str(caught.value)


@hole("composition/directory.py: modalities of processor_config.json are not those of config.json")
@pytest.mark.parametrize("key", ["requires", "tokens", "all"])
def test_a_processor_that_says_something_else(box: MakeBox, key: str) -> None:
    inside = box("composition")
    values = {"requires": "git+https://evil.example/x", "tokens": 10**6}

    def change(data: Any) -> None:
        if key == "all":
            data["modalities"] = ["sight"]
        else:
            data["modalities"]["sight"][key] = values[key]

    inside.edit("processor_config.json", change)
    inside.refuses(lambda: load(inside.model), FormatError, "processor_config.json")


@hole("composition/directory.py: a composition may ask for a quantiser, and by that for kernels")
@pytest.mark.parametrize("place", ["whole", "text_config"])
def test_a_composition_that_is_quantised(box: MakeBox, place: str) -> None:
    inside = box("composition")
    asked = {"quantization_config": {"quant_method": "mxfp4"}}
    inside.edit("config.json", lambda d: (d if place == "whole" else d[place]).update(asked))
    inside.refuses(lambda: load(inside.model), FormatError, "quantised")


@hole("composition/processing.py: what jinja raises is not turned into an InputError")
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% for ",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% include 'x' %}",
    ],
)
def test_errors_of_templates(box: MakeBox, template: str) -> None:
    inside = box("composition")
    (inside.model / "chat_template.jinja").write_text(template)
    found = load(inside.model)
    inside.refuses(lambda: use_and_save(inside, found), ModalloyError, "chat template")


@hole("composition/extras.py: parents of modalloy.json are used before they are checked")
@pytest.mark.parametrize("parents", [[1], 3, [{"modality": [], "files": 3}]])
def test_a_record_of_another_shape(box: MakeBox, parents: Any) -> None:
    inside = box("composition")
    inside.edit("modalloy.json", parents=parents)
    inside.refuses(lambda: load(inside.model), FormatError, "modalloy.json")


@hole("base.py: Base.model() passes on what transformers raises")
@pytest.mark.parametrize("what", ["generation", "list", "activation"])
def test_bases_that_transformers_stumbles_over(box: MakeBox, good: Path, what: str) -> None:
    inside = box("base")
    if what == "generation":
        inside.edit("generation_config.json", cache_implementation="os")
    elif what == "list":
        (inside.model / "generation_config.json").write_text("[]")
    else:
        inside.edit("config.json", hidden_act="os.system")
    inside.refuses(lambda: compose(inside.model, good / "parent"), FormatError, "model")


@hole("composition/extras.py: check_weights does not call safe_files.check_files")
@pytest.mark.parametrize("how", ["piece", "link"])
def test_what_transformers_opens_by_itself(box: MakeBox, how: str) -> None:
    from transformers import AutoModelForMultimodalLM

    inside = box("composition")
    if how == "piece":
        name = "shard-00001-model-00001-of-00001.safetensors"
        scaled_weights(inside.model / WEIGHTS, inside.model / name)
    else:
        inside.link("generation_config.json", "x.json")
    kind: Any = AutoModelForMultimodalLM
    inside.refuses(lambda: kind.from_pretrained(inside.model), FormatError, "")


@hole("composition/extras.py: config.json names other weights, which are read unchecked")
def test_other_weights_that_transformers_opens_by_itself(box: MakeBox) -> None:
    from transformers import AutoModelForMultimodalLM

    inside = box("composition")
    scaled_weights(inside.model / WEIGHTS, inside.outside.path / "w.safetensors")
    table = dict.fromkeys(load_file(inside.model / WEIGHTS), "../outside/w.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": table})
    (inside.model / "o.safetensors.index.json").write_text(index)
    inside.edit("config.json", transformers_weights="o.safetensors.index.json")
    kind: Any = AutoModelForMultimodalLM
    inside.refuses(lambda: kind.from_pretrained(inside.model), FormatError, "")


@hole("composition/directory.py: _fetch reads config.json before it is known to be inside")
def test_a_configuration_elsewhere(box: MakeBox) -> None:
    inside = box("composition")
    inside.link("config.json", "config.json")
    inside.refuses(lambda: load(inside.model), UnsafePathError, "'config.json'")


@hole("cli/inspect.py, composition/extras.py: records are shown before they are checked")
@pytest.mark.parametrize(
    "keys", [{"base": 1}, {"parents": [1]}, {"accounting": 1}, {"coefficients": {"default": 1}}]
)
def test_records_that_are_shown(
    box: MakeBox, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    inside = box("composition")
    inside.edit("modalloy.json", **keys)
    assert run(monkeypatch, "inspect", inside.model) == 1


@hole("cli/output.py: what stands in files is printed with its control characters")
@pytest.mark.parametrize("kind", ["parent", "composition"])
def test_terminals_are_not_driven(
    box: MakeBox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    inside = box(kind)
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m"
    if kind == "parent":
        inside.edit("parent.json", lambda data: data.update(licence=evil, name=evil))
    else:
        inside.edit("modalloy.json", method=evil)
    assert run(monkeypatch, "inspect", inside.model) == 0
    done = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & set(done.out + done.err)


@hole("cli/output.py: print_json fails on what is no number")
def test_scores_that_are_no_numbers(box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = box("parent")
    inside.edit("parent.json", scores={"x": float("nan")})
    assert run(monkeypatch, "inspect", inside.model, "--json") in (0, 1)


@hole("cli/inspect.py: training records are shown as if they had a form")
def test_training_records_of_another_shape(box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = box("parent")
    inside.edit("parent.json", training={"results": {"stage": {"loss": "x"}}})
    assert run(monkeypatch, "inspect", inside.model) in (0, 1)


@hole("training/config.py: an attention implementation may name a repository of kernels")
def test_attention_from_elsewhere(good: Path, tmp_path: Path) -> None:
    from modalloy.training.config import read_config

    text = "name: x\nmodality: sight\nencoder: {type: toy-sight}\nconnector: {type: linear}\n"
    text += "connector_stage: {steps: 0}\ntuning_stage: {steps: 0}\nattention: org/kernel\n"
    (tmp_path / "train.yml").write_text(text)
    with pytest.raises((SpecError, FormatError), match="attention"):
        read_config(tmp_path / "train.yml")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    from modalloy.cli.main import run as command_line

    monkeypatch.setattr(sys, "argv", ["modalloy", *map(str, words)])
    try:
        command_line()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
