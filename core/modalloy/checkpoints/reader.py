"""Tensors of a directory, one at a time, without reading what is not asked for."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from modalloy.checkpoints.safe_index import TensorEntry, scan
from modalloy.errors import FormatError, nearest

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BF16": torch.bfloat16,
        "BOOL": torch.bool,
        "F16": torch.float16,
        "F32": torch.float32,
        "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I16": torch.int16,
        "I32": torch.int32,
        "I64": torch.int64,
        "I8": torch.int8,
        "U8": torch.uint8,
    }
)


class CheckpointReader:
    """Read access to the safetensors of a directory.

    Files are opened when first needed and memory-mapped: a tensor's bytes are read from disk when
    they are touched, and writing to a tensor changes no file. Tensors outlive the reader. Not safe
    for use by several threads at once.

    Args:
        directory: The directory; checked by :func:`~modalloy.checkpoints.safe_index.safe_index`.
        stem: As in ``safe_index``.

    Raises:
        FormatError: The directory or its index is not as it should be.
        UnsafePathError: A shard's name leads outside the directory.
    """

    def __init__(self, directory: Path, stem: str = "model") -> None:
        self.directory = directory
        self._entries = scan(directory, stem)
        self._handles: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a later access opens them anew."""
        self._handles.clear()
        self._stack.close()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(self._entries)

    def file(self, name: str) -> Path:
        """Return the shard that holds a tensor."""
        return self._entry(name).file

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype.

        Raises:
            FormatError: There is no such tensor, or its dtype is not read.
        """
        entry = self._entry(name)
        if entry.dtype not in _DTYPES:
            raise FormatError(
                f"{entry.file}: tensor {name!r} has dtype {entry.dtype}, which is not read; "
                f"known: {', '.join(_DTYPES)}",
                path=entry.file,
            )
        return _DTYPES[entry.dtype]

    def stored(self, name: str) -> str:
        """Return a tensor's dtype as safetensors writes it, such as ``"BF16"``."""
        return self._entry(name).dtype

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, memory-mapped.

        Raises:
            FormatError: There is no such tensor, or its file is damaged.
        """
        entry = self._entry(name)
        try:
            tensor: torch.Tensor = self._handle(entry.file).get_tensor(name)
        except SafetensorError as error:
            raise FormatError(
                f"{entry.file}: tensor {name!r} cannot be read ({error}); fetch the file again",
                path=entry.file,
            ) from error
        return tensor

    def sample(self, name: str, count: int) -> torch.Tensor:
        """Return up to ``count`` elements of a tensor, evenly spaced, the first and last included.

        Only the pages that hold them are read.

        Args:
            name: The tensor.
            count: At least 2; a tensor of no more elements is returned whole.

        Returns:
            ``(min(count, elements),)`` in the tensor's dtype, in row-major order.
        """
        flat = self.tensor(name).reshape(-1)
        last = flat.numel() - 1
        if last < count:
            return flat.clone()
        return flat[torch.arange(count) * last // (count - 1)]

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._entries:
            raise FormatError(
                f"{self.directory} holds no tensor {name!r}.{nearest(name, self._entries)}",
                path=self.directory,
            )
        return self._entries[name]

    def _handle(self, file: Path) -> Any:
        if file not in self._handles:
            self._handles[file] = self._stack.enter_context(safe_open(file, framework="pt"))
        return self._handles[file]
