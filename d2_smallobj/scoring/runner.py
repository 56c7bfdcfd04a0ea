"""Scoring the images of a plan, in this process or in several; the result is the same."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d2_smallobj.annotations.truth import GroundTruth
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring.plan import Task
from d2_smallobj.scoring.predictions import read_prediction
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.problems import Problems

_LARGEST_CHUNK = 16
_CHUNKS_PER_JOB = 8


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Reads and matches images; picklable, so that every process has one.

    Attributes:
        truth: the ground truth.
        num_classes: number of classes.
        ignore_label: semantic label that is left out.
        mode: ``"exact"`` or ``"official"``.
        stuff: ids of the classes without instances.
        void_instance: instance id that is left out; ``None``: there is none.
        label_ids: whether predictions hold Cityscapes' label ids.
    """

    truth: GroundTruth
    num_classes: int
    ignore_label: int
    mode: str
    stuff: tuple[int, ...] = (0,)
    void_instance: int | None = 255
    label_ids: bool = False

    def new_accumulator(self) -> Accumulator:
        """An empty accumulator with these settings."""
        return Accumulator(
            self.num_classes,
            stuff=self.stuff,
            ignore_label=self.ignore_label,
            void_instance=self.void_instance,
            mode=self.mode,
        )

    def score(self, tasks: Sequence[Task]) -> tuple[Accumulator, Problems]:
        """Score some images; one that cannot be scored is noted and left out."""
        accumulator, problems = self.new_accumulator(), Problems()
        for task in tasks:
            try:
                semantic, instances = self.truth.read(task.truth)
            except (OSError, ValueError) as error:
                problems.add("unusable ground-truth map(s)", str(error))
                continue
            try:
                labels = read_prediction(
                    task.prediction, task.size, task.where, label_ids=self.label_ids
                )
            except (OSError, ValueError) as error:
                problems.add("unusable prediction(s)", str(error))
                continue
            try:
                accumulator.update(task.truth.image_id, labels, semantic, instances)
            except (TypeError, ValueError) as error:
                # The message says which of the maps it is about.
                with_truth = f" (ground truth {task.truth.both})"
                kind = (
                    f"image(s) whose labels do not fit the {self.num_classes} classes (--classes)"
                    f", the ignore label {self.ignore_label} or each other"
                )
                problems.add(kind, f"{task.where}{with_truth}: {error}")
        return accumulator, problems


def score_tasks(
    scorer: Scorer,
    tasks: Sequence[Task],
    *,
    known: Problems | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> Accumulator:
    """Score all images.

    Args:
        scorer: the settings.
        tasks: the images.
        known: what is wrong with other images; the tasks are then only looked through, so that
            one error names all.
        jobs: number of processes; 1 = this one. The result does not depend on it.
        progress: show a progress bar on stderr.

    Raises:
        InputError: images could not be scored; lists all of them, by what is wrong.
        ValueError: ``jobs`` is below 1.
        RuntimeError: a process was killed.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    jobs = max(1, min(jobs, len(tasks)))
    step = max(1, min(_LARGEST_CHUNK, len(tasks) // (jobs * _CHUNKS_PER_JOB)))
    chunks = [tasks[start : start + step] for start in range(0, len(tasks), step)]
    total, problems = scorer.new_accumulator(), Problems()
    problems.extend(known.pairs() if known is not None else ())
    # A log file gets a line now and then, a terminal a moving bar.
    pause = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=len(tasks),
        desc="looking for more problems" if problems else "scoring",
        unit="image",
        disable=not progress,
        mininterval=pause,
    ) as bar:
        for number, state, found in _results(scorer, chunks, jobs):
            problems.extend(found)
            # Once something is wrong, only the other faults are of interest.
            if not problems:
                total.merge(state)
            bar.update(number)
    problems.raise_if_any()
    return total


_Result = tuple[int, Accumulator, list[tuple[str, str]]]


def _results(scorer: Scorer, chunks: Sequence[Sequence[Task]], jobs: int) -> Iterator[_Result]:
    """Number of images, accumulator and problems of every chunk, in any order."""
    if jobs == 1:
        yield from (_score(scorer, chunk) for chunk in chunks)
        return
    with tempfile.TemporaryDirectory(prefix="d2_smallobj_") as folder:
        # Through a pipe, each process would have to be up before the next one could start.
        settings = Path(folder, "scorer")
        settings.write_bytes(pickle.dumps(scorer))
        # Spawned processes are the same on every system, and safe where threads are running.
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _start_worker, (settings,))
        try:
            futures = [pool.submit(_score_in_worker, chunk) for chunk in chunks]
            for future in concurrent.futures.as_completed(futures):
                number, state, problems = future.result()
                yield number, Accumulator.from_state(state), problems
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {jobs} scoring processes was killed or could not start (out of memory?"
                " give fewer --jobs; from Python, call this under `if __name__ == '__main__'`)"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _score(scorer: Scorer, chunk: Sequence[Task]) -> _Result:
    accumulator, problems = scorer.score(chunk)
    return len(chunk), accumulator, problems.pairs()


_worker: dict[str, Callable[[Sequence[Task]], Any]] = {}


def _start_worker(settings: Path) -> None:
    """Keep the settings: annotations are sent to a process once, not with every chunk."""
    # As many processes as wanted run already; threads of OpenCV would only compete.
    cv2.setNumThreads(1)
    # Written by the process that started this one, in a folder that only its user can enter.
    scorer = pickle.loads(settings.read_bytes())
    _worker["score"] = lambda chunk: _score(scorer, chunk)


def _score_in_worker(chunk: Sequence[Task]) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
    number, accumulator, problems = _worker["score"](chunk)
    # A few long arrays are sent in a fraction of the time of hundreds of short ones.
    return number, accumulator.state(), problems
