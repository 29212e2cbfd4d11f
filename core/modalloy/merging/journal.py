"""What a merge has done so far, so that one that was stopped can go on."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Self

from modalloy.errors import FormatError

try:
    import fcntl
except ImportError:  # Windows: two merges into one place are not told apart there
    fcntl = None  # type: ignore[assignment]

NAME = "merge.journal"


class Journal:
    """Names of the tensors that are written, in a file that only ever grows.

    Args:
        directory: Where the output is made.
        identity: Of all that the output depends on.
        resume: Whether to go on with what is there.

    Raises:
        FormatError: Another merge is at work there, or was of other inputs, or there is one to go
            on with and that was not asked for.
    """

    def __init__(self, directory: Path, identity: str, *, resume: bool) -> None:
        self._path = directory / NAME
        self._identity = identity
        self.done: set[str] = set()
        self._made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        if not self._path.is_file() and (directory.is_symlink() or any(directory.iterdir())):
            raise FormatError(
                f"{directory} is in the way, and holds no merge that could be gone on with; "
                "remove it",
                path=directory,
            )
        self._file: IO[str] = self._path.open("a+", encoding="utf-8", errors="replace")
        try:
            self._lock(directory)
            self._file.seek(0)
            lines = self._file.read().splitlines()
            if lines:
                self._take_up(lines, identity, resume=resume)
            else:
                self._write(identity)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is not None and self._made and not self.done:
            # There is nothing to go on with.
            shutil.rmtree(self._path.parent, ignore_errors=True)

    def add(self, tensor: str) -> None:
        """Record that a tensor is written."""
        self._write(json.dumps(tensor))
        self.done.add(tensor)

    def forget(self, tensors: Iterable[str]) -> None:
        """Take tensors for not written: their file is gone, or was cut short."""
        self.done -= set(tensors)
        # On file as well: once the file is made anew, its length says nothing any more.
        self._rewrite()

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        # To the system: what it has outlives this process.
        self._file.flush()

    def _lock(self, directory: Path) -> None:
        lock: Callable[..., None] | None = getattr(fcntl, "flock", None)
        if lock is None:
            return
        try:
            lock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FormatError(
                f"another merge is writing {directory}; wait for it, or choose another place",
                path=directory,
            ) from error
        except OSError:
            return  # a file system that knows no locks: two merges are not told apart there

    def _take_up(self, lines: list[str], identity: str, *, resume: bool) -> None:
        if not resume:
            raise FormatError(
                f"{self._path.parent} holds a merge that was stopped; go on with it by --resume, "
                "or remove it",
                path=self._path,
            )
        if lines[0] != identity:
            raise FormatError(
                f"{self._path.parent} holds a merge of another recipe, or of inputs that have "
                "changed since; remove it and merge anew",
                path=self._path,
            )
        for line in lines[1:]:
            try:
                name = json.loads(line)
            except ValueError:
                break  # the line that it was stopped in
            if isinstance(name, str):
                self.done.add(name)
        # What follows a broken line would be read as part of it.
        self._rewrite()

    def _rewrite(self) -> None:
        self._file.truncate(0)
        self._write("\n".join([self._identity, *map(json.dumps, sorted(self.done))]))
