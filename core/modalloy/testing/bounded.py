"""Running a stranger's code within bounds of time and memory, and telling what it took."""

import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import attrs

T = TypeVar("T")
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@attrs.frozen
class Outcome(Generic[T]):
    """What became of a call.

    Attributes:
        value: What it returned; ``None`` where it raised.
        error: What it raised.
        seconds: Time that it took.
        memory: Bytes that the process grew by meanwhile, at most; 0 where that cannot be told.
    """

    value: T | None
    error: BaseException | None
    seconds: float
    memory: int


class _TooSlow(BaseException):
    """Ends a call that takes too long; no Exception, so that no handler keeps it."""


def run_bounded(function: Callable[[], T], seconds: float) -> Outcome[T]:
    """Call a function, and end it where it runs on.

    A call that is in Python is ended at ``seconds`` where this is the main thread of a POSIX
    system; one that is in a library's own code is only measured.

    Args:
        function: What to call; warnings that it issues are not shown.
        seconds: The most that it may take.

    Returns:
        What became of it; an error of any kind is an outcome like another.
    """
    before = _peak(reset=True)
    start = time.perf_counter()
    value: Any = None
    error: BaseException | None = None
    try:
        with warnings.catch_warnings(), _alarm(seconds):
            warnings.simplefilter("ignore")
            value = function()
    except KeyboardInterrupt:
        raise
    except BaseException as caught:  # noqa: BLE001 - whatever it is, it is told
        error = caught.with_traceback(None)
    return Outcome(value, error, time.perf_counter() - start, max(0, _peak() - before))


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise _TooSlow(f"it was stopped after {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def _peak(*, reset: bool = False) -> int:
    """Return the most memory that this process held since the last reset, in bytes."""
    if sys.platform != "linux":
        return 0
    try:
        if reset:
            _RESET.write_text("5", encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text(encoding="ascii"))
    except OSError:  # a sandbox without these files
        return 0
    return int(found[1]) * 1024 if found else 0
