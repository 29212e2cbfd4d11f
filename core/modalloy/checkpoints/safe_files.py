"""What stands beside a model's weights, checked before transformers reads any of it.

transformers follows links, reads tokenizers and chat templates under names that a file of the
directory gives, and takes other weights than those of :func:`~modalloy.checkpoints.safe_index.scan`
where certain files are there. What it would read has to be what was checked, and inside.
"""

import json
import os
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import UnionType
from typing import Any, overload

from modalloy.checkpoints.safe_index import check_inside
from modalloy.errors import FormatError, UnsafePathError

MAX_JSON_BYTES = 64 * 2**20
"""The largest tokenizers take about 40 MB."""
MAX_DEPTH = 64
"""Of lists and mappings within each other; configurations have about 5."""

_READ = (".jinja", ".json", ".model", ".safetensors", ".tiktoken", ".txt")
_FOLDERS = ("additional_chat_templates", "encoders")
_TEMPLATES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
_TOKENIZER = "tokenizer_config.json"
_ADAPTER = "adapter_config.json"

# Pieces of a model that was saved by several processes, which transformers loads first.
_PIECE = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")


def check_files(directory: Path) -> None:
    """Check the files of a model directory that are no index and no weights.

    Args:
        directory: Of a model: a base, a composition, or what is merged.

    Raises:
        UnsafePathError: A file is a link that leads outside, or a name in a file leads there.
        FormatError: A file is damaged or no file at all, or transformers would read other weights
            than were checked.
    """
    for path in _listing(directory):
        check_file(directory, path.relative_to(directory).as_posix())
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    pieces = sorted(name for name in names if _PIECE.fullmatch(name))
    if pieces:
        raise FormatError(
            f"{directory} holds {pieces[0]!r}, a piece of a model that several processes saved; "
            "it would be read in place of the weights that are checked. Remove such pieces, or "
            "put them together first",
            path=directory / pieces[0],
        )
    if _ADAPTER in names:
        raise FormatError(
            f"{directory} holds a model and {_ADAPTER}, so that opening the model would put an "
            "adapter on it that nobody asked for; move the adapter to a directory of its own",
            path=directory / _ADAPTER,
        )
    for name in _TEMPLATES:
        if name in names:
            _check_templates(directory, name)


def check_file(directory: Path, name: str) -> None:
    """Check that a file that is read under its own name is a plain one, inside its directory.

    Raises:
        UnsafePathError: It is a link that leads outside.
        FormatError: It is neither a file nor a directory: a pipe or a device, which may never end.
    """
    path = directory / name
    if path.is_symlink():
        check_inside(directory, name, directory, suffix="")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FormatError(f"{path} is no file but a pipe or a device; remove it", path=path)


@overload
def read_object(path: Path) -> dict[str, Any]: ...


@overload
def read_object(path: Path, kind: type | UnionType) -> Any: ...


def read_object(path: Path, kind: type | UnionType = dict) -> Any:
    """Return the JSON object that a file of a stranger holds.

    Args:
        path: The file.
        kind: What else than an object it may hold, such as ``list | dict``.

    Raises:
        OSError: It cannot be read.
        FormatError: It is no plain file, too large, no JSON, not of its kind, or nested too deeply.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise FormatError(f"{path} is no file but a pipe or a device; remove it", path=path)
    size = found.st_size
    if size > MAX_JSON_BYTES:
        raise FormatError(f"{path} has {size} bytes, at most {MAX_JSON_BYTES} are read", path=path)
    data = parse_json(path.read_bytes(), path, path)
    if not isinstance(data, kind):
        wanted = "a JSON object" if kind is dict else "a JSON object or list"
        raise FormatError(f"{path}: expected {wanted}, found {type(data).__name__}", path=path)
    return data


def parse_json(text: str | bytes, where: object, path: Path) -> Any:
    """Return the JSON that a text of a stranger is.

    Args:
        text: In UTF-8 where it is bytes.
        where: Where it stands, for messages: a file, or a line of one.
        path: The file.

    Raises:
        FormatError: It is no JSON, or nested too deeply.
    """
    try:
        data = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is not valid JSON: {error}", path=path) from error
    level: list[Any] = [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise FormatError(
            f"{where} is not valid JSON of its kind: it is nested more than {MAX_DEPTH} deep",
            path=path,
        )
    return data


def _listing(directory: Path) -> list[Path]:
    """Return what is read of a directory, and its folders that hold what is read, sorted."""
    if not directory.is_dir():
        return []
    found = [
        path
        for path in sorted(directory.iterdir())
        if path.suffix in _READ or path.name in _FOLDERS
    ]
    for name in _FOLDERS:
        folder = directory / name
        if folder.is_dir() and not folder.is_symlink():
            found += [path for path in sorted(folder.iterdir()) if path.suffix in _READ]
    return found


def _check_templates(directory: Path, name: str) -> None:
    """Check the names that a file gives to chat templates and tokenizers: they become files."""
    path = directory / name
    try:
        data = read_object(path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    templates = data.get("chat_template")
    if isinstance(templates, dict):
        given = list(templates)
    elif isinstance(templates, list):
        given = [one.get("name") if isinstance(one, dict) else one for one in templates]
    else:
        given = []
    for template in given:
        if not isinstance(template, str) or not _is_plain(template):
            raise UnsafePathError(
                f"{path} names a chat template {template!r}, which could not be saved as a file "
                "of that name in a directory; nothing was written. Take this model from a source "
                "that you trust",
                path=path,
            )
    files = data.get("fast_tokenizer_files", []) if name == _TOKENIZER else []
    for file in files if isinstance(files, list) else [files]:
        if not isinstance(file, str) or not _is_plain(file):
            raise UnsafePathError(
                f"{path} names a tokenizer's file {file!r}, which is not one of its directory; "
                "nothing was read from it. Take this model from a source that you trust",
                path=path,
            )


def _is_plain(name: str) -> bool:
    """Whether a name can be that of a file in a directory, on any system."""
    parts = (PurePosixPath(name).name, PureWindowsPath(name).name)
    return parts == (name, name) and name not in ("", os.curdir, os.pardir) and name.isprintable()
