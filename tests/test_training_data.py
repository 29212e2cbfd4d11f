"""Training configurations and chats: what they mean, and what is said about wrong ones."""

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import typer
import yaml

from modalloy.base import resolve_base
from modalloy.cli.train import command
from modalloy.composition.features import FeatureCache
from modalloy.composition.loss import IGNORED
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import FormatError, ModalloyError, SpecError, UnsafePathError
from modalloy.parent import ComponentConfig
from modalloy.training.config import LoraConfig, StageConfig, TrainConfig, read_config
from modalloy.training.data import ChatDataset, Collator
from modalloy.training.opening import open_parent
from tiny import tiny_base
from toy_media import chat, number_config, number_registry, write_chats, write_data

RECIPES = Path(__file__).parents[1] / "recipes" / "household" / "train"


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Any, ModalloyProcessor]:
    base = tiny_base(tmp_path / "base", seed=3)
    model, processor, _ = open_parent(number_config(base), resolve_base(base), number_registry())
    return model, processor


@pytest.fixture
def processor(opened: tuple[Any, ModalloyProcessor]) -> ModalloyProcessor:
    return opened[1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def learnt(example: Any, processor: ModalloyProcessor) -> str:
    """The text that carries labels; labels are the ids of their own places."""
    labelled = example.labels != IGNORED
    assert torch.equal(example.labels[labelled], example.input_ids[labelled])
    return processor.tokenizer.decode(example.input_ids[labelled])


def test_answers_alone_are_learnt_with_their_end(
    processor: ModalloyProcessor, tmp_path: Path, data: Path
) -> None:
    messages = [
        {"role": "system", "content": "assistant"},
        {"role": "user", "content": [{"type": "image", "path": "media/0.txt"}]},
        {"role": "assistant", "content": "a the"},
        {"role": "user", "content": "assistant\nwhat is it"},
        {"role": "assistant", "content": [{"type": "text", "text": " is "}]},
    ]
    example = ChatDataset(
        [write_chats(data / "one.jsonl", [{"messages": messages, "id": 3}])], processor
    )[0]
    assert learnt(example, processor) == "a the<|im_end|> is <|im_end|>"
    assert processor.tokenizer.decode(example.input_ids) == (
        "<|im_start|>system\nassistant<|im_end|>\n"
        "<|im_start|>user\n<|sight|><|sight|><|sight|><|im_end|>\n"
        "<|im_start|>assistant\na the<|im_end|>\n"
        "<|im_start|>user\nassistant\nwhat is it<|im_end|>\n"
        "<|im_start|>assistant\n is <|im_end|>"
    )
    places = example.types.nonzero().flatten()
    assert example.types[places].tolist() == [1, 1, 1]
    assert (example.labels[places] == IGNORED).all()
    assert example.inputs == (("sight", (data / "media" / "0.txt").resolve()),)


def test_batches_are_padded_on_the_left(opened: tuple[Any, ModalloyProcessor], data: Path) -> None:
    model, processor = opened
    chats = ChatDataset([data / "asked.jsonl"], processor)
    short, long = chats[6], chats[3]
    batch = Collator(processor, None)([short, long])
    gap = len(long.input_ids) - len(short.input_ids)
    assert batch["input_ids"].shape == (2, len(long.input_ids))
    assert batch["attention_mask"].sum(dim=1).tolist() == [
        len(short.input_ids),
        len(long.input_ids),
    ]
    assert (batch["attention_mask"][0, :gap] == 0).all()
    assert (batch["labels"][0, :gap] == IGNORED).all()
    assert torch.equal(batch["labels"][0, gap:], short.labels)
    assert batch["sight_values"].shape == (1, 3, 5)

    cache = FeatureCache.build(model, processor, chats.sources(), lambda *_: None)
    ready = Collator(processor, cache)([long, short, chats[0]])
    expected = model.encoders.run(
        "sight",
        {"values": processor.preprocess([*long.inputs, *chats[0].inputs])["sight_values"]},
        model.device,
    )
    torch.testing.assert_close(ready["sight_features"], expected)
    assert "sight_values" not in ready


def test_separators_inside_strings_end_no_line(processor: ModalloyProcessor, data: Path) -> None:
    line = json.dumps(chat(None, "a\u2028b\x85c", "a"), ensure_ascii=False)
    assert len(ChatDataset([write_chats(data / "one.jsonl", [line, "", line])], processor)) == 2


PART = {"type": "image", "path": "media/0.txt"}
ANSWER = {"role": "assistant", "content": "a"}


def asking(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", " is not valid JSON: Expecting property name"),
        ("[1]", ": expected {'messages': [...]}, found [1]"),
        ({"messages": []}, ": expected {'messages': [...]}, found {'messages': []}"),
        ({"mesages": "x" * 500}, "x..."),
        ({"messages": [{"role": "user"}]}, ": a message must have 'role' and 'content'; got"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]},
            ": no message has the role 'assistant' (found: asistant, user), so there is nothing",
        ),
        (asking({"type": "imag", "path": "x"}), ": unknown content part 'imag'"),
        (asking({"type": "text", "text": "<|sight|>"}), ": the text holds '<|sight|>'"),
        (asking({**PART, "path": "media/9.txt"}), ": media/9.txt does not exist in "),
        (asking({**PART, "path": "media"}), ": media does not exist in "),
        (asking({**PART, "path": "http://a/b.png"}), ": http:/a/b.png does not exist in "),
        (
            asking({"type": "image", "url": "http://a/b.png"}),
            ": 'http://a/b.png': only data: URLs are read, nothing is fetched",
        ),
        (
            asking({"type": "image", "base64": "MS4w"}),
            ": media must be named by 'path'; found b'1.0'",
        ),
        (
            {"messages": [asking()["messages"][0], {"role": "assistant", "content": [PART]}]},
            ": an answer holds an input; only text can be learnt as an answer",
        ),
    ],
)
def test_a_wrong_line_is_told_by_file_and_number(
    line: Any, text: str, processor: ModalloyProcessor, data: Path
) -> None:
    file = write_chats(data / "one.jsonl", [chat(None, "a", "b"), "", line])
    with pytest.raises(FormatError) as caught:
        ChatDataset([file], processor)
    assert str(caught.value).startswith(f"{file}, line 3")
    assert text in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", ["../base/config.json", "/etc/hostname", "link.txt"])
