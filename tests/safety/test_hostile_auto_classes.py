"""Composition directories of an enemy's, opened by transformers' own Auto classes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM, AutoProcessor

from modalloy.composition.configuration import ModalloyConfig
from modalloy.errors import FormatError, UnsafePathError
from safety.hostile import WEIGHTS, Box, same_weights, scaled_weights

MakeBox = Callable[[str], Box]
MODEL: Any = AutoModelForMultimodalLM
PROCESSOR: Any = AutoProcessor
LINK = "is a symbolic link that leads outside its directory"


def test_pieces_that_would_be_read_first(box: MakeBox) -> None:
    inside = box("composition")
    name = "shard-00001-model-00001-of-00001.safetensors"
    scaled_weights(inside.model / WEIGHTS, inside.model / name)
    words = "would be read in place of the weights that are checked"
    inside.refuses(lambda: MODEL.from_pretrained(inside.model), FormatError, words)


def test_links_to_files_elsewhere(box: MakeBox) -> None:
    inside = box("composition")
    inside.link("generation_config.json", "x.json")
    words = f"'generation_config.json', which {LINK}"
    inside.refuses(lambda: MODEL.from_pretrained(inside.model), UnsafePathError, words)


def test_other_weights_named_in_the_configuration(box: MakeBox) -> None:
    inside = box("composition")
    scaled_weights(inside.model / WEIGHTS, inside.outside.path / "w.safetensors")
    table = dict.fromkeys(load_file(inside.model / WEIGHTS), "../outside/w.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": table})
    (inside.model / "o.safetensors.index.json").write_text(index)
    inside.edit("config.json", transformers_weights="o.safetensors.index.json")
    words = "config.json holds 'transformers_weights', by which something else would be read"
    inside.refuses(lambda: MODEL.from_pretrained(inside.model), FormatError, words)


def test_keys_that_mean_others(box: MakeBox) -> None:
    """Names would be checked under one key, and used under another."""
    inside = box("composition")
    inside.edit("config.json", attribute_map={"modalities": "other"}, other={"../../evil": {}})
    words = "config.json holds 'attribute_map'"
    inside.refuses(lambda: MODEL.from_pretrained(inside.model), FormatError, words)


@pytest.mark.parametrize("place", ["whole", "text_config"])
def test_a_quantiser(box: MakeBox, place: str) -> None:
    inside = box("composition")
    asked = {"quantization_config": {"quant_method": "mxfp4"}}
    inside.edit("config.json", lambda d: (d if place == "whole" else d[place]).update(asked))
    words = "the composition is quantised"
    inside.refuses(lambda: MODEL.from_pretrained(inside.model), FormatError, words)


@pytest.mark.parametrize("place", ["whole", "text_config"])
@pytest.mark.parametrize(
    "key",
    [
        "_attn_implementation",
        "_attn_implementation_internal",
        "attn_implementation",
        "experts_implementation",
        "_experts_implementation",
    ],
)
def test_code_is_not_chosen_by_the_configuration(box: MakeBox, key: str, place: str) -> None:
    """transformers fetches a kernel that has a repository's name, and runs what it finds there."""
    inside = box("composition")
    asked = {key: "evil/kernel"}
    inside.edit("config.json", lambda d: (d if place == "whole" else d[place]).update(asked))
    model = inside.takes(lambda: MODEL.from_pretrained(inside.model))
    assert same_weights(model, inside.model / WEIGHTS)
    for config in (model.config, model.language_model.config):
        assert config._attn_implementation in ("sdpa", "eager")
        assert config._experts_implementation in (None, "grouped_mm", "eager")


@pytest.mark.parametrize("wanted", ["eager", "sdpa"])
def test_attention_is_what_the_caller_says(box: MakeBox, wanted: str) -> None:
    inside = box("composition")
    inside.edit("config.json", attn_implementation="flash_attention_2")
    model = MODEL.from_pretrained(inside.model, attn_implementation=wanted)
    assert model.language_model.config._attn_implementation == wanted


def test_reading_a_configuration_changes_nothing(box: MakeBox) -> None:
    inside = box("composition")
    data = json.loads((inside.model / "config.json").read_text())
    data["text_config"]["attn_implementation"] = "evil/kernel"
    before = json.dumps(data)
    ModalloyConfig.from_dict(data, attn_implementation="eager")
    assert json.dumps(data) == before


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("requires", "git+https://evil.example/x", "must be a requirement such as"),
        ("tokens", 10**12, "'tokens' must be <= 65536"),
        ("placeholder", 3, "placeholder must be str"),
        ("foreign", 1, "foreign is not a known key"),
    ],
)
def test_modalities_of_a_processor(box: MakeBox, key: str, value: Any, words: str) -> None:
    inside = box("composition")
    inside.edit("processor_config.json", lambda d: d["modalities"]["sight"].update({key: value}))
    with inside.watched(), pytest.raises(FormatError) as caught:
        PROCESSOR.from_pretrained(inside.model)
    assert str(caught.value).startswith("processor_config.json, modality 'sight': ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("modalities", "words"),
    [(["sight"], "modalities must be a mapping"), ({"../evil": {}}, "is called '../evil'")],
)
def test_modalities_that_are_none(box: MakeBox, modalities: Any, words: str) -> None:
    inside = box("composition")
    inside.edit("processor_config.json", modalities=modalities)
    words = f"processor_config.json: {'a modality ' if 'called' in words else ''}{words}"
    inside.refuses(lambda: PROCESSOR.from_pretrained(inside.model), FormatError, words)


def test_a_secret_does_not_become_a_template(box: MakeBox) -> None:
    """transformers has looked at it by the time that it finds our class, which hands nothing on."""
    inside = box("composition")
    inside.link("chat_template.jinja", "secret.txt")
    with pytest.raises(UnsafePathError, match=f"'chat_template.jinja', which {LINK}"):
        PROCESSOR.from_pretrained(inside.model)


def test_names_of_templates_that_climb(box: MakeBox) -> None:
    inside = box("composition")
    inside.edit("processor_config.json", chat_template={"default": "x", "../../evil": "y"})
    words = "names a chat template '../../evil'"
    inside.refuses(lambda: PROCESSOR.from_pretrained(inside.model), UnsafePathError, words)
