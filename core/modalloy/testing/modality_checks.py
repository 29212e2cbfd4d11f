"""Checking a modality: what it declares, what it reads, what it refuses, and its encoders."""

import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from modalloy.errors import InputError, LimitError
from modalloy.modality import Modality, resolve
from modalloy.registry import Registry
from modalloy.testing.bounded import Outcome, run_bounded
from modalloy.testing.corrupting import corrupt
from modalloy.testing.encoder_checks import Used, check_encoders, used_encoders
from modalloy.testing.report import Check, Checks, expect
from modalloy.testing.sameness import same

MEMORY = 1 << 30
"""Bytes that reading a small damaged file may take, unless told otherwise."""

_SHOWN = 5


def check_modality(
    spec: str | Modality,
    *,
    registry: Registry | None = None,
    samples: Iterable[object] = (),
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    seconds: float = 10.0,
    memory: int = MEMORY,
) -> tuple[Check, ...]:
    """Check that a modality keeps the contract, with the encoders that take its inputs.

    Looked at is

    - what it declares, and whether its reader can be imported and called;
    - its limits: each is to be enforced, which takes a sample that is larger than 1 in it;
    - reading: a file as bytes and by its path gives the same, twice the same, and changes nothing;
    - refusing: what is no input, is empty, damaged, cut off or claims to be huge raises
      :class:`~modalloy.errors.InputError` with a message, and nothing else, within bounds of time
      and memory; damaged files are derived from the samples, the same ones every time;
    - each encoder whose configuration is known: shapes follow from the configuration alone and
      without torch, features are finite and float32, a batch gives what each input gives alone,
      the encoder is frozen and repeats itself.

    Args:
        spec: Name of a registered modality, or a modality.
        registry: Supplies it and its encoders; what is installed if left out.
        samples: Good inputs: the bytes of files, their paths (``pathlib.Path``), or objects that
            the reader takes. Without any, little can be said.
        configs: Configuration by encoder name. Those of the modality's packaged parents are known.
        seconds: The most that reading one of these inputs may take.
        memory: The most bytes that reading a damaged one may take.

    Returns:
        All that was looked at; ``ok`` is ``None`` where something could not be.

    Raises:
        CheckFailed: A check failed; the message lists all that did.
        UnknownNameError: No such modality is registered.
    """
    registry = registry or Registry.discover()
    modality = registry.modality(spec) if isinstance(spec, str) else spec
    subject = f"modality {modality.name!r}"
    checks = Checks(subject)
    if not checks.run(subject, "reader", lambda: _callable_reader(modality)):
        return checks.finish()
    with tempfile.TemporaryDirectory(prefix="modalloy-") as folder:
        reader = _Reader(modality, Path(folder), seconds, memory)
        given = [reader.sample(index, source) for index, source in enumerate(samples)]
        good = [one for one in given if checks.run(subject, one.label, one.check_read)]
        used = used_encoders(registry, modality.name, configs or {})
        if good:
            checks.run(subject, "type of what is read", lambda: _one_type(good))
            for limit in modality.limits:
                checks.run(subject, f"limit {limit!r}", _enforces(reader, good, limit))
        else:
            checks.skip(subject, "reading and limits", "no sample was given, or none could be read")
        checks.run(subject, "what is no input", reader.refuses_no_inputs)
        files = [one for one in good if one.data is not None]
        for one in files:
            checks.run(subject, f"{one.label}, damaged", _survives(reader, one, used))
        if not files:
            checks.skip(subject, "damaged files", "no sample is a file: bytes or a pathlib.Path")
        decoded = [one.decoded for one in good]
        check_encoders(checks, registry, modality, used, decoded)
    return checks.finish()


def _callable_reader(modality: Modality) -> str:
    read = resolve(modality.read)
    expect(callable(read), f"read must be callable, found {type(read).__name__}")
    try:
        inspect.signature(read).bind(b"", modality.limits)
    except TypeError as error:
        raise AssertionError(f"read must take (source, limits): {error}") from error
    return f"{modality.read} takes (source, limits)"


@attrs.define(eq=False)
class _Sample:
    """One good input.

    Attributes:
        reader: Reads it.
        label: Its name in messages.
        source: As it was given, or a copy of the file.
        data: Content of the file; ``None`` of an object.
        suffix: Ending of the file's name.
        decoded: What was read.
    """

    reader: "_Reader"
    label: str
    source: Any
    data: bytes | None
    suffix: str
    decoded: Any = None

    def check_read(self) -> str:
        """Read it, every way that it can be given, and twice."""
        first = self.reader.good(self.source, self.label)
        again = self.reader.good(self.source, self.label)
        expect(same(first, again), "read twice, it gives two different results")
        self.decoded = first
        if self.data is None:
            return f"read as {type(first).__name__}, twice the same"
        path = self.reader.file(self.data, self.suffix)
        for what, source in (("its path", path), ("its bytes", self.data)):
            found = self.reader.good(source, f"{self.label} by {what}")
            expect(same(first, found), f"by {what} it gives something else than as it was given")
        expect(path.read_bytes() == self.data, "reading changed the file")
        return f"read as {type(first).__name__}, by path and bytes, twice the same"