def test_media_outside_their_directory_are_refused(
    path: str, processor: ModalloyProcessor, data: Path
) -> None:
    (data / "link.txt").symlink_to(data.parent / "base" / "config.json")
    file = write_chats(data / "one.jsonl", [asking({**PART, "path": path})])
    with pytest.raises(UnsafePathError) as caught:
        ChatDataset([file], processor)
    assert str(caught.value).startswith(f"{file}, line 1: {path} leads outside {data}; media lie")


def test_files_that_hold_no_chats(processor: ModalloyProcessor, data: Path) -> None:
    (data / "empty.jsonl").write_text("\n", encoding="utf-8")
    (data / "latin.jsonl").write_bytes(b"\xe9")
    for name, text in (
        ("empty", " holds no chats"),
        ("latin", " cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        ("missing", " is not there; make the data first"),
    ):
        with pytest.raises(FormatError) as caught:
            ChatDataset([data / f"{name}.jsonl"], processor)
        assert str(caught.value).startswith(f"{data / name}.jsonl{text}")


def test_templates_that_cannot_be_laid_out(processor: ModalloyProcessor, data: Path) -> None:
    file = write_chats(data / "one.jsonl", [chat(None, "a", "b", "c")])
    processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(FormatError, match=r"one\.jsonl, line 1: roles must alternate"):
        ChatDataset([file], processor)
    processor.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(FormatError, match=r"one\.jsonl, line 1: .*can only concatenate str"):
        ChatDataset([file], processor)
    processor.chat_template = "{% for m in messages | reverse %}{{ m['content'] }}|{% endfor %}"
    with pytest.raises(FormatError, match="does not write messages one after the other"):
        ChatDataset([file], processor)


def written(directory: Path, **changes: Any) -> Path:
    """Write a configuration; a value of ``None`` leaves its key out."""
    values: dict[str, Any] = {
        "name": "sight-numbers",
        "modality": "sight",
        "encoder": {"type": "numbers"},
        "connector": {"type": "linear"},
        "connector_stage": {"data": ["told.jsonl"]},
        "tuning_stage": {"data": ["asked.jsonl"]},
        **changes,
    }
    file = directory / "train.yml"
    kept = {key: value for key, value in values.items() if value is not None}
    file.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return file


def test_a_configuration_with_its_defaults(tmp_path: Path) -> None:
    config = read_config(written(tmp_path))
    assert (config.strategy, config.base, config.dtype) == ("decoupled", "smollm2", "bfloat16")
    assert config.lora == LoraConfig(rank=16, alpha=32.0)
    assert config.connector_stage == StageConfig(data=["told.jsonl"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoder": None}, "encoder is missing"),
        ({"strategie": "naive"}, "strategie is not a known key"),
        ({"strategie": "naive"}, "Did you mean 'strategy'?"),
        ({"tuning_stage": {"data": ["a"], "step": 3}}, "tuning_stage.step is not a known key"),
        ({"tuning_stage": {"data": ["a"], "step": 3}}, "Did you mean 'steps'?"),
        ({"strategy": "both"}, "strategy must be 'decoupled' or 'naive', found 'both'"),
        ({"dtype": "float16"}, "dtype must be 'bfloat16' or 'float32', found 'float16'"),
        ({"seed": -1}, "seed must not be negative, found -1"),
        ({"name": "My Parent"}, "name must be lower-case words"),
        ({"lora": {"rank": 0}}, "lora rank must be positive, found 0"),
        ({"lora": {"targets": []}}, "lora targets must name at least one linear layer"),
        ({"tuning_stage": {"data": ["a"], "learning_rate": "2e-3"}}, "learning_rate must be float"),
        ({"tuning_stage": {"data": ["a"], "steps": 1.5}}, "tuning_stage.steps must be int"),
        ({"tuning_stage": {"data": ["a"], "steps": -1}}, "steps must not be negative, found -1"),
        ({"tuning_stage": {"steps": 3}}, "data must name JSONL files for 3 steps; steps: 0 leaves"),
        ({"tuning_stage": {"data": ["a"], "warmup": 3.0}}, "warmup is a share of the steps"),
        (
            {"tuning_stage": {"data": ["a"], "learning_rate": float("nan")}},
            "learning_rate must be positive, found nan",
        ),
        (
            {"tuning_stage": {"data": ["a"], "max_loss": float("inf")}},
            "max_loss must be positive, found inf",
        ),
        (
            {"encoder": {"type": "numbers", "config": {"gain": float("inf")}}},
            "encoder.config must hold what JSON can hold",
        ),
    ],
)
def test_a_wrong_configuration_is_told_by_file_and_key(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(FormatError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert text in str(caught.value)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "train.yml"
    for content, text in (
        (None, " cannot be read: [Errno 2]"),
        ("a: [", " is not valid YAML: "),
        ("- a", ": expected a mapping of keys, found list"),
        ("", ": expected a mapping of keys, found NoneType"),
    ):
        if content is not None:
            file.write_text(content, encoding="utf-8")
        with pytest.raises(FormatError) as caught:
            read_config(file)
        assert str(caught.value).startswith(f"{file}{text}")


def test_configurations_made_in_code_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="prefix_tokens must not be negative, found -2"):
        number_config(tmp_path, prefix_tokens=-2)
    with pytest.raises(ModalloyError, match=r"connector\.config must hold what JSON can hold"):
        number_config(tmp_path, connector=ComponentConfig(type="linear", config={"a": {1}}))


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yml")), ids=lambda p: p.stem)
def test_the_household_recipes_are_valid(file: Path) -> None:
    config = read_config(file)
    assert isinstance(config, TrainConfig)
    assert config.name == f"{config.modality}-smollm2-{config.strategy}"
    assert file.stem == f"{config.modality}-{config.strategy}"


GUIDE = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
PLAIN = (str, int, float, bool, type(None))


@pytest.mark.parametrize(
    ("kind", "heading"),
    [
        (TrainConfig, "## Configuration"),
        (LoraConfig, "`lora`:"),
        (StageConfig, "`connector_stage` and"),
    ],
)
def test_every_key_is_in_the_guide_with_its_default(kind: Any, heading: str) -> None:
    section = GUIDE.partition(f"\n{heading}")[2].partition("\n| key |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in section.splitlines()[2:]]
    told = {row[1].strip(" `"): row[2].strip(" `") for row in rows}
    fields = attrs.fields_dict(kind)
    assert list(told) == list(fields)
    for name, field in fields.items():
        default = field.default
        if field.default is attrs.NOTHING:
            assert told[name] == "", name
        elif isinstance(default, bool):
            assert told[name] == str(default).lower(), name
        elif isinstance(default, PLAIN) and default is not None:
            assert told[name] == str(default), name


def test_the_guides_examples_are_valid(processor: ModalloyProcessor, data: Path) -> None:
    blocks = dict(re.findall(r"```(yaml|json)\n(.*?)```", GUIDE, re.DOTALL))
    (data / "train.yml").write_text(blocks["yaml"], encoding="utf-8")
    assert read_config(data / "train.yml").tuning_stage.steps == 160
    (data / "media" / "cat.png").write_text("0.5", encoding="utf-8")
    line = json.dumps(json.loads(blocks["json"]))
    example = ChatDataset([write_chats(data / "one.jsonl", [line])], processor)[0]
    assert learnt(example, processor) == "It is a cat.<|im_end|>"


def test_the_command_line_is_told_whole() -> None:
    from typer.main import get_command

    app = typer.Typer(add_completion=False)
    app.command()(command)
    options = {name for p in get_command(app).params for name in p.opts if name.startswith("--")}
    assert {name for name in options if f"`{name}`" not in GUIDE} <= {"--data", "--help"}
    assert "modalloy train CONFIG OUTPUT --data DIR" in GUIDE
