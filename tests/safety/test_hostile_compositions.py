"""Composition directories of an enemy's, at ``modalloy.load`` and after it."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from modalloy.errors import FormatError, MissingComponentError, ModalloyError, UnsafePathError
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


@pytest.mark.parametrize(
    "name", ["generation_config.json", "processor_config.json", "tokenizer.json", "modalloy.json"]
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
    ],
)
def test_templates_run_in_a_sandbox(box: MakeBox, template: str) -> None:
    """Which error it is, is for another day; nothing is read, and it ends."""
    inside = box("composition")
    (inside.model / "chat_template.jinja").write_text(template)
    found = inside.takes(lambda: load(inside.model))
    with inside.watched(), pytest.raises(Exception):  # noqa: B017, PT011
        use_and_save(inside, found)
