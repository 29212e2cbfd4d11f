"""Tensors of a directory as addresses in memory-mapped files, without torch."""

import ctypes
import math
import mmap
from collections.abc import Iterable
from pathlib import Path

import attrs
import numpy as np
from safetensors import SafetensorError, safe_open

from modalloy.checkpoints.safe_index import TensorEntry
from modalloy.checkpoints.writer import ITEM_SIZES
from modalloy.errors import FormatError


@attrs.frozen
class MappedTensor:
    """A tensor where it lies in a mapped file.

    Attributes:
        address: Of its first element.
        dtype: As safetensors writes it.
        shape: Its shape.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]

    def bytes(self, start: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """Return ``(count,)`` bytes from byte ``start`` on, not copied and not to be changed."""
        pointer = ctypes.cast(self.address + start, ctypes.POINTER(ctypes.c_uint8))
        found: np.ndarray[tuple[int], np.dtype[np.uint8]] = np.ctypeslib.as_array(pointer, (count,))
        return found


class MappedFiles:
    """Read-only maps of safetensors files, each checked by the library and mapped once.

    Addresses are good as long as this object is; the files must not be cut short meanwhile.
    """

    def __init__(self) -> None:
        self._maps: dict[Path, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}

    def open(self, files: Iterable[Path]) -> None:
        """Check and map files.

        Raises:
            FormatError: One is damaged.
        """
        for file in files:
            if file not in self._maps:
                self._maps[file] = _map(file)

    def tensor(self, entry: TensorEntry) -> MappedTensor:
        """Return where a tensor of an opened file lies.

        Raises:
            FormatError: The file is not what its header says.
        """
        data = self._maps[entry.file]
        size = ITEM_SIZES.get(entry.dtype, 0) * math.prod(entry.shape)
        if entry.stop > len(data) or (size and entry.stop - entry.start != size):
            raise FormatError(
                f"{entry.file} is not what its header says, or changed meanwhile; fetch it again",
                path=entry.file,
            )
        address = data.__array_interface__["data"][0] + entry.start
        return MappedTensor(address, entry.dtype, entry.shape)


def _map(file: Path) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    try:
        with safe_open(file, framework="numpy"), file.open("rb") as handle:
            found = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(
            f"{file} cannot be read as safetensors ({error}); fetch it again", path=file
        ) from error
    return np.frombuffer(found, np.uint8)
