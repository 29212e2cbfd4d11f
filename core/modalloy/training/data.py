"""Chat data: JSONL with content parts, laid out as token ids with labels on the answers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from modalloy.checkpoints.safe_files import parse_json
from modalloy.composition.content import flatten_message
from modalloy.composition.features import FeatureCache
from modalloy.composition.loss import IGNORED
from modalloy.composition.processing import TEMPLATE_ERRORS, ModalloyProcessor
from modalloy.errors import FormatError, InputError, UnsafePathError

ANSWERER = "assistant"
"""Role of the messages that are learnt."""

_SHOWN = 80


@attrs.frozen(eq=False)
class Example:
    """One chat, laid out.

    Attributes:
        input_ids: ``(T,)`` int64.
        labels: ``(T,)`` int64, ``IGNORED`` outside the answers.
        types: ``(T,)`` int64, ``mm_token_type_ids``.
        inputs: ``(modality, path)`` in prompt order.
        file: The JSONL file that it is from.
        line: Its line there.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    types: torch.Tensor
    inputs: tuple[tuple[str, Path], ...]
    file: Path
    line: int

    @property
    def where(self) -> str:
        """Its file and line, for messages."""
        return f"{self.file}, line {self.line}"


class ChatDataset(Dataset[Example]):
    """The chats of some JSONL files.

    Each line is ``{"messages": [...]}`` with content parts as in
    :mod:`modalloy.composition.content`; media are named by ``path``, relative to their file's
    directory and inside it. Further keys are ignored.
    """

    def __init__(self, files: Iterable[Path], processor: ModalloyProcessor) -> None:
        self.examples = [
            _lay_out(record, file, number, processor)
            for file in files
            for number, record in _read_lines(file)
        ]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def sources(self) -> list[tuple[str, Path]]:
        """Return every distinct input, sorted."""
        return sorted({one for example in self.examples for one in example.inputs})


@attrs.frozen
class Collator:
    """Pads examples on the left and puts their inputs beside them.

    Answers then end at the same column, so that few columns carry labels and the head is
    computed for those alone.

    Attributes:
        processor: Preprocesses inputs.
        features: Encoded inputs, or ``None`` to encode in the model.
    """

    processor: ModalloyProcessor
    features: FeatureCache | None

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return model inputs ``(B, T)`` and inputs ``(N, ...)`` by modality."""

        def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
            return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")

        pad = self.processor.tokenizer.pad_token_id or 0
        batch = {
            "input_ids": padded([e.input_ids for e in examples], pad),
            "attention_mask": padded([torch.ones_like(e.input_ids) for e in examples], 0),
            "mm_token_type_ids": padded([e.types for e in examples], 0),
            "labels": padded([e.labels for e in examples], IGNORED),
        }
        inputs = [one for example in examples for one in example.inputs]
        if self.features is None:
            return batch | self.processor.preprocess(inputs)
        return batch | self.features.batch(inputs)


def _read_lines(file: Path) -> list[tuple[int, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FormatError(
            f"{file} is not there; make the data first, or name their directory (--data)", path=file
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{file} cannot be read: {error}", path=file) from error
    records = []
    # Not splitlines: it also splits at separators that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            records.append((number, parse_json(line, f"{file}, line {number}", file)))
    if not records:
        raise FormatError(f"{file} holds no chats", path=file)
    return records


def _lay_out(record: Any, file: Path, number: int, processor: ModalloyProcessor) -> Example:
    where = f"{file}, line {number}"
    messages = record.get("messages") if isinstance(record, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise FormatError(
            f"{where}: expected {{'messages': [...]}}, found {_shown(record)}", path=file
        )
    try:
        flat = [flatten_message(message, processor.modalities) for message in messages]
        ids, labels = tokenize_chat([message for message, _ in flat], processor)
    except (InputError, *TEMPLATE_ERRORS) as error:
        raise FormatError(f"{where}: {error}", path=file) from error
    if any(message["role"] == ANSWERER and found for message, found in flat):
        raise FormatError(
            f"{where}: an answer holds an input; only text can be learnt as an answer, so inputs "
            "belong in the messages of other roles",
            path=file,
        )
    if not (labels != IGNORED).any():
        roles = ", ".join(sorted({message["role"] for message, _ in flat}))
        raise FormatError(
            f"{where}: no message has the role {ANSWERER!r} (found: {roles}), so there is nothing "
            "to learn",
            path=file,
        )
    inputs = tuple((n, _inside(source, file, where)) for _, found in flat for n, source in found)
    return Example(ids, labels, processor.token_types(ids), inputs, file, number)


def _shown(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _inside(source: Any, file: Path, where: str) -> Path:
    """Return a media path, checked to lie inside its JSONL file's directory."""
    if not isinstance(source, Path):
        raise FormatError(
            f"{where}: media must be named by 'path'; found {_shown(source)}", path=file
        )
    root = file.parent.resolve()
    path = (root / source).resolve()
    if not path.is_relative_to(root):
        raise UnsafePathError(
            f"{where}: {source} leads outside {file.parent}; media lie beside their JSONL file or "
            "below it",
            path=path,
        )
    if not path.is_file():
        raise FormatError(f"{where}: {source} does not exist in {file.parent}", path=path)
    return path


def tokenize_chat(
    chat: Sequence[Mapping[str, str]], processor: ModalloyProcessor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenise a chat and label its answers, end-of-turn token included.

    Args:
        chat: Messages with string contents, placeholders in place.
        processor: Its tokenizer and chat template are used.

    Returns:
        ``input_ids (T,)`` and ``labels (T,)``.

    Raises:
        InputError: The chat template does not write messages one after the other.
    """

    def render(count: int, *, prompt: bool) -> str:
        return processor.tokenizer.apply_chat_template(
            chat[:count],
            chat_template=processor.chat_template,
            tokenize=False,
            add_generation_prompt=prompt,
        )

    whole = render(len(chat), prompt=False).rstrip()
    spans = []
    for index, message in enumerate(chat):
        if message["role"] == ANSWERER:
            before = render(index, prompt=True)
            after = render(index + 1, prompt=False).rstrip()
            if not (whole.startswith(after) and after.startswith(before)):
                raise InputError(
                    "the base's chat template does not write messages one after the other, so "
                    "answers cannot be found in it; train on one answer per chat"
                )
            spans.append((len(before), len(after)))
    encoded = processor.tokenizer(
        whole, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt"
    )
    ids = encoded["input_ids"][0]
    starts = encoded["offset_mapping"][0, :, 0]
    inside = torch.zeros_like(ids, dtype=torch.bool)
    for start, stop in spans:
        inside |= (starts >= start) & (starts < stop)
    return ids, torch.where(inside, ids, IGNORED)
