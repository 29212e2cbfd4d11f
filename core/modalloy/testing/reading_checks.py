"""Checking a reader: what it reads, what it refuses, and what it leaves behind."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from modalloy.errors import InputError, LimitError
from modalloy.modality import Modality, resolve
from modalloy.quarantine import named
from modalloy.testing.bounded import Outcome, run_bounded
from modalloy.testing.conduct import Conduct
from modalloy.testing.corrupting import corrupt
from modalloy.testing.report import expect
from modalloy.testing.sameness import content, same
from modalloy.testing.used import Used

_SHOWN = 5
_URL = "http://127.0.0.1:9/input"


@attrs.define(eq=False)
class Sample:
    """One good input.

    Attributes:
        reader: Reads it.
        label: Its name in messages.
        source: As it was given.
        data: Content of the file; ``None`` of an object.
        suffix: Ending of the file's name.
        decoded: What was read.
        before: Content of the source at first.
    """

    reader: "Reader"
    label: str
    source: Any
    data: bytes | None
    suffix: str
    decoded: Any = None
    before: Any = attrs.field(
        default=attrs.Factory(lambda self: content(self.source), takes_self=True)
    )

    def read(self) -> object:
        """Read it as it was given."""
        return self.reader.good(self.source, self.label)

    def check_read(self) -> str:
        """Read it, every way that it can be given, and twice."""
        expect(
            not isinstance(self.source, str),
            "it is text, which a host takes for a path; give bytes or a pathlib.Path",
        )
        first, again = self.read(), self.read()
        expect(same(first, again), "read twice, it gives two different results")
        expect(content(self.source) == self.before, "reading changed the object that was given")
        self.decoded = first
        if self.data is None:
            return f"read as {type(first).__name__}, twice the same"
        path = self.reader.file(self.data, self.suffix)
        for what, source in (("its path", path), ("its bytes", self.data)):
            found = self.reader.good(source, f"{self.label} by {what}")
            expect(same(first, found), f"by {what} it gives something else than as it was given")
        expect(path.read_bytes() == self.data, "reading changed the file")
        return f"read as {type(first).__name__}, by path and bytes, twice the same"

    def sources(self) -> Iterator[tuple[str, Any]]:
        """Yield every way that it can be given, with its name in messages."""
        if self.data is None:
            yield self.label, self.source
        else:
            yield f"{self.label} by its bytes", self.data
            yield f"{self.label} by its path", self.reader.file(self.data, self.suffix)


class Reader:
    """Reads sources of one modality within bounds, watched.

    Args:
        modality: Whose reader it is.
        folder: An empty directory for files.
        seconds: The most that reading may take.
        memory: The most bytes that reading a bad source may take.
    """

    def __init__(self, modality: Modality, folder: Path, seconds: float, memory: int) -> None:
        self.modality = modality
        self.folder = folder
        self.seconds = seconds
        self.memory = memory
        self.conduct = Conduct(folder)
        self._read = resolve(modality.read)
        self._files = 0

    def sample(self, index: int, source: object) -> Sample:
        """Return a sample; a path is read, and left alone from then on."""
        if isinstance(source, Path):
            data: bytes | None = source.read_bytes()
            label = f"sample {index} ({source.name})"
            return Sample(self, label, source.absolute(), data, source.suffix)
        data = bytes(source) if isinstance(source, bytes | bytearray) else None
        return Sample(self, f"sample {index} ({type(source).__name__})", source, data, "")

    def file(self, data: bytes, suffix: str) -> Path:
        """Return a file of a name of its own."""
        self._files += 1
        path = self.folder / f"input-{self._files}{suffix}"
        path.write_bytes(data)
        return path

    def outcome(self, source: Any, label: str, **limits: int) -> Outcome[Any]:
        """Read a source, some limits changed."""
        changed = {**self.modality.limits, **limits}
        watched = functools.partial(self.conduct.watch, label, lambda: self._read(source, changed))
        return run_bounded(watched, self.seconds)

    def good(self, source: Any, label: str) -> Any:
        """Return what is read from a good source."""
        found = self.outcome(source, label)
        if found.error is not None:
            raise AssertionError(f"{label} must be read, but {named(found.error)}")
        expect(found.value is not None, f"{label}: read returned None")
        return found.value

    def complaint(self, found: Outcome[Any], *, must_refuse: bool = False) -> str | None:
        """Return what is wrong with the outcome of a bad source, or ``None``."""
        if found.error is None and must_refuse:
            return f"was taken for an input, and read as {type(found.value).__name__}"
        if found.error is not None and not isinstance(found.error, InputError):
            return f"raised {named(found.error)}, expected InputError"
        if found.error is not None and not str(found.error).strip():
            return f"raised {type(found.error).__name__} without a message"
        if found.seconds > self.seconds:
            return f"took {found.seconds:.1f} s, at most {self.seconds:g} s are allowed"
        if found.memory > self.memory:
            return (
                f"took {found.memory >> 20} MiB of memory, at most {self.memory >> 20} MiB are "
                "allowed"
            )
        return None

    def refuses_no_inputs(self) -> str:
        """Check what is no input of any modality, and emptiness."""
        bad = {
            "None": None,
            "an object": object(),
            "a URL": _URL,
            "a file that is not there": self.folder / "nothing-here",
            "a name with a null byte": self.folder / "null\0byte",
            "a name that is too long": self.folder / ("x" * 300),
            "a directory": self.folder,
            "no bytes": b"",
            "an empty file": self.file(b"", ""),
        }
        if hasattr(os, "mkfifo"):
            bad["a pipe that nobody writes to"] = self.folder / "pipe"
            os.mkfifo(self.folder / "pipe")
        wrong = []
        for what, source in bad.items():
            complaint = self.complaint(self.outcome(source, f"reading {what}"), must_refuse=True)
            wrong += [f"{what} {complaint}"] if complaint else []
        expect(not wrong, "; ".join(wrong))
        return f"{', '.join(bad)} are refused"


def enforces(reader: Reader, good: Sequence[Sample], limit: str) -> Callable[[], str]:
    """Return the check of one limit: lowered to less than a sample has, it must refuse it."""

    def check() -> str:
        refused = 0
        for one in good:
            size = len(one.data) if limit == "bytes" and one.data is not None else None
            if limit == "bytes" and size is None:
                continue
            most = max(1, size - 1) if size is not None else 1
            for label, source in one.sources():
                found = reader.outcome(source, label, **{limit: most})
                refused += _refused(found, limit, most, label, size)
                if size is not None:
                    found = reader.outcome(source, label, **{limit: size})
                    expect(
                        found.error is None,
                        f"{label} has {size} bytes, and must be read where as many are allowed, "
                        f"but {named(found.error) if found.error else ''}",
                    )
        expect(
            refused > 0,
            f"lowered to 1 it refuses none of the samples: nothing enforces it, or no sample is "
            f"larger than 1 in {limit!r}; give one that is, or drop the limit",
        )
        return f"refuses {refused} of the samples when lowered"

    return check


def _refused(found: Outcome[Any], limit: str, most: int, label: str, size: int | None) -> bool:
    """Return whether a sample that is larger than a limit was refused, and check in which words."""
    error = found.error
    if error is None:
        expect(size is None, f"{label} has {size} bytes and was read where {most} are allowed")
        return False
    expect(
        isinstance(error, LimitError) and error.limit == limit,
        f"{label} with limits[{limit!r}] of {most} must raise a LimitError of {limit!r}, but "
        f"{named(error)}",
    )
    if isinstance(error, LimitError):
        expect(
            error.allowed == most < error.found,
            f"{label} with limits[{limit!r}] of {most}: the LimitError says that {error.allowed} "
            f"are allowed and {error.found} were found",
        )
    return True


def survives(reader: Reader, one: Sample, used: Sequence[Used]) -> Callable[[], str]:
    """Return the check of everything derived from one file."""

    def check() -> str:
        taken, refused = 0, 0
        wrong: dict[str, list[str]] = {}  # what was damaged, by what came of it
        goals = [_preprocessed(reader, encoder, one.decoded) for encoder in used]
        for what, source in _damaged(reader, one):
            found = reader.outcome(source, f"reading {one.label}, damaged")
            complaint = reader.complaint(found)
            if complaint is None and found.error is None:
                complaint = _unusable(reader, found.value, used, goals)
            if complaint:
                wrong.setdefault(complaint, []).append(what)
            taken, refused = taken + (found.error is None), refused + (found.error is not None)
        told = [
            f"{whats[0]}{f' and {len(whats) - 1} more' if len(whats) > 1 else ''}: {complaint}"
            for complaint, whats in wrong.items()
        ]
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        expect(not told, "; ".join(told[:_SHOWN]) + more)
        return f"{refused} refused, {taken} read all the same"

    return check


def _damaged(reader: Reader, one: Sample) -> Iterator[tuple[str, Any]]:
    """Yield damaged versions, as bytes or, of a path, as files with its ending."""
    for what, data in corrupt(one.data or b""):
        yield what, data if not one.suffix else reader.file(data, one.suffix)


def _preprocessed(reader: Reader, encoder: Used, decoded: Any) -> Outcome[dict[str, Any]]:
    """Return the shapes of an encoder's tensors by name, or what came of making them."""
    return run_bounded(
        lambda: {name: tuple(one.shape) for name, one in encoder.preprocess(decoded).items()},
        reader.seconds,
    )


def _unusable(
    reader: Reader, decoded: Any, used: Sequence[Used], goals: Sequence[Outcome[dict[str, Any]]]
) -> str | None:
    """Return why what was read is of no use to an encoder, or ``None``."""
    for encoder, goal in zip(used, goals, strict=True):
        found = _preprocessed(reader, encoder, decoded)
        complaint = reader.complaint(found)
        if complaint is None and None is found.error is goal.error and found.value != goal.value:
            complaint = f"gives tensors {found.value}, of a good input {goal.value}"
        if complaint is not None:
            return f"it was read, and preprocess of {encoder.subject} {complaint}"
    return None
