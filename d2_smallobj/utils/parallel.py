"""Apply a function to many items, in this process or in several, with a progress bar."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LARGEST_BATCH = 64
_BATCHES_PER_JOB = 8


class WorkerError(RuntimeError):
    """A process was killed, or could not start; the message says what to do."""


def parallel_map(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    jobs: int = 1,
    description: str = "",
    progress: bool = False,
) -> Iterator[_Result]:
    """Apply a function to every item; the results do not depend on ``jobs``.

    Args:
        function: picklable; each process gets it once.
        items: picklable; each is sent to one process once.
        jobs: number of processes; 1 = this one.
        description: what is done, for the progress bar.
        progress: show the bar on stderr.

    Yields:
        The results, in the order of the items.

    Raises:
        ValueError: ``jobs`` is below 1.
        WorkerError: a process was killed.
    """
    # In this process, every result is handed on at once.
    largest = 1 if min(jobs, len(items)) <= 1 else _LARGEST_BATCH
    for results in parallel_batches(
        functools.partial(_apply, function),
        items,
        jobs=jobs,
        largest=largest,
        description=description,
        progress=progress,
    ):
        yield from results


def parallel_batches(
    function: Callable[[Sequence[_Item]], _Result],
    items: Sequence[_Item],
    *,
    jobs: int = 1,
    largest: int = _LARGEST_BATCH,
    description: str = "",
    progress: bool = False,
) -> Iterator[_Result]:
    """Apply a function to batches of at most ``largest`` consecutive items.

    The arguments are otherwise those of :func:`parallel_map`; yields the result of every batch.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    jobs = max(1, min(jobs, len(items)))
    step = max(1, min(largest, len(items) // (jobs * _BATCHES_PER_JOB)))
    batches = [items[start : start + step] for start in range(0, len(items), step)]
    results = _in_processes(function, batches, jobs) if jobs > 1 else map(function, batches)
    options = {"desc": description, "unit": "image", "disable": not progress}
    with progress_bar(total=len(items), **options) as bar:
        for batch, result in zip(batches, results):
            yield result
            bar.update(len(batch))


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """Make a bar on stderr; a terminal gets a moving one, a log file a line now and then."""
    return tqdm(*args, mininterval=0.1 if sys.stderr.isatty() else 10.0, **options)


def _in_processes(
    function: Callable[[Sequence[_Item]], _Result], batches: Sequence[Sequence[_Item]], jobs: int
) -> Iterator[_Result]:
    """Yield the results of all batches in order, computed in several processes."""
    with tempfile.TemporaryDirectory(prefix="d2_smallobj_") as folder:
        # Through a pipe, each process would have to be up before the next one could start.
        path = Path(folder, "function")
        path.write_bytes(pickle.dumps(function))
        # Spawned processes are the same on every system, and safe where threads are running.
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _start_worker, (path,))
        try:
            futures = [pool.submit(_run_worker, batch) for batch in batches]
            # Popped, so that results that were handed on are not kept.
            futures.reverse()
            while futures:
                yield futures.pop().result()
        except BrokenProcessPool as error:
            raise WorkerError(
                f"one of {jobs} processes was killed or could not start (out of memory? give fewer "
                "--jobs; from Python, call this under `if __name__ == '__main__'`)"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(path: Path) -> None:
    """Note where the function is."""
    from d2_smallobj.utils.opencv import cv2

    # As many processes as wanted are running; threads of OpenCV would compete with them.
    cv2.setNumThreads(1)
    _worker["path"] = path


def _run_worker(batch: Sequence[Any]) -> Any:
    """Apply the function, which is loaded once: it may hold all annotations of a data set."""
    if "function" not in _worker:
        # Written by the process that started this one, in a folder that only its user can enter.
        _worker["function"] = pickle.loads(_worker["path"].read_bytes())
    return _worker["function"](batch)


def _apply(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    return [function(item) for item in items]
