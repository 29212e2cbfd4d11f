"""MCUB, AVQA and MUSIC-AVQA in the format of ModelCompose's authors (arXiv 2402.12750).

A file is a list of ``{"id", "conversations", "modal_inputs"}``: the human turn holds a mark such
as ``<image>`` for each input, ``modal_inputs`` their paths, and the other turn the answer, where
it is not in a file of answers. Paths are relative to the directory given.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modalloy.checkpoints.safe_files import read_object
from modalloy.errors import FormatError
from modalloy.evaluation.questions import Question, check_media, inside

TYPES = {"vision": "image", "audio": "audio", "video": "video", "point": "point_cloud"}
"""Content type by key of ``modal_inputs``."""

_MARKS = {"image": "vision", "audio": "audio", "video": "video", "point": "point"}
_MARK = re.compile(r"<(image|audio|video|point)>")
_MCUB_ANSWERS = "MCUB-answer.json"
_ANSWERS = re.compile(r"[-_]?answers?$", re.IGNORECASE)


def mcub(data: Path | None, limit: int | None) -> list[Question]:
    """Read ``MCUB-4.json`` and the four ``MCUB-3-*.json``, those that are there.

    Raises:
        FormatError: None is there, one is malformed, or a medium is missing.
    """
    directory = _directory(data, "mcub")
    files = sorted({*directory.glob("MCUB-3-*.json"), *directory.glob("MCUB-4.json")})
    answers = {"MCUB": _read_answers(directory / _MCUB_ANSWERS)}
    return _read(directory, files, answers, limit, "MCUB-4.json and MCUB-3-*.json")


def avqa(data: Path | None, limit: int | None) -> list[Question]:
    """Read every ``AVQA*.json``, one for each subset of picture, video and sound.

    Raises:
        FormatError: None is there, one is malformed, or a medium is missing.
    """
    return _read_named(data, limit, "avqa", re.compile(r"avqa(?![a-z])", re.IGNORECASE))


def music_avqa(data: Path | None, limit: int | None) -> list[Question]:
    """Read every ``MUSIC-AVQA*.json``, one for each subset of picture, video and sound.

    Raises:
        FormatError: None is there, one is malformed, or a medium is missing.
    """
    return _read_named(data, limit, "music-avqa", re.compile(r"music[-_]?avqa", re.IGNORECASE))


def _read_named(
    data: Path | None, limit: int | None, name: str, pattern: re.Pattern[str]
) -> list[Question]:
    directory = _directory(data, name)
    files = [file for file in sorted(directory.glob("*.json")) if pattern.match(file.stem)]
    answers = {
        _ANSWERS.sub("", file.stem): _read_answers(file)
        for file in files
        if _ANSWERS.search(file.stem)
    }
    files = [file for file in files if not _ANSWERS.search(file.stem)]
    return _read(directory, files, answers, limit, f"{name.upper()}*.json")


def _directory(data: Path | None, name: str) -> Path:
    if data is None:
        raise FormatError(
            f"benchmark {name!r} needs --data DIR, the directory of its JSON files and media",
            path="--data",
        )
    return data


def _read(
    directory: Path,
    files: list[Path],
    answers: Mapping[str, Mapping[str, str]],
    limit: int | None,
    expected: str,
) -> list[Question]:
    """Read files of questions; each takes the answers whose name begins its own, the longest."""
    if not files:
        raise FormatError(f"{directory} holds no questions: expected {expected}", path=directory)
    questions = []
    for file in files:
        items = _load(file)
        if not isinstance(items, list):
            raise FormatError(
                f"{file}: expected a list of items, found {type(items).__name__}", path=file
            )
        named = max((name for name in answers if file.stem.startswith(name)), key=len, default="")
        for index, item in enumerate(items[:limit]):
            questions.append(_question(item, file, index, answers.get(named, {})))
    check_media(questions, directory)
    return questions


def _question(item: Any, file: Path, index: int, answers: Mapping[str, str]) -> Question:
    where = f"{file}, item {index}"
    turns: Any = item.get("conversations") if isinstance(item, Mapping) else None
    fine = isinstance(turns, list) and turns and all(isinstance(t, Mapping) for t in turns)
    if not fine or not isinstance(turns[0].get("value"), str):
        raise FormatError(
            f"{where}: expected {{'id', 'conversations': [{{'value': text}}, ...], "
            "'modal_inputs'}",
            path=file,
        )
    name = str(item.get("id", index))
    gold = turns[1].get("value") if len(turns) > 1 else None
    gold = answers.get(name) if gold is None else gold
    if not isinstance(gold, str):
        raise FormatError(
            f"{where}: question {name!r} has no answer, neither in its second turn nor in a file "
            "of answers beside it",
            path=file,
        )
    content, paths = _content(turns[0]["value"], item.get("modal_inputs") or {}, file, where)
    return Question(
        id=f"{index}-{name}",  # ids may repeat in a file
        kind=file.stem,
        messages=[{"role": "user", "content": content}],
        reference=gold.strip(),
        objects=paths,
    )


def _content(
    text: str, inputs: Any, file: Path, where: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return content parts, inputs in the places of their marks, and the inputs' names."""
    if not isinstance(inputs, Mapping):
        raise FormatError(f"{where}: modal_inputs must be a mapping; got {inputs!r:.80}", path=file)
    queues = {
        key: [value] if isinstance(value, str) else value or [] for key, value in inputs.items()
    }
    for key, value in queues.items():
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise FormatError(
                f"{where}: modal_inputs[{key!r}] must be a path or a list of paths; got "
                f"{value!r:.80}",
                path=file,
            )
    queues = {key: list(value) for key, value in queues.items()}
    unknown = sorted(queues.keys() - TYPES.keys())
    if unknown:
        raise FormatError(
            f"{where}: modal_inputs has {', '.join(unknown)}; known are {', '.join(TYPES)}",
            path=file,
        )
    content: list[dict[str, Any]] = []
    names: list[str] = []
    for index, piece in enumerate(_MARK.split(text)):
        if index % 2 == 0:
            if piece.strip():
                content.append({"type": "text", "text": piece.strip("\n")})
            continue
        key = _MARKS[piece]
        if not queues.get(key):
            raise FormatError(
                f"{where}: the text has more <{piece}> marks than modal_inputs has {key} paths",
                path=file,
            )
        name = queues[key].pop(0)
        content.append({"type": TYPES[key], "path": inside(file.parent, name, where)})
        names.append(f"{key}/{name}")
    left = sorted(key for key, queue in queues.items() if queue)
    if left:
        raise FormatError(
            f"{where}: modal_inputs has more {', '.join(left)} paths than the text has marks",
            path=file,
        )
    return content, names


def _read_answers(file: Path) -> dict[str, str]:
    """Read ``{id: answer}`` or ``[{"id", "answer"}]``; none where there is no file."""
    if not file.is_file():
        return {}
    data = _load(file)
    if isinstance(data, list) and all(isinstance(one, Mapping) for one in data):
        pairs = [(one.get("id", one.get("question_id")), one.get("answer")) for one in data]
    elif isinstance(data, Mapping):
        pairs = list(data.items())
    else:
        pairs = [(None, None)]
    if any(key is None or not isinstance(value, str) for key, value in pairs):
        raise FormatError(
            f"{file}: expected {{id: answer}} or a list of {{'id', 'answer'}}, answers as text",
            path=file,
        )
    return {str(key): value for key, value in pairs}


def _load(file: Path) -> Any:
    try:
        return read_object(file, list | dict)
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error}", path=file) from error
