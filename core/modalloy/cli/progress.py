"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_LINE_EVERY = 10.0
"""Seconds between lines where standard error is no terminal."""


@contextlib.contextmanager
def progress_bar(*, silent: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback ``(what, done, total)``; a silent one shows nothing.

    ``what`` may change as it goes, as in ``"tuning (loss 0.31)"``; the words before ``(`` tell
    one task from the next.
    """
    if silent:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as bar:

        def update(what: str, done: int, total: int) -> None:
            key = what.partition("(")[0]
            if key not in tasks:
                tasks[key] = bar.add_task(what, total=total)
            bar.update(tasks[key], description=what, completed=done)

        yield update


def _lines() -> Callable[[str, int, int], None]:
    last: dict[str, float] = {}

    def update(what: str, done: int, total: int) -> None:
        key = what.partition("(")[0]
        now = time.monotonic()
        if done >= total or now - last.get(key, -_LINE_EVERY) >= _LINE_EVERY:
            last[key] = now
            sys.stderr.write(f"{what}: {done}/{total}\n")
            sys.stderr.flush()

    return update
