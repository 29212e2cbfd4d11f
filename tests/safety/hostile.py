"""Directories as an enemy would write them, and a box that sees what is done with them.

A box holds a good model that a test makes a bad one, and beside it a secret. What is opened beside
it is seen by the kernel's inotify, since readers in Rust tell Python nothing; connections and new
processes are seen by an audit hook. A canary is a file that hostile code would leave.
"""

import ctypes
import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from modalloy.errors import ModalloyError

MARK = "not yours, 0b5e7"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

_OPEN, _MODIFY, _MOVED, _CREATE, _DELETE = 0x20, 0x02, 0xC0, 0x100, 0x200
_ACTS = (
    "os.exec", "os.posix_spawn", "os.system", "socket.connect", "socket.getaddrinfo",
    "socket.gethostbyname", "subprocess.Popen",
)  # fmt: skip
_seen: list[str] = []
_watching = [False]


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching[0] and event in _ACTS:
        _seen.append(f"{event} {args!r:.200}")


sys.addaudithook(_audit)


class Outside:
    """What lies beside the directories that a caller gave, and who opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "secret.txt").write_text(MARK)
        self._libc: Any = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Assert that nothing in it, or in its folders, is opened or changed meanwhile."""
        if self._libc is None:
            yield
            return
        handle = self._libc.inotify_init1(os.O_NONBLOCK)
        assert handle >= 0
        try:
            for folder in (self.path, *(p for p in self.path.rglob("*") if p.is_dir())):
                mask = _OPEN | _MODIFY | _MOVED | _CREATE | _DELETE
                watch = self._libc.inotify_add_watch(handle, os.fsencode(folder), mask)
                assert watch >= 0
            yield
            assert self._opened(handle) == []
        finally:
            os.close(handle)

    def _opened(self, handle: int) -> list[str]:
        try:
            data = os.read(handle, 1 << 16)
        except BlockingIOError:
            return []
        found, start = [], 0
        while start < len(data):
            _, _, _, size = struct.unpack_from("iIII", data, start)
            found.append(data[start + 16 : start + 16 + size].rstrip(b"\0").decode())
            start += 16 + size
        return sorted(set(found))


@attrs.frozen
class Box:
    """A model to spoil, beside what is none of anybody's business.

    Attributes:
        root: Holds everything.
        model: The model, parent or composition.
        outside: Beside it.
    """

    root: Path
    model: Path
    outside: Outside

    @property
    def canary(self) -> Path:
        """A file that hostile code would leave."""
        return self.root / "canary"

    @property
    def out(self) -> Path:
        """Where a test has something written."""
        return self.root / "out"

    @contextmanager
    def watched(self, *acts: str) -> Iterator[None]:
        """Assert that hostile code does not run, and nothing is read or written outside.

        Args:
            *acts: Audit events that are right, such as ``"subprocess.Popen"``.
        """
        before, modules = listing(self.root, self.out), set(sys.modules)
        _seen.clear()
        _watching[0] = True
        try:
            with self.outside.watched():
                yield
        finally:
            _watching[0] = False
        assert [event for event in _seen if event.split()[0] not in acts] == []
        assert not self.canary.exists()
        assert listing(self.root, self.out) == before
        for name in set(sys.modules) - modules:
            place = str(getattr(sys.modules[name], "__file__", None) or "")
            assert not place.startswith(str(self.root)), name
        assert leaks(self.out) == []

    def refuses(
        self, call: Callable[[], object], kind: type[ModalloyError], words: str, *acts: str
    ) -> None:
        """Assert that a call is refused by name and message, and leaves nothing behind.

        Args:
            call: What a user would do.
            kind: Of the error.
            words: Part of its message.
            *acts: As in :meth:`watched`.
        """
        with self.watched(*acts), pytest.raises(kind) as caught:
            call()
        assert words in str(caught.value), str(caught.value)
        assert not self.out.exists()
        assert not list(self.root.glob(".*partial*"))

    def takes(self, call: Callable[[], Any]) -> Any:
        """Return what a call does, asserting that it harms nobody."""
        with self.watched():
            return call()

    def code(self, name: str = "foreign.py", body: str = "") -> None:
        """Put a module into the model that leaves the canary when it is imported."""
        file = self.model / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"from pathlib import Path\nPath({str(self.canary)!r}).touch()\n{body}")

    def pickle(self, name: str) -> None:
        """Put a pickle into the model that leaves the canary when it is opened."""
        file = self.model / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickled_canary(self.canary))

    def edit(self, name: str, change: Callable[[Any], object] | None = None, **keys: Any) -> None:
        """Change a JSON file of the model."""
        file = self.model / name
        data = json.loads(file.read_text())
        data.update(keys)
        if change is not None:
            change(data)
        file.write_text(json.dumps(data))

    def link(self, name: str, target: str) -> None:
        """Move a file of the model outside, or take what is there, and link to it."""
        place, file = self.outside.path / target, self.model / name
        if not place.exists():
            shutil.move(file, place)
        elif file.exists():
            file.unlink()
        file.symlink_to(os.path.relpath(place, file.parent))

    def shards(self, weight_map: Mapping[str, str] | Callable[[str], str]) -> None:
        """Put an index in place of the model's weights."""
        names = load_file(self.model / WEIGHTS)
        (self.model / WEIGHTS).rename(self.outside.path / "w.safetensors")
        table = {n: weight_map(n) for n in names} if callable(weight_map) else dict(weight_map)
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": table})
        (self.model / INDEX).write_text(text)


def listing(root: Path, out: Path) -> dict[str, str]:
    """Return the files below a folder, without those of ``out``, by name with their hashes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "-"
        for path in sorted(root.rglob("*"))
        if not path.is_relative_to(out)
    }


def leaks(out: Path) -> list[str]:
    """Return the files that hold the secret."""
    files = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else []
    return [str(path) for path in files if MARK.encode() in path.read_bytes()]


def pickled_canary(canary: Path) -> bytes:
    """Return a pickle, in torch's own format, that leaves the canary when it is opened."""

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (Path.touch, (canary,))

    return pickle.dumps({"x": Payload()})


def spoil_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the header of a safetensors file, its data left as it is."""
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    change(header)
    write_header(file, json.dumps(header).encode(), raw[8 + size :])


def write_header(file: Path, header: bytes, data: bytes, size: int | None = None) -> None:
    """Write a safetensors file by hand."""
    length = len(header) if size is None else size
    file.write_bytes(struct.pack("<Q", length) + header + data)


def scaled_weights(source: Path, target: Path, factor: float = 5.0) -> None:
    """Write the tensors of a file, multiplied: other weights under the same names."""
    tensors = {name: tensor * factor for name, tensor in load_file(source).items()}
    save_file(tensors, target, metadata={"format": "pt"})


def same_weights(model: Any, file: Path) -> bool:
    """Whether a model has a tensor of a file as it is there."""
    norm = model.language_model.get_decoder().norm.weight
    stored = load_file(file)
    name = next(key for key in stored if key.endswith("model.norm.weight"))
    return torch.equal(norm.float(), stored[name].float())


def append_to(file: Path, data: bytes) -> None:
    """Add bytes to a file."""
    with file.open("ab") as handle:
        handle.write(data)
