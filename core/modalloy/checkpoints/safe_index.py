"""The only way a directory's safetensors are found and opened.

A directory is a stranger's: its index may name files outside it, its header may be as large as
memory, and what one reader takes from it another may not. Everything is checked before any tensor
is read, and the same set of tensors results as in transformers.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

import attrs

from modalloy.errors import FormatError, UnsafePathError

SUFFIX = ".safetensors"
MAX_INDEX_BYTES = 64 * 2**20
"""The index of a model of 10^5 tensors takes about 10 MB."""
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit."""
MAX_TENSORS = 500_000
"""Of a directory; the largest mixtures of experts have about 10^5."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SHOWN = 5


@attrs.frozen(kw_only=True)
class TensorEntry:
    """Where a tensor is and what it is, from its file's header.

    Attributes:
        file: The shard, inside its directory.
        dtype: As safetensors writes it, such as ``"BF16"``.
        shape: Its shape; ``()`` for a scalar.
        start: Byte of the file that it begins at.
        stop: Byte after its last.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def safe_index(directory: Path, stem: str = "model") -> Mapping[str, Path]:
    """Return the shard of every tensor of a directory, sorted by name.

    Args:
        directory: Holds ``{stem}.safetensors``, or ``{stem}.safetensors.index.json`` and the
            shards that it names. Where both are there, the single file counts, as it does in
            transformers.
        stem: ``"model"`` for models, ``"adapter_model"`` for PEFT adapters.

    Returns:
        The file by tensor name.

    Raises:
        FormatError: There are no such files, a shard is missing, or index and shards disagree.
        UnsafePathError: A shard's name leads outside ``directory``.
    """
    return MappingProxyType({name: e.file for name, e in scan(directory, stem).items()})


def scan(directory: Path, stem: str = "model") -> Mapping[str, TensorEntry]:
    """Return the entry of every tensor of a directory, sorted by name; see :func:`safe_index`.

    Raises:
        FormatError: There are no weights, or a file or the index is damaged.
        UnsafePathError: A file lies, or is said to lie, outside the directory.
    """
    if not directory.is_dir():
        raise FormatError(f"{directory} is not a directory", path=directory)
    single = directory / f"{stem}{SUFFIX}"
    index = directory / f"{stem}{SUFFIX}.index.json"
    if single.is_file() or single.is_symlink():
        check_inside(directory, single.name, single)
        entries = read_header(single)
    elif index.is_file() or index.is_symlink():
        check_inside(directory, index.name, index, suffix=".json")
        entries = _scan_shards(directory, index)
    else:
        raise _nothing_found(directory, stem)
    return MappingProxyType(dict(sorted(entries.items())))


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return what a safetensors file's header says of its tensors.

    That offsets fit shapes and cover the file is left to the safetensors library, which checks it
    when it opens the file.

    Raises:
        FormatError: The header is damaged, too large, or names a tensor twice.
    """
    with file.open("rb") as handle:
        prefix = handle.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == len(b"<u64 LE>") else 0
        if not 0 < size <= min(MAX_HEADER_BYTES, file.stat().st_size - 8):
            raise FormatError(
                f"{file} is not a safetensors file, or was cut short: its header should take "
                f"{size} bytes of {file.stat().st_size}; fetch it again",
                path=file,
            )
        header = _parse(handle.read(size), file)
    header.pop("__metadata__", None)
    _check_count(len(header), file)
    return {name: _entry(file, name, fields, 8 + size) for name, fields in header.items()}


def check_inside(directory: Path, name: str, origin: Path, suffix: str = SUFFIX) -> Path:
    """Return ``directory / name`` if that is a file inside ``directory``.

    Symbolic links may lead elsewhere inside it, or to the blobs of the Hub cache that
    ``directory`` is a snapshot in.

    Args:
        directory: Where the file has to be.
        name: Relative path, from a file that is not trusted.
        origin: The file that says so, for messages.
        suffix: What the name has to end with.

    Raises:
        UnsafePathError: The name is absolute, climbs, has another suffix, or is a link outside.
    """
    problem = _name_problem(name, suffix)
    target = directory if problem else (directory / name).resolve()
    if not problem and not any(target.is_relative_to(root) for root in _roots(directory)):
        problem = "is a symbolic link that leads outside its directory"
    if problem:
        raise UnsafePathError(
            f"{origin} names {name!r}, which {problem}; nothing was read from it. Take this "
            "model from a source that you trust",
            path=origin,
        )
    return directory / name


def _name_problem(name: str, suffix: str) -> str | None:
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if windows.drive or windows.root or posix.is_absolute():
        return "is not a relative path"
    if ".." in windows.parts or "\0" in name:
        return "climbs out of its directory"
    if not name.endswith(suffix):
        return f"does not end with {suffix!r}"
    return None


def _roots(directory: Path) -> list[Path]:
    """Return where the files of ``directory`` may really be."""
    real = directory.resolve()
    for folder in (real, *real.parents):
        if folder.parent.name == "snapshots":
            repository = folder.parent.parent
            # The Hub cache keeps blobs beside the snapshots; newer ones link those in turn to one
            # store that all its repositories share.
            return [real, repository / "blobs", repository.parent / "blobs"]
    return [real]


def _scan_shards(directory: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    files = {name: check_inside(directory, name, index) for name in names}
    missing = [name for name in names if not files[name].is_file()]
    if missing:
        raise FormatError(
            f"{index}: {len(missing)} of {len(names)} shards are missing: {_some(missing)}; "
            "fetch the model again",
            path=index,
        )
    entries: dict[str, TensorEntry] = {}
    for shard in names:
        header = read_header(files[shard])
        _check_shard(index, shard, header, weight_map)
        entries.update(header)
    return entries


def _check_shard(
    index: Path, shard: str, header: Mapping[str, TensorEntry], weight_map: Mapping[str, str]
) -> None:
    """Refuse an index and a shard that disagree.

    transformers reads whatever a shard holds, so a tensor that the index leaves out, or gives to
    another shard, would be in the model that runs and not in the one that was looked at.
    """
    promised = {name for name, file in weight_map.items() if file == shard}
    for names, problem in (
        (promised - header.keys(), "which is not in it"),
        (header.keys() - promised, "which the index does not say"),
    ):
        if names:
            verb = "should hold" if problem.endswith("in it") else "holds"
            raise FormatError(
                f"{index}: shard {shard!r} {verb} {_some(sorted(names))}, {problem}; "
                "fetch the model again",
                path=index,
            )


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor as an index says; the names of files are not checked.

    Raises:
        FormatError: The index is damaged or too large.
    """
    size = index.stat().st_size
    if size > MAX_INDEX_BYTES:
        raise FormatError(
            f"{index} has {size} bytes, at most {MAX_INDEX_BYTES} are read", path=index
        )
    weight_map = _parse(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            f"{index}: 'weight_map' must map tensor names to files, found "
            f"{type(weight_map).__name__}",
            path=index,
        )
    _check_count(len(weight_map), index)
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise FormatError(
                f"{index}: the file of tensor {name!r} must be a string, found {file!r}",
                path=index,
            )
    return weight_map


