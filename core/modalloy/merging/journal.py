"""What a merge has done so far, so that one that was stopped can go on."""

import json
import shutil
from collections.abc import Callable
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
        self.done: set[str] = set()
        self._file: IO[str] = self._path.open("a+", encoding="utf-8")
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
        if kind is not None and not self.done:
            # There is nothing to go on with.
            shutil.rmtree(self._path.parent, ignore_errors=True)

    def add(self, tensor: str) -> None:
        """Record that a tensor is written."""
        self._write(json.dumps(tensor))
        self.done.add(tensor)

    def remove(self) -> None:
        """Remove the file: the output is whole."""
        self._path.unlink()

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
        except OSError as error:
            raise FormatError(
                f"another merge is writing {directory}; wait for it, or choose another place",
                path=directory,
            ) from error

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
                self.done.add(json.loads(line))
            except ValueError:
                break  # the line that it was stopped in
        # What follows a broken line would be read as part of it.
        self._file.truncate(0)
        self._write("\n".join([identity, *map(json.dumps, sorted(self.done))]))
