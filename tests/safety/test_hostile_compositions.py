"""Composition directories of an enemy's, at ``modalloy.load`` and after it."""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from modalloy.errors import (
    FormatError,
    InputError,
    MissingComponentError,
    ModalloyError,
    UnsafePathError,
)
from modalloy.parent import sha256
from safety.entries import load, use_and_save
from safety.hostile import WEIGHTS, Box, same_weights, scaled_weights

MakeBox = Callable[[str], Box]
LINK = "is a symbolic link that leads outside its directory"
CODE = {
    "auto_map": {"AutoConfig": "foreign.C", "AutoModel": "foreign.M", "AutoProcessor": "foreign.P"},
    "trust_remote_code": True,
    "_attn_implementation": "org/kernel",
    "_attn_implementation_internal": "org/kernel",
    "_experts_implementation": "org/experts",
    "fusion_config": {"patch_embeddings": True},
    "use_kernels": True,
}


def test_no_code_of_a_composition_is_run(box: MakeBox) -> None:
    inside = box("composition")
    for name in ("foreign.py", "custom_generate/generate.py", "modeling_modalloy.py"):
        inside.code(name, "def generate(model, **_):\n    return model\nC = M = P = object\n")
    inside.edit("config.json", lambda data: data["text_config"].update(CODE), **CODE)
    inside.edit("processor_config.json", **CODE, processor_class="Foreign")
    inside.edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["foreign.T", "foreign.T"]})
    inside.edit("generation_config.json", custom_generate="org/generate", trust_remote_code=True)
    found = inside.takes(lambda: load(inside.model))
    inside.takes(lambda: use_and_save(inside, found))
    assert found.model.language_model.config._attn_implementation == "sdpa"
    written = json.loads((inside.out / "config.json").read_text())
    assert not CODE.keys() & (written.keys() | written["text_config"].keys())
    assert not list(inside.out.rglob("*.py"))


def test_other_weights_named_in_the_configuration(box: MakeBox) -> None:
    inside = box("composition")
    scaled_weights(inside.model / WEIGHTS, inside.model / "other.safetensors")
    inside.edit("config.json", transformers_weights="other.safetensors")
    model = inside.takes(lambda: load(inside.model)).model
    assert same_weights(model, inside.model / WEIGHTS)


def put(*keys: Any) -> Callable[[Any], object]:
    """Return what sets a value, the last of ``keys``, at the place that the others lead to."""

    def change(data: Any) -> None:
        for key in keys[:-2]:
            data = data[key]
        data[keys[-2]] = keys[-1]

    return change


SIGHT = ("modalities", "sight")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (put("model_type", "os:system"), FormatError, "holds a 'os:system' model"),
        (put("text_config", "model_type", "os"), FormatError, "text_config is no 'os' config"),
        (put("text_config", "dtype", "load"), FormatError, "found 'load'"),
        (put("text_config", [{}]), FormatError, "text_config must be a mapping"),
        (put("text_config", "hidden_act", "os.system"), FormatError, "no model can be made"),
        (put("text_config", "model_type", "clip"), FormatError, "config.json"),
        (put(*SIGHT, "requires", "git+https://evil/x"), FormatError, "must be a requirement such"),
        (put(*SIGHT, "tokens", 10**12), FormatError, "'tokens' must be <= 65536"),
        (put(*SIGHT, "prefix_tokens", -1), FormatError, "'prefix_tokens' must be >= 0"),
        (put(*SIGHT, "token_type_id", 2**40), FormatError, "must be <= 65536"),
        (put(*SIGHT, "connector", "type", "evil_module:run"), MissingComponentError, "connector"),
        (put(*SIGHT, "connector", "type", "../foreign"), MissingComponentError, "connector"),
        (put(*SIGHT, "connector", "config", {"target": "foreign:C"}), ModalloyError, "'target'"),
        (put(*SIGHT, "text_delta", 0, "rank", 2**40), FormatError, "must be <= 65536"),
        (put("coefficients", {"rule": "foreign:C"}), ModalloyError, "coefficients"),
    ],
)
def test_configurations_that_are_refused(
    box: MakeBox, change: Any, kind: type[ModalloyError], words: str
) -> None:
    inside = box("composition")
    inside.code()
    inside.edit("config.json", change)
    inside.refuses(lambda: load(inside.model), kind, words)


