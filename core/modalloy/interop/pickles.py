"""Pickles (``.bin``), read only where that was asked for, and never in this process.

A pickle is a program. It is opened by a process of its own, by torch's unpickler that knows
nothing but tensors, and what this process reads is the safetensors file that came of it.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from modalloy.checkpoints.reader import CheckpointReader
from modalloy.checkpoints.safe_files import check_file
from modalloy.checkpoints.safe_index import SUFFIX, check_inside, read_header, read_weight_map
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
            pickled = reader.directory != source
            self.files += [f.name for f in _pickles(source, stem)] if pickled else sorted(held)
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
    ends = (SUFFIX, PICKLE_SUFFIX)
    endings = (*ends, *(f"{end}.index.json" for end in ends))
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
        directory: Where ``{stem}.safetensors`` is, or its index, or ``{stem}.bin``, or its index,
            in that order.
        stem: Such as ``"adapter_model"``.
        allow_pickle: Whether a pickle may be read.
        progress: Called with a line of text before something slow.

    Yields:
        ``directory``, or a temporary one with what the pickle held.

    Raises:
        FormatError: There is no such file, or it is a pickle that may not or cannot be read, or
            neither file nor directory.
        UnsafePathError: It is a link that leads elsewhere.
    """
    for name in (f"{stem}{SUFFIX}", f"{stem}{SUFFIX}.index.json"):
        check_file(directory, name)
        if (directory / name).is_file():
            yield directory
            return
    files = _pickles(directory, stem)
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modalloy-")))
        weight_map: dict[str, str] = {}
        for number, file in enumerate(files, 1):
            if progress is not None and allow_pickle:
                progress(f"reading {file.name} in a process of its own")
            name = f"{stem}-{number:05d}{SUFFIX}" if len(files) > 1 else f"{stem}{SUFFIX}"
            with open_pickle(file, allow_pickle=allow_pickle) as converted:
                converted.rename(temporary / name)
            held = read_header(temporary / name)
            twice = sorted(held.keys() & weight_map.keys())
            if twice:
                raise FormatError(
                    f"{file} holds {twice[0]!r}, which another of the pickles holds too; fetch "
                    "them again",
                    path=file,
                )
            weight_map |= dict.fromkeys(held, name)
        if len(files) > 1:
            index = temporary / f"{stem}{SUFFIX}.index.json"
            index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        yield temporary


def _pickles(directory: Path, stem: str) -> list[Path]:
    """Return the pickle under a stem, or those that its index names.

    Raises:
        FormatError: There is none, or one that the index names is missing.
        UnsafePathError: A name leads outside.
    """
    single, index = (directory / f"{stem}{PICKLE_SUFFIX}{end}" for end in ("", ".index.json"))
    for file in (single, index):
        check_file(directory, file.name)
    if single.is_file():
        return [single]
    if not index.is_file():
        raise FormatError(
            f"{directory} holds neither {stem}{SUFFIX} nor {single.name}; fetch it again",
            path=directory,
        )
    names = sorted(set(read_weight_map(index).values()))
    files = [check_inside(directory, name, index, suffix=PICKLE_SUFFIX) for name in names]
    for name in names:
        check_file(directory, name)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FormatError(
            f"{index}: {len(missing)} of {len(names)} files are missing, such as {missing[0]!r}; "
            "fetch the model again",
            path=index,
        )
    return files


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
