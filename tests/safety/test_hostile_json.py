"""JSON and YAML of an enemy's: too large, too deep, or no file at all, wherever it is read."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modalloy.checkpoints.safe_files import MAX_DEPTH, MAX_JSON_BYTES, read_object
from modalloy.deltas.lowrank import read_adapter
from modalloy.errors import FormatError
from modalloy.evaluation.benchmarks.modelcompose import mcub
from modalloy.evaluation.questions import read_questions
from modalloy.interop.export_plain import strip_tokenizer
from modalloy.interop.peft import convert_peft
from modalloy.merging.output import is_merge, read_record
from modalloy.training.config import read_config
from modalloy.training.data import ChatDataset

Reader = Callable[[Path], object]
NO_PROCESSOR: Any = None  # lines are read before anything is laid out
READERS: dict[str, tuple[str, Reader]] = {
    "adapter": ("adapter_config.json", read_adapter),
    "adapter to convert": (
        "adapter_config.json",
        lambda d: convert_peft(d, d / "out", base=None, components=None),
    ),
    "record of a merge": ("modalloy.json", read_record),
    "questions": ("MCUB-4.json", lambda d: mcub(d, None)),
    "answers": ("MCUB-answer.json", lambda d: mcub(d, None)),
    "tokenizer": ("tokenizer.json", lambda d: strip_tokenizer(d, ())),
    "settings of a tokenizer": ("tokenizer_config.json", lambda d: strip_tokenizer(d, ())),
}
LINES: dict[str, Reader] = {
    "questions": read_questions,
    "chats": lambda file: ChatDataset([file], NO_PROCESSOR),
}


def nest(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def large(file: Path) -> None:
    with file.open("wb") as handle:
        handle.truncate(MAX_JSON_BYTES + 1)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "large": (large, f"has {MAX_JSON_BYTES + 1} bytes, at most {MAX_JSON_BYTES} are read"),
    "deep": (lambda f: f.write_text(nest(100)), f"is nested more than {MAX_DEPTH} deep"),
    "too deep to parse": (lambda f: f.write_text("[" * 100_000), "is not valid JSON"),
    "no text": (lambda f: f.write_bytes(b"\xff\xfe{}"), "is not valid JSON"),
    "a number of many digits": (lambda f: f.write_text("9" * 5000), "is not valid JSON"),
    "a number": (lambda f: f.write_text("9"), "expected a JSON object"),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("kind", READERS)
def test_files(tmp_path: Path, kind: str, how: str) -> None:
    name, read = READERS[kind]
    for beside in ("tokenizer.json", "MCUB-4.json"):
        (tmp_path / beside).write_text('{"added_tokens": []}' if "tok" in beside else "[]")
    spoil, words = SPOILT[how]
    spoil(tmp_path / name)
    with pytest.raises(FormatError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_no_merge(tmp_path: Path, how: str) -> None:
    SPOILT[how][0](tmp_path / "modalloy.json")
    assert not is_merge(tmp_path)
    (tmp_path / "modalloy.json").write_text('{"kind": "merge"}')
    assert is_merge(tmp_path)
    (tmp_path / "modalloy.json").write_text(f'{{"kind": "merge", "x": {nest(MAX_DEPTH)}}}')
    assert not is_merge(tmp_path)


@contextmanager
def pipe(file: Path) -> Iterator[None]:
    """A pipe that gives an object to whoever reads it, so that a reader does not wait for ever."""
    os.mkfifo(file)
    writer = threading.Thread(target=lambda: file.write_text("{}"), daemon=True)
    writer.start()
    try:
        yield
    finally:
        end = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # lets it go where nobody has read
        writer.join(timeout=10)
        os.close(end)


def test_pipes_and_devices(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pipe(file), pytest.raises(FormatError, match=r"config\.json is no file but a pipe"):
        read_object(file)
    file.unlink()
    file.symlink_to("/dev/null")
    with pytest.raises(FormatError, match="is no file but a pipe or a device"):
        read_object(file)
    with pytest.raises(IsADirectoryError):
        read_object(tmp_path)


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[" * 100_000, "is not valid JSON"),
        (nest(100), f"is nested more than {MAX_DEPTH} deep"),
        ("9" * 5000, "is not valid JSON"),
    ],
)
def test_lines(tmp_path: Path, kind: str, line: str, words: str) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(FormatError) as caught:
        LINES[kind](file)
    assert str(caught.value).startswith(f"{file}, line 1 is not valid JSON")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "is not valid YAML"),
        ("stages: " + "x" * 2**20, "has more than 1048576 bytes; is it a training configuration?"),
        ("base: 2020-13-45", "is not valid YAML: month must be in 1..12"),
    ],
)
def test_training_configurations(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "train.yml"
    file.write_text(text)
    with pytest.raises(FormatError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file} {words}")


def test_a_training_configuration_of_aliases(tmp_path: Path) -> None:
    """Each line holds the one before: shallow as text, and nested without end as data."""
    rungs = "\n".join(f"    a{n}: &a{n} [*a{n - 1}]" for n in range(1, 5000))
    rest = "name: it\nmodality: sight\nencoder: {type: x}\n"
    rest += "connector_stage: {steps: 0}\ntuning_stage: {steps: 0}\n"
    file = tmp_path / "train.yml"
    file.write_text(f"{rest}connector:\n  type: mlp\n  config:\n    a0: &a0 [1]\n{rungs}\n")
    with pytest.raises(FormatError, match=r"connector\.config must hold what JSON can hold"):
        read_config(file)