def test_an_encoder_is_a_name_and_nothing_to_import(box: MakeBox) -> None:
    inside = box("composition")
    inside.code()
    for name in ("foreign:build", "../foreign", "git+https://evil/x", "os:system"):
        inside.edit("config.json", put(*SIGHT, "encoder", "type", name))
        inside.edit("processor_config.json", put(*SIGHT, "encoder", "type", name))
        inside.edit("config.json", put(*SIGHT, "requires", "modalloy-sight>=1"))
        inside.edit("processor_config.json", put(*SIGHT, "requires", "modalloy-sight>=1"))
        found = inside.takes(lambda: load(inside.model))
        with inside.watched(), pytest.raises(MissingComponentError) as caught:
            use_and_save(inside, found)
        assert f"the encoder {name!r}" in str(caught.value)
        assert 'pip install "modalloy-sight>=1"' in str(caught.value)


def test_a_method_is_a_name_and_nothing_to_import(box: MakeBox) -> None:
    inside = box("composition")
    inside.code()
    inside.edit("config.json", put("method", "foreign:C"))
    inside.takes(lambda: load(inside.model))


def test_a_modality_whose_name_is_a_path(box: MakeBox) -> None:
    """On saving, its encoder would go to the path that its name is."""
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
    words = f"a modality is called {name!r}; names are lower-case words"
    inside.refuses(lambda: load(inside.model), FormatError, words)


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", "..\\evil", "."])
def test_an_encoder_is_saved_under_a_name(box: MakeBox, name: str) -> None:
    inside = box("composition")
    model = inside.takes(lambda: load(inside.model)).model
    model.encoders.files[name] = inside.model / WEIGHTS
    with inside.watched(), pytest.raises(FormatError) as caught:
        model.save_pretrained(inside.out)
    assert f"the encoder of {name!r} cannot be saved under that name" in str(caught.value)
    assert not (inside.out / "encoders").exists()


@pytest.mark.parametrize("name", ["git+https://evil.example/x", "sight"])
def test_a_name_is_nothing_to_install(box: MakeBox, name: str) -> None:
    inside = box("composition")

    def change(data: Any) -> None:
        entry = data["modalities"].pop("sight")
        entry["connector"]["type"], entry["requires"] = "nope", None
        data["modalities"][name] = entry

    inside.edit("config.json", change)
    with inside.watched(), pytest.raises(ModalloyError) as caught:
        load(inside.model)
    assert "pip install" not in str(caught.value)
    if name == "sight":
        assert "supplies; install the plugin that has it" in str(caught.value)


@pytest.mark.parametrize("key", ["requires", "tokens", "encoder"])
def test_a_processor_that_says_something_else(box: MakeBox, key: str) -> None:
    inside = box("composition")
    values = {"requires": "evil", "tokens": 60000, "encoder": {"type": "x", "config": {}}}
    values["encoder"] = {**values["encoder"], "shape": [1, 1]}
    inside.edit("processor_config.json", put(*SIGHT, key, values[key]))
    words = "processor_config.json: its modalities are not those of config.json"
    inside.refuses(lambda: load(inside.model), FormatError, words)


@pytest.mark.parametrize("place", ["whole", "text_config", "deep"])
def test_a_composition_that_is_quantised(box: MakeBox, place: str) -> None:
    inside = box("composition")
    asked = {"quantization_config": {"quant_method": "mxfp4"}}

    def change(data: Any) -> None:
        data["text_config"]["deep"] = data["deep"] = {}
        (data if place == "whole" else data["text_config"]).update(asked)
        if place == "deep":
            data["text_config"] = {**data["text_config"], "x": [{"y": asked}]}

    inside.edit("config.json", change)
    words = "the composition is quantised"
    inside.refuses(lambda: load(inside.model), FormatError, words)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"parents": [1]}, "parents"),
        ({"parents": 3}, "parents"),
        ({"parents": [{"modality": [], "files": 3}]}, "parents.0.modality must be str"),
        ({"base": 1}, "base"),
        ({"accounting": [{"source": 1}]}, "accounting.0.source must be str"),
        ({"coefficients": {"rule": "x", "default": 1, "table": {}}}, "coefficients.default"),
        ({"coefficients": {"rule": "x", "default": {"sight": "1"}, "table": {}}}, "finite number"),
        ({"merge": {"error": {"mean": "x"}}}, "of 'merge' must hold numbers under 'error'"),
        ({"base": {"id": "x", "fingerprint": {}}}, "base.fingerprint.architecture is missing"),
    ],
)
def test_a_record_of_another_shape(box: MakeBox, keys: dict[str, Any], words: str) -> None:
    inside = box("composition")
    inside.edit("modalloy.json", **keys)
    with inside.watched(), pytest.raises(FormatError) as caught:
        load(inside.model)
    assert str(caught.value).startswith(f"{inside.model / 'modalloy.json'}: ")
    assert words in str(caught.value)


