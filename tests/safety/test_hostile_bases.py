"""Bases whose files beside the weights are an enemy's: configurations, tokenizers, templates."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalloy.base import Base
from modalloy.errors import FormatError, UnsafePathError
from safety.entries import compose, merge, use_and_save
from safety.hostile import WEIGHTS, Box, same_weights

MakeBox = Callable[[str], Box]
LINK = "is a symbolic link that leads outside its directory"
CODE = {
    "auto_map": {
        "AutoConfig": "foreign.C",
        "AutoModelForCausalLM": "foreign.M",
        "AutoTokenizer": ["foreign.T", "foreign.T"],
    },
    "trust_remote_code": True,
    "_attn_implementation": "org/kernel",
    "_attn_implementation_internal": "org/kernel",
    "attn_implementation": "org/kernel",
    "_experts_implementation": "org/experts",
    "experts_implementation": "org/experts",
    "use_kernels": True,
    "kernel_config": {"kernel_mapping": {"RMSNorm": "org/kernel"}},
    "fusion_config": {"patch_embeddings": True},
    "attribute_map": {"hidden_size": "vocab_size"},
}
"""Keys of a configuration that would choose what code runs, or what its other keys mean."""


def test_no_code_of_a_base_is_run(box: MakeBox, good: Path) -> None:
    inside = box("base")
    for name in ("foreign.py", "custom_generate/generate.py", "modeling_llama.py", "__init__.py"):
        inside.code(name, "def generate(model, **_):\n    return model\nC = M = T = object\n")
    inside.edit("config.json", **CODE)
    inside.edit("tokenizer_config.json", auto_map=CODE["auto_map"], trust_remote_code=True)
    inside.edit("generation_config.json", trust_remote_code=True, custom_generate="org/generate")
    found = inside.takes(lambda: compose(inside.model, good / "parent"))
    inside.takes(lambda: use_and_save(inside, found))
    assert same_weights(found.model, inside.model / WEIGHTS)
    assert found.model.language_model.config._attn_implementation == "sdpa"
    assert found.model.language_model.config.hidden_size == 32
    assert not list(inside.out.rglob("*.py"))
    written = json.loads((inside.out / "config.json").read_text())
    assert not CODE.keys() & written["text_config"].keys()


@pytest.mark.parametrize(
    ("keys", "words", "merged"),
    [
        ({"model_type": "foreign"}, "model type 'foreign' (LlamaForCausalLM) is not part", False),
        ({"architectures": ["os.system"]}, "os.system is not a decoder-only", False),
        ({"text_config": {"model_type": "x"}}, "is not a decoder-only language model", False),
        ({"hidden_size": {}}, "config.json does not configure a llama model", False),
        ({"dtype": "load"}, "dtype must be such as bfloat16 or float32, found 'load'", True),
        ({"torch_dtype": "os"}, "torch_dtype must be such as bfloat16 or float32", True),
        ({"x": {"y": [{"dtype": "hub"}]}}, "dtype must be such as bfloat16", True),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised", True),
        ({"x": [{"quantization_config": {"quant_method": "mxfp4"}}]}, "quantised", False),
    ],
)
def test_configurations_that_choose_code(
    box: MakeBox, good: Path, keys: dict[str, Any], words: str, *, merged: bool
) -> None:
    """A merge opens no model, and copies a configuration without the keys above."""
    inside = box("base")
    inside.edit("config.json", **keys)
    inside.refuses(lambda: compose(inside.model, good / "parent"), FormatError, words)
    if merged:
        inside.refuses(lambda: merge(inside, inside.model, good / "base"), FormatError, words)


@pytest.mark.parametrize("what", ["generation", "list", "activation", "shapes"])
def test_models_that_transformers_stumbles_over(box: MakeBox, good: Path, what: str) -> None:
    inside = box("base")
    if what == "generation":
        inside.edit("generation_config.json", cache_implementation="os")
    elif what == "list":
        (inside.model / "generation_config.json").write_text("[]")
    else:
        keys = {"activation": {"hidden_act": "os.system"}, "shapes": {"intermediate_size": 7}}
        inside.edit("config.json", **keys[what])
    base = Base("x", inside.model)
    words = f"{inside.model} cannot be opened as a 'llama' model: "
    inside.refuses(base.model, FormatError, words)
    if what != "shapes":
        inside.refuses(lambda: compose(inside.model, good / "parent"), FormatError, words)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none(box: MakeBox, good: Path, text: str) -> None:
    inside = box("base")
    (inside.model / "tokenizer.json").write_text(text)
    words = "its tokenizer cannot be opened"
    inside.refuses(lambda: compose(inside.model, good / "parent"), FormatError, words)


def test_a_merge_hands_no_code_on(box: MakeBox, good: Path) -> None:
    inside = box("base")
    inside.code()
    inside.edit("config.json", **CODE, text_config={"deep": [CODE | {"kept": 1}]})
    inside.takes(lambda: merge(inside, inside.model, good / "base"))
    written = json.loads((inside.out / "config.json").read_text())
    assert not CODE.keys() & written.keys()
    assert written["text_config"] == {"deep": [{"kept": 1}]}
    assert not list(inside.out.rglob("*.py"))


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "[" * 100_000, "[1, 2]", "{"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("entry", ["compose", "merge"])
def test_json_that_is_none_or_has_no_bottom(
    box: MakeBox, good: Path, name: str, text: str, entry: str
) -> None:
    inside = box("base")
    (inside.model / name).write_text(text)
    call = {
        "compose": lambda: compose(inside.model, good / "parent"),
        "merge": lambda: merge(inside, inside.model, good / "base"),
    }
    inside.refuses(call[entry], FormatError, name)


def test_json_that_is_nested_for_its_own_sake(box: MakeBox, good: Path) -> None:
    inside = box("base")
    text = (inside.model / "config.json").read_text().rstrip().removesuffix("}")
    (inside.model / "config.json").write_text(f'{text}, "x": {"[" * 200 + "]" * 200}}}')
    words = "nested more than 64 deep"
    inside.refuses(lambda: compose(inside.model, good / "parent"), FormatError, words)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("entry", ["compose", "merge"])
def test_links_to_files_elsewhere(box: MakeBox, good: Path, name: str, entry: str) -> None:
    inside = box("base")
    inside.link(name, name)
    call = {
        "compose": lambda: compose(inside.model, good / "parent"),
        "merge": lambda: merge(inside, inside.model, good / "base"),
    }
    inside.refuses(call[entry], UnsafePathError, f"{name!r}, which {LINK}")


@pytest.mark.parametrize("entry", ["compose", "merge"])
def test_a_secret_does_not_become_a_template(box: MakeBox, good: Path, entry: str) -> None:
    """A template is saved with what is made of the base, and may be published with it."""
    inside = box("base")
    inside.link("chat_template.jinja", "secret.txt")
    call = {
        "compose": lambda: compose(inside.model, good / "parent"),
        "merge": lambda: merge(inside, inside.model, good / "base"),
    }
    inside.refuses(call[entry], UnsafePathError, f"'chat_template.jinja', which {LINK}")


def test_a_folder_of_templates_elsewhere(box: MakeBox, good: Path) -> None:
    inside = box("base")
    (inside.outside.path / "templates").mkdir()
    (inside.outside.path / "templates" / "x.jinja").write_text("x")
    inside.link("additional_chat_templates", "templates")
    words = f"'additional_chat_templates', which {LINK}"
    inside.refuses(lambda: compose(inside.model, good / "parent"), UnsafePathError, words)
    (inside.model / "additional_chat_templates").unlink()
    (inside.model / "additional_chat_templates").mkdir()
    inside.link("additional_chat_templates/x.jinja", "secret.txt")
    words = f"'additional_chat_templates/x.jinja', which {LINK}"
    inside.refuses(lambda: compose(inside.model, good / "parent"), UnsafePathError, words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "tokenizer.json"])
def test_pipes_are_not_waited_for(box: MakeBox, good: Path, name: str) -> None:
    inside = box("base")
    (inside.model / name).unlink()
    os.mkfifo(inside.model / name)
    for call in (
        lambda: compose(inside.model, good / "parent"),
        lambda: merge(inside, inside.model, good / "base"),
    ):
        inside.refuses(call, FormatError, f"{name} is no file but a pipe or a device")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a\\..\\..\\evil", "C:evil", "..", "a\0b"])
@pytest.mark.parametrize("form", ["list", "mapping", "legacy"])
def test_names_of_templates_that_climb(box: MakeBox, good: Path, name: str, form: str) -> None:
    """CVE-2026-9856: a template's name becomes that of a file when it is saved."""
    inside = box("base")
    table = {"default": "x", name: "y"}
    if form == "list":
        parts = [{"name": key, "template": value} for key, value in table.items()]
        inside.edit("tokenizer_config.json", chat_template=parts)
    elif form == "mapping":
        inside.edit("tokenizer_config.json", chat_template=table)
    else:
        text = json.dumps({"chat_template": table})
        (inside.model / "chat_template.json").write_text(text)
    words = f"names a chat template {name!r}, which could not be saved as a file"
    inside.refuses(lambda: compose(inside.model, good / "parent"), UnsafePathError, words)


