"""Apply a function to many items, in this process or in several, with a progress bar."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LARGEST_CHUNK = 64
_CHUNKS_PER_JOB = 8


class WorkerError(RuntimeError):
    """A process was killed, or could not start; the message says what to do."""


def parallel_map(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    jobs: int = 1,
    description: str = "",
    unit: str = "image",
    progress: bool = False,
) -> Iterator[_Result]:
    """Apply a function to every item; the results do not depend on ``jobs``.

    Args:
        function: picklable, e.g. a function of a module, or a partial of one.
        items: picklable; each is sent to one process once.
        jobs: number of processes; 1 = this one.
        description: what is done, for the progress bar.
        unit: what an item is, for the progress bar.
        progress: show the bar on stderr.

    Yields:
        The results, in the order of the items.

    Raises:
        ValueError: ``jobs`` is below 1.
        WorkerError: a process was killed.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    jobs = max(1, min(jobs, len(items)))
    # A log file gets a line now and then, a terminal a moving bar.
    pause = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=len(items), desc=description, unit=unit, disable=not progress, mininterval=pause
    ) as bar:
        for result in _in_processes(function, items, jobs) if jobs > 1 else map(function, items):
            yield result
            bar.update()


def _in_processes(
    function: Callable[[_Item], _Result], items: Sequence[_Item], jobs: int
) -> Iterator[_Result]:
    """Results in order, computed in chunks: one by one, sending would cost more than work."""
    step = max(1, min(_LARGEST_CHUNK, len(items) // (jobs * _CHUNKS_PER_JOB)))
    # Spawned processes are the same on every system, and safe where threads are running.
    pool = concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    try:
        futures = [
            pool.submit(_apply, function, items[start : start + step])
            for start in range(0, len(items), step)
        ]
        # Popped, so that results that were handed on are not kept.
        futures.reverse()
        while futures:
            yield from futures.pop().result()
    except BrokenProcessPool as error:
        raise WorkerError(
            f"one of {jobs} processes was killed or could not start (out of memory? give fewer "
            "--jobs; from Python, call this under `if __name__ == '__main__'`)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _apply(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    return [function(item) for item in items]