def _entry(file: Path, name: str, fields: object, data: int) -> TensorEntry:
    if isinstance(fields, dict):
        dtype, shape = fields.get("dtype"), _sizes(fields.get("shape"))
        offsets = _sizes(fields.get("data_offsets"))
        if isinstance(dtype, str) and shape is not None and offsets and len(offsets) == 2:  # noqa: PLR2004
            start, stop = (data + offset for offset in offsets)
            return TensorEntry(file=file, dtype=dtype, shape=shape, start=start, stop=stop)
    raise FormatError(f"{file}: the header's entry for tensor {name!r} is damaged", path=file)


def _sizes(value: object) -> tuple[int, ...] | None:
    """Return a list of sizes as a tuple, or ``None`` where it is not one."""
    if isinstance(value, list) and all(type(n) is int and n >= 0 for n in value):
        return tuple(value)
    return None


def _parse(data: bytes, file: Path) -> dict[str, Any]:
    """Parse a JSON object in which no key stands twice: readers differ in which they take."""
    twice: list[str] = []

    def note_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice.extend(name for name, count in counts.items() if count > 1)
        return result

    try:
        parsed = json.loads(data, object_pairs_hook=note_repeats)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: the JSON in it is damaged: {error}", path=file) from error
    if twice:
        raise FormatError(f"{file} names {_some(sorted(twice))} more than once", path=file)
    if not isinstance(parsed, dict):
        raise FormatError(
            f"{file}: expected a JSON object, found {type(parsed).__name__}", path=file
        )
    return parsed


def _check_count(count: int, file: Path) -> None:
    if count > MAX_TENSORS:
        raise FormatError(
            f"{file} names {count} tensors, at most {MAX_TENSORS} are read", path=file
        )


def _nothing_found(directory: Path, stem: str) -> FormatError:
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if pickles:
        return FormatError(
            f"{directory} holds no {stem}{SUFFIX} but {_some(pickles)}: pickles, which can run "
            "any code when opened and are not read. Convert them once, where that may happen: "
            "open the model with transformers and save it with save_pretrained",
            path=directory,
        )
    return FormatError(
        f"{directory} holds neither {stem}{SUFFIX} nor {stem}{SUFFIX}.index.json", path=directory
    )


def _some(names: Iterable[str]) -> str:
    """Return the first few of ``names`` and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(map(repr, listed[:_SHOWN])) + more
