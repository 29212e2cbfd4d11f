"""Safetensors shards that are written in place, part by part and in any order."""

import json
import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from modalloy.errors import FormatError, SpecError

INDEX = "model.safetensors.index.json"
ITEM_SIZES = {
    "BF16": 2,
    "BOOL": 1,
    "C64": 8,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "I8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "U8": 1,
}
"""Bytes of an element by the name that safetensors has for a dtype."""


@attrs.frozen
class TensorLayout:
    """A tensor that is to be written.

    Attributes:
        name: Its name.
        dtype: As safetensors writes it.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * ITEM_SIZES[self.dtype]


@attrs.frozen
class Shard:
    """A file of the output.

    Attributes:
        name: File name.
        header: What it begins with.
        offsets: Byte of the file at which each tensor begins, by name.
        size: Bytes of the whole file.
    """

    name: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


def plan_shards(tensors: Sequence[TensorLayout], most: int) -> list[Shard]:
    """Lay tensors out in files, in the order given but for alignment.

    Args:
        tensors: What is to be written.
        most: Bytes of tensors in a file at most; a larger tensor gets a file of its own.
    """
    groups: list[list[TensorLayout]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.size > most:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size
    total = len(groups)
    names = [f"model-{n + 1:05d}-of-{total:05d}.safetensors" for n in range(total)]
    if total == 1:
        names = ["model.safetensors"]
    return [_lay_out(name, group) for name, group in zip(names, groups, strict=True)]


def _lay_out(name: str, tensors: Sequence[TensorLayout]) -> Shard:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets = {}
    position = 0
    # Wide elements first, so that every tensor begins at a multiple of its element's size.
    for tensor in sorted(tensors, key=lambda one: -ITEM_SIZES[one.dtype]):
        offsets[tensor.name] = position
        stop = position + tensor.size
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = struct.pack("<Q", len(text)) + text
    places = {tensor: len(begin) + offset for tensor, offset in offsets.items()}
    return Shard(name, begin, places, len(begin) + position)


def write_index(directory: Path, shards: Sequence[Shard], tensors: Iterable[TensorLayout]) -> None:
    """Write the index that several shards need; of one shard there is none."""
    if len(shards) == 1:
        return
    layouts = list(tensors)
    index = {
        "metadata": {
            "total_parameters": sum(tensor.elements for tensor in layouts),
            "total_size": sum(tensor.size for tensor in layouts),
        },
        "weight_map": dict(sorted((name, s.name) for s in shards for name in s.offsets)),
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class ShardWriter:
    """Files of a directory that are written in place; safe for use by several threads.

    Args:
        directory: Exists.
        shards: Its files. What is in one that is there stays.

    Raises:
        OSError: A file cannot be opened or made as long as it has to be.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        self._directory = directory
        self._handles: list[int] = []
        self._places: dict[str, tuple[int, int, int]] = {}
        for shard in shards:
            path = directory / shard.name
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._handles.append(handle)
            os.ftruncate(handle, shard.size)
            self._write(handle, memoryview(shard.header), 0)
            ends = [*sorted(set(shard.offsets.values())), shard.size]
            for name, offset in shard.offsets.items():
                self._places[name] = (
                    handle,
                    offset,
                    ends[bisect_right(ends, offset)] if offset < shard.size else offset,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Write part of a tensor.

        Args:
            name: The tensor.
            offset: Byte of the tensor at which the part begins.
            data: The bytes, contiguous.

        Raises:
            FormatError: They cannot be written, for want of room for instance.
            SpecError: They would lie outside the tensor.
        """
        handle, start, stop = self._places[name]
        if not start <= start + offset <= start + offset + data.nbytes <= stop:
            raise SpecError(
                f"{name}: {data.nbytes} bytes do not fit at byte {offset} of {stop - start}; the "
                "method that made them returned another shape than the tensor's",
                subject=name,
            )
        self._write(handle, data.cast("B"), start + offset)

    def _write(self, handle: int, data: memoryview, position: int) -> None:
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(handle, data[done:], position + done)
            except OSError as error:
                raise FormatError(
                    f"{self._directory} cannot be written: {error.strerror}; make room and run "
                    "the same command with --resume",
                    path=self._directory,
                ) from error