def test_a_record_that_says_more(box: MakeBox) -> None:
    inside = box("composition")
    inside.edit("modalloy.json", lambda d: d["parents"][0].update(later=[1]), later={"x": 1})
    model = inside.takes(lambda: load(inside.model)).model
    assert model.provenance["later"] == {"x": 1}
    assert model.provenance["parents"][0]["later"] == [1]


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "modalloy.json",
    ],
)
def test_links_to_files_elsewhere(box: MakeBox, name: str) -> None:
    inside = box("composition")
    inside.link(name, name)
    inside.refuses(lambda: load(inside.model), UnsafePathError, f"{name!r}, which {LINK}")


def test_a_secret_does_not_become_a_template(box: MakeBox) -> None:
    inside = box("composition")
    inside.link("chat_template.jinja", "secret.txt")
    words = f"'chat_template.jinja', which {LINK}"
    inside.refuses(lambda: load(inside.model), UnsafePathError, words)


def test_encoders_elsewhere(box: MakeBox) -> None:
    inside = box("composition")
    (inside.outside.path / "encoders").mkdir()
    save_file(load_file(inside.model / WEIGHTS), inside.outside.path / "encoders" / "e.safetensors")
    inside.link("encoders", "encoders")
    inside.refuses(lambda: load(inside.model), UnsafePathError, f"'encoders', which {LINK}")
    (inside.model / "encoders").unlink()
    (inside.model / "encoders").mkdir()
    inside.link("encoders/sight.safetensors", "encoders/e.safetensors")
    words = f"'encoders/sight.safetensors', which {LINK}"
    inside.refuses(lambda: load(inside.model), UnsafePathError, words)


@pytest.mark.parametrize("name", ["encoders/sight.bin", "encoder.bin", "encoders/sight.pt"])
def test_encoders_that_are_pickles_are_left_alone(box: MakeBox, name: str) -> None:
    inside = box("composition")
    inside.pickle(name)
    found = inside.takes(lambda: load(inside.model))
    inside.takes(lambda: use_and_save(inside, found))
    assert found.model.encoders.files == {}


@pytest.mark.parametrize("name", ["../../evil", "/evil", "..\\evil"])
@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer_config.json"])
def test_names_of_templates_that_climb(box: MakeBox, file: str, name: str) -> None:
    """CVE-2026-9856: a template's name becomes that of a file when it is saved."""
    inside = box("composition")
    (inside.model / "chat_template.jinja").unlink()
    inside.edit(file, chat_template={"default": "x", name: "y"})
    words = f"{file} names a chat template {name!r}"
    inside.refuses(lambda: load(inside.model), UnsafePathError, words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_are_not_waited_for(box: MakeBox) -> None:
    inside = box("composition")
    (inside.model / "modalloy.json").unlink()
    os.mkfifo(inside.model / "modalloy.json")
    words = "modalloy.json is no file but a pipe or a device"
    inside.refuses(lambda: load(inside.model), FormatError, words)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '../outside/secret.txt' %}",
        "{% import 'os' as os %}",
        "{{ messages.__init__.__globals__ }}{{ raise_exception('x') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for ",
        "{{ 1 / 0 }}",
        "{{ 'x' * 10**15 }}",
        "{{ messages[0]['no'].x }}",
        "{{ '{:x}'.format('a') }}",
    ],
)
def test_templates_run_in_a_sandbox(box: MakeBox, template: str) -> None:
    """Nothing is read, it ends, and the error is told as one of the template."""
    inside = box("composition")
    (inside.model / "chat_template.jinja").write_text(template)
    found = inside.takes(lambda: load(inside.model))
    words = "the chat template cannot lay out these messages"
    inside.refuses(lambda: use_and_save(inside, found), InputError, words)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none(box: MakeBox, text: str) -> None:
    inside = box("composition")
    (inside.model / "tokenizer.json").write_text(text)
    words = "its processor or tokenizer cannot be opened"
    inside.refuses(lambda: load(inside.model), FormatError, words)
