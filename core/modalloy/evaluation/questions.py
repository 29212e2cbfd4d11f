"""Questions: what is asked, which answer is right, and what the question is about."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from modalloy.checkpoints.safe_files import parse_json
from modalloy.errors import FormatError, UnsafePathError
from modalloy.structured import structure


@attrs.frozen(kw_only=True)
class Question:
    """A question whose right answer is known.

    Attributes:
        id: Unique in its kind.
        kind: Name of the set it belongs to.
        messages: The conversation; media by absolute path.
        options: Possible answers, as the parents were trained to write them; none where the
            answer is scored by its letter or its text.
        answer: Index of the right option; ``None`` only where there are no options.
        reference: The exact free-form answer, or the right letter, where there is one.
        objects: What it is about; questions that share one of them are not independent.
    """

    id: str
    kind: str
    messages: list[dict[str, Any]]
    options: list[str] = attrs.Factory(list)
    answer: int | None = None
    reference: str | None = None
    objects: list[str] = attrs.Factory(list)

    @property
    def content_types(self) -> tuple[str, ...]:
        """Types of its parts other than text, sorted."""
        parts = (
            p for m in self.messages if not isinstance(m["content"], str) for p in m["content"]
        )
        return tuple(sorted({part["type"] for part in parts} - {"text"}))


def read_questions(file: Path) -> list[Question]:
    """Read a JSONL file of questions; their media are relative to its directory.

    Raises:
        FormatError: The file is missing or malformed.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{file} cannot be read: {error}", path=file) from error
    questions = []
    # Not splitlines: it also splits at separators that JSON allows inside strings.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        where = f"{file}, line {number}"
        question = structure(parse_json(line, where, file), Question, where)
        _check_answer(question, where, file)
        messages = [_absolute(message, file, where) for message in question.messages]
        questions.append(attrs.evolve(question, messages=messages))
    return questions


def check_media(questions: Iterable[Question], path: Path) -> None:
    """Check that every media file is there.

    Args:
        questions: With media by path.
        path: Where they were read from, for the message.

    Raises:
        FormatError: Some are missing; the message counts them and names the first.
    """
    files = sorted({file for question in questions for file in media_files(question)})
    missing = [file for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(str(file) for file in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""  # noqa: PLR2004
        raise FormatError(
            f"{path}: {len(missing)} of {len(files)} media files are missing: {shown}{more}; fetch "
            "them, or point --data at the directory that their paths are relative to",
            path=path,
        )


def media_files(question: Question) -> list[Path]:
    """Return the media that a question names by path, in prompt order."""
    return [
        Path(part["path"])
        for message in question.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if "path" in part
    ]


def first_of_each(questions: Iterable[Question], limit: int | None) -> list[Question]:
    """Return the first ``limit`` questions of each kind, in their order; all without a limit."""
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.kind] = seen.get(question.kind, 0) + 1
        if limit is None or seen[question.kind] <= limit:
            kept.append(question)
    return kept


def _check_answer(question: Question, where: str, file: Path) -> None:
    if question.options:
        if question.answer is None or not 0 <= question.answer < len(question.options):
            raise FormatError(f"{where}: answer {question.answer} is no option", path=file)
    elif question.reference is None:
        raise FormatError(
            f"{where}: there are neither options nor a reference, so no answer could be judged",
            path=file,
        )


def inside(root: Path, name: str, where: str) -> Path:
    """Return the path of a medium that a file names, checked to lie below that file's directory.

    Raises:
        UnsafePathError: It leads elsewhere.
    """
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise UnsafePathError(
            f"{where}: {name!r} leads outside {root}; media lie beside the file that names "
            "them, or below it",
            path=path,
        )
    return path


def _absolute(message: Mapping[str, Any], file: Path, where: str) -> dict[str, Any]:
    """Return a message whose media are named by absolute path, and by nothing else."""
    content = message.get("content")
    if isinstance(content, str):
        return dict(message)
    if not isinstance(content, list):
        raise FormatError(
            f"{where}: a message's content must be text or a list of parts; got {content!r:.80}",
            path=file,
        )
    return {**message, "content": [_part(part, file, where) for part in content]}


def _part(part: Any, file: Path, where: str) -> dict[str, Any]:
    """Return a part of a message: text, a medium by path, or one that is there as numbers."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    keys = [] if kind is None else [key for key in part if key != "type"]
    key = keys[0] if len(keys) == 1 else ""
    value = part[key] if key else None
    # A string under another key could name a file, too.
    fine = isinstance(value, str) if key in ("text", "path") else isinstance(value, list)
    if not fine or (kind == "text") is not (key == "text"):
        raise FormatError(
            f"{where}: expected {{'type': 'text', 'text': ...}} or {{'type', 'path'}}; found "
            f"{part!r:.80}",
            path=file,
        )
    return {**part, key: inside(file.parent, str(value), where) if key == "path" else value}
