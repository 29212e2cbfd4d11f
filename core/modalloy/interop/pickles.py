"""Pickles (``.bin``), read only where that was asked for, and never in this process.

A pickle is a program. It is opened by a process of its own, by torch's unpickler that knows
nothing but tensors, and what this process reads is the safetensors file that came of it.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from modalloy.checkpoints.reader import CheckpointReader
from modalloy.checkpoints.safe_index import SUFFIX, check_inside
from modalloy.errors import FormatError, MissingComponentError
from modalloy.interop.unpickling import REFUSED

PICKLE_SUFFIX = ".bin"
_SCRIPT = Path(__file__).with_name("unpickling.py")
_TORCH = (2, 10)
"""Before it, the unpickler that knows nothing but tensors could be made to run code."""
_SHOWN = 500


class Weights:
    """Tensors of one or several files, by name, memory-mapped.

    Attributes:
        source: The directory that they are of.
        files: Names, in it, of the files that they were read from.
    """

    def __init__(self, source: Path, readers: Mapping[str, CheckpointReader]) -> None:
        self.source = source
        self.files: list[str] = []
        self._owners: dict[str, CheckpointReader] = {}
        for stem, reader in readers.items():
            held = {reader.file(name).name for name in reader.names()}
            self.files += [f"{stem}{PICKLE_SUFFIX}"] if reader.directory != source else sorted(held)
            for name in reader.names():
                if name in self._owners:
                    raise FormatError(
                        f"{source}: tensor {name!r} is in {stem} and in another file beside it; "
                        "only one of them can be meant, remove the other",
                        path=source,
                    )
                self._owners[name] = reader

    def __contains__(self, name: object) -> bool:
        return name in self._owners

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(sorted(self._owners))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._owners[name].shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, memory-mapped."""
        return self._owners[name].tensor(name)


@contextlib.contextmanager
def open_all(
    directory: Path,
    stems: Iterable[str],
    *,
    allow_pickle: bool,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Weights]:
    """Yield the tensors of several files of a directory; see :func:`open_weights`.

    Raises:
        FormatError: A file is missing, may not be read or cannot be, or two hold one name.
    """
    with contextlib.ExitStack() as stack:
        readers = {}
        for stem in stems:
            opened = open_weights(directory, stem, allow_pickle=allow_pickle, progress=progress)
            reader = CheckpointReader(stack.enter_context(opened), stem)
            readers[stem] = stack.enter_context(reader)
        yield Weights(directory, readers)


def find_stem(directory: Path, *stems: str) -> str | None:
    """Return the first of several stems that a directory has weights under."""
    endings = (SUFFIX, f"{SUFFIX}.index.json", PICKLE_SUFFIX)
    return next((s for s in stems for end in endings if (directory / f"{s}{end}").exists()), None)


@contextlib.contextmanager
def open_weights(
    directory: Path,
    stem: str,
    *,
    allow_pickle: bool,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Path]:
    """Yield a directory that holds ``{stem}.safetensors``, or its index and shards.

    Args:
        directory: Where ``{stem}.safetensors``, its index, or ``{stem}.bin`` is, in that order.
        stem: Such as ``"adapter_model"``.
        allow_pickle: Whether a pickle may be read.
        progress: Called with a line of text before something slow.

    Yields:
        ``directory``, or a temporary one with what the pickle held.

    Raises:
        FormatError: There is no such file, or it is a pickle that may not or cannot be read.
        UnsafePathError: It is a link that leads elsewhere.
    """
    for name in (f"{stem}{SUFFIX}", f"{stem}{SUFFIX}.index.json"):
        if (directory / name).exists():
            yield directory
            return
    file = directory / f"{stem}{PICKLE_SUFFIX}"
    if not file.exists():
        raise FormatError(
            f"{directory} holds neither {stem}{SUFFIX} nor {file.name}; fetch it again",
            path=directory,
        )
    check_inside(directory, file.name, directory, suffix=PICKLE_SUFFIX)
    if progress is not None and allow_pickle:
        progress(f"reading {file.name} in a process of its own")
    with open_pickle(file, allow_pickle=allow_pickle) as converted:
        converted.rename(converted.with_name(f"{stem}{SUFFIX}"))
        yield converted.parent


@contextlib.contextmanager
def open_pickle(file: Path, *, allow_pickle: bool) -> Iterator[Path]:
    """Yield a temporary safetensors file with the tensors of a pickle.

    Args:
        file: What ``torch.save`` wrote: tensors by name.
        allow_pickle: Whether it may be read.

    Raises:
        FormatError: It may not, or it holds, or asks for, anything but tensors.
        MissingComponentError: torch is too old to read one safely.
    """
    if not allow_pickle:
        raise FormatError(
            f"{file} is a pickle, a program that can do anything when it is opened, so it is not "
            "read. If you trust where it comes from, --allow-pickle (allow_pickle=True) has it "
            "read in a process of its own that takes nothing but tensors (torch.load with "
            "weights_only)",
            path=file,
        )
    _check_torch()
    temporary = Path(tempfile.mkdtemp(prefix="modalloy-"))
    try:
        target = temporary / f"model{SUFFIX}"
        _run(file, target)
        yield target
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_torch() -> None:
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < _TORCH:
        needed = ".".join(map(str, _TORCH))
        raise MissingComponentError(
            f"pickles are read with torch {needed} or later, whose weights_only lets nothing but "
            f"tensors through; found torch {torch.__version__}. Upgrade torch, or take a copy of "
            "the weights in safetensors",
            component="torch",
        )


def _run(file: Path, target: Path) -> None:
    """Have the other process write ``target``."""
    # -I: neither the environment nor the current directory says what it imports.
    command = [sys.executable, "-I", str(_SCRIPT), str(file.resolve()), str(target)]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own script
    if done.returncode == 0 and target.is_file():
        return
    said = done.stderr.decode(errors="replace").strip().splitlines()
    why = said[-1][:_SHOWN] if said else f"the process that read it ended with {done.returncode}"
    raise FormatError(
        f"{file} {why if done.returncode == REFUSED else 'cannot be read: ' + why}. Nothing of it "
        "was used; take a copy of the weights in safetensors",
        path=file,
    )
