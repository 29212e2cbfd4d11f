"""Answers kept on disk, so that a broken run goes on and a question is asked once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import torch

from modalloy.composition.features import FeatureStore
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import FormatError
from modalloy.evaluation.questions import Question

ANSWERS_FILE = "answers.jsonl"
_SAMPLES = 32
_WHERE = ("_name_or_path", "transformers_version")  # of a configuration: not what it says


@attrs.frozen
class Answer:
    """What a model answered.

    Attributes:
        text: The chosen option, or the greedy answer.
        scores: Log-likelihood of each option, where they were scored.
    """

    text: str
    scores: tuple[float, ...] = ()


class AnswerLog:
    """A JSONL file of answers, one line each, by what they depend on.

    An answer is found again by the model's fingerprint, the benchmark, the scoring, the question's
    id and the digest of all that the model was given. A line that a broken run left unfinished at
    the end is dropped.

    Args:
        file: The file; made with the first answer. ``None`` keeps nothing.

    Raises:
        FormatError: A line before the last is not an answer.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._known: dict[str, Answer] = {}
        if file is not None and file.is_file():
            self._read(file)

    def get(self, key: dict[str, str]) -> Answer | None:
        """Return the answer of an earlier run, if there is one."""
        return self._known.get(_joined(key))

    def add(self, key: dict[str, str], answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns.

        Raises:
            FormatError: It cannot be written.
        """
        self._known[_joined(key)] = answer
        if self.file is None:
            return
        line = json.dumps({**key, "answer": answer.text, "scores": list(answer.scores)})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as handle:
                handle.write(line + "\n")
        except OSError as error:
            raise FormatError(f"{self.file} cannot be written: {error}", path=self.file) from error

    def _read(self, file: Path) -> None:
        whole, newline, rest = file.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
            try:
                data = json.loads(line)
                key = {name: data[name] for name in _KEY}
                self._known[_joined(key)] = Answer(data["answer"], tuple(data["scores"]))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise FormatError(
                    f"{file}, line {number} is no answer of an evaluation: {error!r}; remove the "
                    "line, or choose another --work",
                    path=file,
                ) from error
        if rest:
            # Cut, so that the next answer starts a line of its own.
            with file.open("r+b") as handle:
                handle.truncate(len(whole) + len(newline))


_KEY = ("model", "benchmark", "scoring", "kind", "id", "question")


def _joined(key: dict[str, str]) -> str:
    return json.dumps([key[name] for name in _KEY])


def question_digest(
    question: Question,
    store: FeatureStore,
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
) -> str | None:
    """Return the SHA-256 of all that a model is given: text, options, the media and who reads them.

    That is the media's bytes and the names of their features' shards. ``None`` where an input is
    an object of the caller's, which has no lasting identity.
    """
    names = {entry["content_type"]: name for name, entry in processor.modalities.items()}
    messages: list[Any] = []
    for message in question.messages:
        content = message["content"]
        parts: list[Any] = [content] if isinstance(content, str) else []
        for part in () if isinstance(content, str) else content:
            one = dict(part)
            if "path" in one:
                reader = store.folder(model, processor, names[one["type"]])
                one["path"] = [reader, store.digest(Path(one["path"]))]
            parts.append(one)
        messages.append({**message, "content": parts})
    try:
        text = json.dumps([messages, question.options], sort_keys=True)
    except TypeError:
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def model_fingerprint(model: ModalloyForConditionalGeneration, processor: ModalloyProcessor) -> str:
    """Return the SHA-256 of what decides a composition's answers, its encoders aside.

    That is its configuration, its coefficients, its dtype, a sample of every tensor, and how its
    processor writes a prompt.
    """
    config, base = model.config, model.language_model.config.to_dict()
    coefficients = model.coefficients.to_dict()
    del coefficients["rule"]  # what they were made by; the same numbers give the same answers
    identity = {
        "method": config.method,
        "decoupled": config.decoupled,
        "coefficients": coefficients,
        "modalities": config.modalities,
        "dtype": str(model.dtype),
        "text_config": {key: value for key, value in base.items() if key not in _WHERE},
        "generation": model.generation_config.to_dict(),
        "template": processor.chat_template,
        "vocabulary": processor.tokenizer.get_vocab(),
    }
    found = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        if len(flat):
            places = torch.linspace(0, len(flat) - 1, _SAMPLES, dtype=torch.float64).long()
            sample = flat[places.to(flat.device)].float().cpu()
            found.update(sample.numpy().astype("<f4").tobytes())
    return found.hexdigest()