class _Reader:
    """Reads sources of one modality within bounds."""

    def __init__(self, modality: Modality, folder: Path, seconds: float, memory: int) -> None:
        self.modality = modality
        self.folder = folder
        self.seconds = seconds
        self.memory = memory
        self._read = resolve(modality.read)
        self._files = 0

    def sample(self, index: int, source: object) -> _Sample:
        """Return a sample; a path is read, and left alone from then on."""
        if isinstance(source, Path):
            data: bytes | None = source.read_bytes()
            return _Sample(self, f"sample {index} ({source.name})", source, data, source.suffix)
        data = bytes(source) if isinstance(source, bytes | bytearray) else None
        kind = type(source).__name__
        return _Sample(self, f"sample {index} ({kind})", source, data, "")

    def file(self, data: bytes, suffix: str) -> Path:
        """Return a file of a name of its own."""
        self._files += 1
        path = self.folder / f"input-{self._files}{suffix}"
        path.write_bytes(data)
        return path

    def outcome(self, source: Any, **limits: int) -> Outcome[Any]:
        """Read a source, some limits lowered."""
        lowered = {**self.modality.limits, **limits}
        return run_bounded(lambda: self._read(source, lowered), self.seconds)

    def good(self, source: Any, label: str) -> Any:
        """Return what is read from a good source."""
        found = self.outcome(source)
        if found.error is not None:
            raise AssertionError(f"{label} must be read, but {_named(found.error)}")
        expect(found.value is not None, f"{label}: read returned None")
        return found.value

    def complaint(self, found: Outcome[Any], *, must_refuse: bool = False) -> str | None:
        """Return what is wrong with the outcome of a bad source, or ``None``."""
        if found.error is None and must_refuse:
            return f"was taken for an input, and read as {type(found.value).__name__}"
        if found.error is not None and not isinstance(found.error, InputError):
            return f"raised {_named(found.error)}, expected InputError"
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
            "a file that is not there": self.folder / "nothing-here",
            "a directory": self.folder,
            "no bytes": b"",
            "an empty file": self.file(b"", ""),
        }
        wrong = []
        for what, source in bad.items():
            complaint = self.complaint(self.outcome(source), must_refuse=True)
            wrong += [f"{what} {complaint}"] if complaint else []
        expect(not wrong, "; ".join(wrong))
        return f"{', '.join(bad)} are refused"


def _one_type(good: list[_Sample]) -> str:
    kinds = sorted({type(one.decoded).__name__ for one in good})
    expect(
        len(kinds) == 1, f"samples are read as {', '.join(kinds)}; an encoder expects one of these"
    )
    return kinds[0]


def _enforces(reader: _Reader, good: list[_Sample], limit: str) -> Callable[[], str]:
    """Return the check of one limit: lowered to less than a sample has, it must refuse it."""

    def check() -> str:
        refused = 0
        for one in good:
            if limit == "bytes" and one.data is None:
                continue
            lowered = len(one.data) - 1 if limit == "bytes" and one.data else 1
            found = reader.outcome(one.source, **{limit: max(1, lowered)})
            if found.error is None:
                expect(limit != "bytes", f"{one.label} has {lowered + 1} bytes and was read")
                continue
            error = found.error
            expect(
                isinstance(error, LimitError) and error.limit == limit,
                f"{one.label} with limits[{limit!r}] of {max(1, lowered)} must raise a LimitError "
                f"of {limit!r}, but {_named(error)}",
            )
            refused += 1
        expect(
            refused > 0,
            f"lowered to 1 it refuses none of the samples: nothing enforces it, or no sample is "
            f"larger than 1 in {limit!r}; give one that is, or drop the limit",
        )
        return f"refuses {refused} of the samples when lowered"

    return check


def _survives(reader: _Reader, one: _Sample, used: list[Used]) -> Callable[[], str]:
    """Return the check of everything derived from one file."""

    def check() -> str:
        taken, refused, wrong = 0, 0, []
        for what, source in _damaged(reader, one):
            found = reader.outcome(source)
            complaint = reader.complaint(found)
            if complaint is None and found.error is None:
                complaint = _unusable(found.value, used)
            wrong += [f"{what}: {complaint}"] if complaint else []
            taken, refused = taken + (found.error is None), refused + (found.error is not None)
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        expect(not wrong, "; ".join(wrong[:_SHOWN]) + more)
        return f"{refused} refused, {taken} read all the same"

    return check


def _damaged(reader: _Reader, one: _Sample) -> Iterator[tuple[str, Any]]:
    """Yield damaged versions, as bytes or, of a path, as files with its ending."""
    for what, data in corrupt(one.data or b""):
        yield what, data if not one.suffix else reader.file(data, one.suffix)


def _unusable(decoded: Any, used: list[Used]) -> str | None:
    """Return why what was read is of no use to an encoder, or ``None``."""
    for encoder in used:
        try:
            encoder.preprocess(decoded)
        except InputError:
            continue  # refused a step later
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            return f"it was read, and preprocess of {encoder.subject} raised {_named(error)}"
    return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
