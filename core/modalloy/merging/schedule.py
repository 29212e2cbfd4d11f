"""Jobs of several steps, run on threads."""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

Step = Sequence[Callable[[], Any]]
"""Calls that may run side by side."""
Job = Generator[Step, list[Any], None]
"""Yields one step after the other, and is sent the results of each, in the order of its calls."""

_AHEAD = 4
"""Calls to have waiting for each worker before another job is begun."""


def run_jobs(jobs: Iterable[Job], workers: int) -> None:
    """Run jobs to their ends, beginning them in order.

    A job's next step is worked out, in the calling thread, when its last one is done; there is
    always work from later jobs meanwhile.

    Args:
        jobs: The jobs; a next one is taken when its time has come.
        workers: Threads.

    Raises:
        BaseException: What a call or a job raised first; nothing that was not begun is begun then.
    """
    waiting: dict[Future[Any], tuple[_Running, int]] = {}
    source = iter(jobs)
    exhausted = False
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or not exhausted:
                while not exhausted and len(waiting) < _AHEAD * workers:
                    job = next(source, None)
                    if job is None:
                        exhausted = True
                    else:
                        _Running(job).go_on(None, pool, waiting)
                if not waiting:
                    continue
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    running, place = waiting.pop(future)
                    running.results[place] = future.result()
                    running.left -= 1
                    if not running.left:
                        running.go_on(running.results, pool, waiting)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Running:
    """A job that was begun."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.results: list[Any] = []
        self.left = 0

    def go_on(
        self,
        results: list[Any] | None,
        pool: ThreadPoolExecutor,
        waiting: "dict[Future[Any], tuple[_Running, int]]",
    ) -> None:
        """Submit the job's next step that has calls, if there is one."""
        while True:
            try:
                # A generator that was not begun takes nothing but None.
                step = next(self.job) if results is None else self.job.send(results)
            except StopIteration:
                return
            if step:
                break
            results = []
        self.results, self.left = [None] * len(step), len(step)
        for place, call in enumerate(step):
            waiting[pool.submit(call)] = (self, place)
