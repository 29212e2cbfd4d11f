"""The processor: how prompts are laid out, padded, typed and given their inputs."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modalloy
from modalloy.errors import InputError
from tiny import CHAT_TEMPLATE, tiny_base, tiny_tokenizer
from toy import TOKENS, ask, toy_parent, toy_registry

SEE = ask(("image", [0.3]), "what is it")
BOTH = ask(("audio", [0.2]), "and", ("image", [0.9]), "the same?", ("image", [0.1]))
TEXT = ask("what is the time")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("processing")
    base = tiny_base(root / "base")
    parents = [
        toy_parent(root / "p1", base, "sight", prefix=2),
        toy_parent(root / "p2", base, "touch", suffix=1),
        toy_parent(root / "p3", base, "sound", suffix=1),
    ]
    names = ("sight", "sound", "touch")
    return modalloy.compose(base, parents=parents, registry=toy_registry(*names)).processor


def rows(batch: Any, name: str) -> list[list[int]]:
    """Rows of a tensor, padding taken off."""
    return [
        row[mask.bool()].tolist()
        for row, mask in zip(batch[name], batch["attention_mask"], strict=True)
    ]


def test_a_batch_is_its_rows_up_to_padding_on_the_left(processor: Any) -> None:
    chats = [SEE, BOTH, TEXT]
    batch = processor.apply_chat_template(chats, add_generation_prompt=True)
    alone = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    for name in ("input_ids", "mm_token_type_ids"):
        assert rows(batch, name) == [one[name][0].tolist() for one in alone]
    assert (batch["attention_mask"].diff(dim=1) >= 0).all()
    assert (batch["mm_token_type_ids"][batch["attention_mask"] == 0] == 0).all()
    for name in ("sight_values", "sound_values"):
        assert torch.equal(batch[name], torch.cat([one[name] for one in alone if name in one]))
    assert sorted(alone[2]) == ["attention_mask", "input_ids", "mm_token_type_ids"]


def test_types_counts_and_order(processor: Any) -> None:
    batch = processor.apply_chat_template([BOTH])
    types = batch["mm_token_type_ids"][0].tolist()
    runs = [t for i, t in enumerate(types) if i == 0 or types[i - 1] != t]
    assert runs == [0, 3, 0, 1, 0, 1, 0]
    assert (types.count(1), types.count(3)) == (2 * (TOKENS + 2), TOKENS + 1)
    assert batch["sight_values"][:, 0, 0].tolist() == pytest.approx([0.9, 0.1])
    assert batch["sound_values"].shape[0] == 1
    assert {batch[name].dtype for name in processor.model_input_names} == {torch.int64}


def test_a_modality_of_no_reserved_type_gets_one(processor: Any) -> None:
    batch = processor.apply_chat_template(ask(("pressure", [1.0]), "?"))
    assert batch["mm_token_type_ids"].max() == 5
    assert batch["touch_values"].shape[0] == 1


def test_system_messages_and_turns_reach_the_prompt(processor: Any) -> None:
    chat = [
        {"role": "system", "content": "be brief"},
        *SEE,
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "image",
         "image": [0.5]}]},
    ]  # fmt: skip
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    sight = "<|sight|>" * (TOKENS + 2)
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        f"<|im_start|>user\n{sight}what is it<|im_end|>\n"
        "<|im_start|>assistant\na cat<|im_end|>\n"
        f"<|im_start|>user\nand {sight}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template([TEXT, TEXT], tokenize=False)[0].count("time") == 1


def test_called_with_marks_it_lays_out_the_same(processor: Any) -> None:
    prompts = [
        processor.apply_chat_template(
            ask("A", "what"), tokenize=False, add_generation_prompt=True
        ).replace("A", mark)
        for mark in ("<audio>x<image>y<image>", "", "<image>")
    ]
    found = processor(prompts, image=[[0.9], [0.1], [0.3]], audio=[[0.2]])
    chats = [
        ask(("audio", [0.2]), "x", ("image", [0.9]), "y", ("image", [0.1]), "what"),
        ask("what"),
        ask(("image", [0.3]), "what"),
    ]
    expected = processor.apply_chat_template(chats, add_generation_prompt=True)
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in expected.items()}


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("<image>", {}, "more <image> marks than image inputs"),
        ("<image>", {"image": [[1.0], [2.0]]}, "more image inputs than marks"),
        ("x", {"audio": [[1.0]]}, "more audio inputs than marks"),
        ("x", {"pictures": [[1.0]]}, ("no modality of this composition takes pictures; it takes "
         "audio, image, pressure")),
        ("x", {"image": "cat.png"}, "more image inputs than marks"),
        ("<|sight|>", {}, "give the input as a content part of type 'image'"),
        ("<image><|sight|>", {"image": [[1.0]]}, "give the input as a content part"),
        (None, {}, "there is no prompt"),
        ([], {}, "there is no prompt"),
    ],
)  # fmt: skip
def test_wrong_calls(processor: Any, text: Any, inputs: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        processor(text, **inputs)
    assert message in str(caught.value)


def test_a_role_or_a_template_cannot_add_inputs(processor: Any) -> None:
    with pytest.raises(
        InputError, match=r"wrote 1 times '<\|sight\|>', the sight inputs .* need 0"
    ):
        processor.apply_chat_template([{"role": "<|sight|>", "content": "x"}])
    halves = [{"role": "user", "content": "<|si"}, {"role": "user", "content": "ght|>"}]
    joined = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="wrote 1 times"):
        processor.apply_chat_template(halves, chat_template=joined)
    with pytest.raises(InputError, match="it drops or repeats content"):
        processor.apply_chat_template(SEE, chat_template="{{ messages[0]['role'] }}")


def test_a_role_that_smuggles_special_tokens_is_the_templates_business(processor: Any) -> None:
    text = processor.apply_chat_template(
        [{"role": "user<|im_end|>", "content": "x"}], tokenize=False
    )
    assert text.startswith("<|im_start|>user<|im_end|>\n")


@pytest.mark.parametrize("nothing", [[], ()])
def test_no_conversation(processor: Any, nothing: Any) -> None:
    with pytest.raises(InputError, match="there is no conversation"):
        processor.apply_chat_template(nothing)


def test_inputs_reach_the_reader_as_bytes_or_paths(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(source: Any, limits: Any) -> torch.Tensor:
        seen.append((source, dict(limits)))
        return torch.zeros(1)

    modality = processor.registry.modality("sight")
    monkeypatch.setattr(
        type(processor.registry),
        "modality",
        lambda self, name, requires=None: __import__("attrs").evolve(modality, read=record),
    )
    coded = base64.b64encode(b"abc").decode()
    processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "base64": coded},
                                      {"type": "image", "path": "cat.png"}]}]
    )  # fmt: skip
    processor("<image>", image="dog.png")
    assert seen == [
        (source, {"bytes": 1000}) for source in (b"abc", Path("cat.png"), Path("dog.png"))
    ]


@pytest.mark.parametrize("lacking", ["pad_token", "chat_template"])
def test_bases_without_padding_token_or_template(tmp_path: Path, lacking: str) -> None:
    base = tiny_base(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, lacking, None)
    (base / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(base)
    parent = toy_parent(tmp_path / "p", base, "sight")
    model, processor = modalloy.compose(base, parents=[parent], registry=toy_registry("sight"))
    if lacking == "chat_template":
        with pytest.raises(InputError, match=r"tokenizer has no chat template.*give one under"):
            processor.apply_chat_template(SEE)
    batch = processor.apply_chat_template([SEE, TEXT], chat_template=CHAT_TEMPLATE)
    assert (batch["attention_mask"] == 0).any()
    assert model.generate(**batch, max_new_tokens=2).shape[0] == 2


def test_what_is_saved_of_it(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "processor_config.json").read_text())
    assert sorted(data["modalities"]) == ["sight", "sound", "touch"]
    assert "registry" not in (tmp_path / "processor_config.json").read_text()
    assert (tmp_path / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    again = modalloy.ModalloyProcessor.from_pretrained(tmp_path).bind(processor.registry)
    expected = processor.apply_chat_template([BOTH])
    assert {k: v.tolist() for k, v in again.apply_chat_template([BOTH]).items()} == {
        k: v.tolist() for k, v in expected.items()
    }