def test_templates_of_honest_names_are_taken(box: MakeBox, good: Path) -> None:
    inside = box("base")
    parts = [{"name": name, "template": "{{ messages }}"} for name in ("default", "tool_use")]
    (inside.model / "chat_template.jinja").unlink()
    inside.edit("tokenizer_config.json", chat_template=parts)
    _, processor = inside.takes(lambda: compose(inside.model, good / "parent"))
    inside.takes(lambda: processor.save_pretrained(inside.out))
    assert (inside.out / "additional_chat_templates" / "tool_use.jinja").is_file()


@pytest.mark.parametrize("name", ["../outside/tokenizer.4.0.json", "{0}/tokenizer.4.0.json", 3])
def test_a_tokenizers_file_elsewhere(box: MakeBox, good: Path, name: Any) -> None:
    """transformers joins what ``fast_tokenizer_files`` lists to the directory, unchecked."""
    inside = box("base")
    there = inside.outside.path / "tokenizer.4.0.json"
    there.write_bytes((inside.model / "tokenizer.json").read_bytes())
    if isinstance(name, str):
        name = name.format(inside.outside.path)
    inside.edit("tokenizer_config.json", fast_tokenizer_files=[name])
    words = f"names a tokenizer's file {name!r}, which is not one of its directory"
    inside.refuses(lambda: compose(inside.model, good / "parent"), UnsafePathError, words)


def test_paths_in_a_tokenizers_settings_are_not_followed(box: MakeBox, good: Path) -> None:
    inside = box("base")
    there = inside.outside.path / "tokenizer.json"
    there.write_bytes((inside.model / "tokenizer.json").read_bytes())
    paths = {"tokenizer_file": str(there), "vocab_file": "../outside/secret.txt"}
    inside.edit("tokenizer_config.json", **paths, name_or_path=str(inside.outside.path))
    found = inside.takes(lambda: compose(inside.model, good / "parent"))
    inside.takes(lambda: use_and_save(inside, found))
    (inside.model / "tokenizer.json").unlink()
    words = "its tokenizer cannot be opened; files are missing or damaged"
    with inside.watched(), pytest.raises(FormatError, match=words):
        compose(inside.model, good / "parent")
