"""Watching what a stranger's code does beside its work: to this process, its files and its output.

A reader or an encoder runs inside somebody's program. What it leaves changed there, such as torch's
default dtype or the state of a random generator, changes what that program computes.
"""

import contextlib
import io
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch

T = TypeVar("T")


def torch_state() -> bytes:
    """Return the state of torch's random generator."""
    state: bytes = torch.random.get_rng_state().numpy().tobytes()
    return state


def _numpy_state() -> Any:
    kind, words, *rest = np.random.get_state()  # noqa: NPY002 - the global one is meant
    return kind, np.asarray(words).tobytes(), rest


_STATES: MappingProxyType[str, Callable[[], Any]] = MappingProxyType(
    {
        "torch's default dtype": torch.get_default_dtype,
        "torch's default device": torch.get_default_device,
        "torch's number of threads": torch.get_num_threads,
        "whether torch records gradients": torch.is_grad_enabled,
        "the state of torch's random generator": torch_state,
        "the state of numpy's random generator": _numpy_state,
        "the state of Python's random generator": random.getstate,
        "the environment": lambda: dict(os.environ),
        "the working directory": Path.cwd,
        "sys.path": lambda: list(sys.path),
    }
)


def _restore_torch(before: bytes) -> None:
    torch.random.set_rng_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))


def _restore_numpy(before: Any) -> None:
    kind, words, rest = before
    np.random.set_state((kind, np.frombuffer(words, np.uint32), *rest))  # noqa: NPY002 - as above


def _restore_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


_UNDO: MappingProxyType[str, Callable[[Any], object]] = MappingProxyType(
    {
        "torch's default dtype": torch.set_default_dtype,
        "torch's default device": torch.set_default_device,
        "torch's number of threads": torch.set_num_threads,
        "whether torch records gradients": torch.set_grad_enabled,
        "the environment": _restore_environment,
    }
)
# Left as they are after a call that is watched, so that what is random shows.
_UNDO_UNNOTED: MappingProxyType[str, Callable[[Any], object]] = MappingProxyType(
    {
        "the state of torch's random generator": _restore_torch,
        "the state of numpy's random generator": _restore_numpy,
        "the state of Python's random generator": random.setstate,
    }
)


class Conduct:
    """Calls functions and notes what they do that they should not.

    Attributes:
        faults: What was noted, each once, with what was called when it was seen first.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Watch.

        Args:
            folder: An existing directory; if given, functions are called in an empty directory
                within, files that they leave there or among temporary ones are noted, and they
                have no network.
        """
        self.faults: dict[str, str] = {}
        self._places: dict[str, Path] = {}
        if folder is not None:
            self._places = {"the working": folder / "cwd", "the temporary": folder / "tmp"}
            for place in self._places.values():
                place.mkdir()

    def warm(self, function: Callable[[], object]) -> None:
        """Call a function once unnoted, for the libraries that it imports when first called.

        What they do then, such as setting a variable, is undone where it can be; what the function
        itself does, it does again when it is watched. So it does with an error.
        """
        faults = dict(self.faults)
        before = {name: _STATES[name]() for name in _UNDO_UNNOTED}
        with contextlib.suppress(Exception):
            self.watch("", function)
        self.faults = faults
        for name, undo in _UNDO_UNNOTED.items():
            undo(before[name])

    def watch(self, label: str, function: Callable[[], T]) -> T:
        """Call a function, and return what it returns or let pass what it raises.

        Args:
            label: What it is, such as ``"reading sample 0"``.
            function: What to call.
        """
        printed = io.StringIO()
        with contextlib.ExitStack() as stack:
            if self._places:
                stack.enter_context(self._apart(label))
            before = {name: state() for name, state in _STATES.items()}
            stack.callback(self._compare, label, before)
            with contextlib.redirect_stdout(printed):
                try:
                    return function()
                finally:
                    if printed.getvalue():
                        shown = printed.getvalue()[:40]
                        self._note(f"it prints to standard output ({shown!r})", label)
        raise AssertionError  # not reached: nothing in the stack swallows an error

    @contextlib.contextmanager
    def _apart(self, label: str) -> Iterator[None]:
        def refuse(*arguments: Any, **_: Any) -> Any:
            asked = arguments[1:] if isinstance(arguments[0], socket.socket) else arguments[:2]
            self._note(f"it asks the network for {asked!r:.60}", label)
            raise OSError("there is no network here: a reader reads what it is given")

        with (
            contextlib.chdir(self._places["the working"]),
            mock.patch.object(tempfile, "tempdir", str(self._places["the temporary"])),
            mock.patch.object(socket.socket, "connect", refuse),
            mock.patch.object(socket, "getaddrinfo", refuse),
        ):
            try:
                yield
            finally:
                for which, place in self._places.items():
                    for path in sorted(place.iterdir()):
                        self._note(f"it leaves files in {which} directory", f"{label}, {path.name}")
                    shutil.rmtree(place)
                    place.mkdir()

    def _compare(self, label: str, before: dict[str, Any]) -> None:
        for name, state in _STATES.items():
            after = state()
            if after == before[name]:
                continue
            if name in _UNDO:  # what follows is looked at as if nothing had happened
                _UNDO[name](before[name])
            what = f"it changes {name}"
            if isinstance(after, dict):
                keys = sorted(
                    k for k in after | before[name] if after.get(k) != before[name].get(k)
                )
                what += f" ({', '.join(keys)})"
            elif not name.endswith(("generator", "sys.path")):
                what += f" to {after}"
            self._note(what, label)

    def _note(self, fault: str, label: str) -> None:
        self.faults.setdefault(fault, label)

    def verdict(self) -> str:
        """Return that all is well.

        Raises:
            AssertionError: Something was noted.
        """
        told = "; ".join(f"{fault}, in {label}" for fault, label in self.faults.items())
        if told:
            raise AssertionError(told)
        return "leaves the process, its files and its output as they were"
