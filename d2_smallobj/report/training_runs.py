"""What a training noted about itself: ``metrics.json`` and ``results.json`` of its folder.

detectron2 appends a line of JSON to ``metrics.json`` every 20 iterations. A killed run leaves its
last line torn, and a resumed one repeats iterations; both are undone here.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from d2_smallobj.utils.messages import itemized

FIGURES = ("mIoU", "IA-mIoU", "IA-mIoU_S")
"""The figures of evaluations that are read."""
_EVALUATED = re.compile(
    rf"(?:(?P<set>.+)/)?(?:sem_seg|small_objects)/(?P<figure>{'|'.join(FIGURES)})"
)
"""Older trainings wrote ``sem_seg``. Where another evaluator does so, ours comes after it in its
line, whose keys are sorted, and takes its place."""


@dataclasses.dataclass
class Series:
    """Values over iterations.

    Attributes:
        iterations: increasing.
        values: as many; NaN where the training noted it.
    """

    iterations: list[int] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)

    def put(self, iteration: int, value: float) -> None:
        """Add a value; what was noted for this and later iterations is dropped.

        A training goes forward, so an iteration that comes again belongs to a resumed run, which
        did everything from there on anew.
        """
        keep = bisect.bisect_left(self.iterations, iteration)
        self.iterations[keep:] = [iteration]
        self.values[keep:] = [value]

    def insert(self, iteration: int, value: float) -> None:
        """Add a value that another file tells, unless the iteration has one."""
        place = bisect.bisect_left(self.iterations, iteration)
        if self.iterations[place : place + 1] != [iteration]:
            self.iterations.insert(place, iteration)
            self.values.insert(place, value)


@dataclasses.dataclass
class TrainingRun:
    """One training.

    Attributes:
        name: what a legend calls it.
        scalars: everything in ``metrics.json`` that is no figure of :data:`FIGURES`, by name.
        evaluations: figures in percent by (data set, figure); the data set is "" where the run
            had one and does not tell its name.
        task_b: the first iteration of task B, as ``config.yaml`` says, else the first that is
            noted; None: the run has not come to one.
        broken_lines: lines of ``metrics.json`` that could not be read.
    """

    name: str
    scalars: dict[str, Series]
    evaluations: dict[tuple[str, str], Series]
    task_b: int | None
    broken_lines: int


def read_runs(arguments: Sequence[str]) -> list[TrainingRun]:
    """Read several trainings.

    Args:
        arguments: folders, or ``NAME=FOLDER``; without a name, the folder's.

    Raises:
        FileNotFoundError: names all folders that have no ``metrics.json``.
        ValueError: for a ``metrics.json`` without a line that can be read, a ``results.json``
            that is none, or two runs of one name.
    """
    named = [_named(argument) for argument in arguments]
    missing = [str(f) for _, f in named if not (f / "metrics.json").is_file()]
    if missing:
        raise FileNotFoundError(itemized("folder(s) without a metrics.json", missing))
    names = [name for name, _ in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"runs must have different names, got {twice} more than once; write NAME=FOLDER"
        )
    return [read_run(folder, name) for name, folder in named]


def _named(argument: str) -> tuple[str, Path]:
    name, separator, folder = argument.partition("=")
    # A folder may have "=" in its name.
    if not separator or os.path.isdir(argument):
        name, folder = "", argument
    return name or Path(folder).resolve().name, Path(folder)


def read_run(folder: str | os.PathLike[str], name: str) -> TrainingRun:
    """Read one training; see :func:`read_runs` for errors.

    Args:
        folder: its ``OUTPUT_DIR``.
        name: what a legend calls it.
    """
    path = Path(folder) / "metrics.json"
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = list(_parsed(file))
    rows = [row for row in lines if row is not None]
    if not rows:
        raise ValueError(f"{path}: no line of training metrics in it ({len(lines)} broken)")
    scalars: dict[str, Series] = {}
    evaluations: dict[tuple[str, str], Series] = {}
    for row in rows:
        for key, value in row.items():
            if key == "iteration" or not isinstance(value, (int, float)):
                continue
            found = _EVALUATED.fullmatch(key)
            if found is None:
                series = scalars.setdefault(key, Series())
            else:
                series = evaluations.setdefault((found["set"] or "", found["figure"]), Series())
            series.put(row["iteration"], float(value))
    task_b = _first_of_task_b(scalars.get("task", Series()), Path(folder) / "config.yaml")
    end = max(row["iteration"] for row in rows)
    _add_results(evaluations, _read_results(Path(folder) / "results.json"), task_b, end)
    return TrainingRun(
        name=name,
        scalars=scalars,
        evaluations=evaluations,
        task_b=task_b,
        broken_lines=len(lines) - len(rows),
    )


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any] | None]:
    """The objects of the lines; None for a line that is broken."""
    for line in filter(None, map(str.strip, lines)):
        # A resumed run begins its first line where the killed one's last was torn.
        whole = line[max(line.rfind("{"), 0) :]
        if whole != line:
            yield None
        try:
            row = json.loads(whole)
        except ValueError:
            row = None
        valid = isinstance(row, dict) and isinstance(row.get("iteration"), int)
        yield row if valid else None


def _first_of_task_b(task: Series, config: Path) -> int | None:
    noted = next((i for i, value in zip(task.iterations, task.values) if value == 2), None)
    if noted is None:
        return None
    try:
        exact = yaml.safe_load(config.read_text(encoding="utf-8"))["SMALLOBJ"]["TASK_A"]["ITERS"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return noted
    return exact if isinstance(exact, int) and 0 <= exact <= noted else noted


def _read_results(path: Path) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """``{task: {data set: {figure: percent}}}``; empty while there is no such file."""
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return {
            task: {name: dict(figures) for name, figures in sets.items()}
            for task, sets in results.items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: no results of a training ({error})") from error


def _add_results(
    evaluations: dict[tuple[str, str], Series],
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    task_b: int | None,
    end: int,
) -> None:
    """Add the evaluation at the end of task A, which is in ``results.json`` alone, and the last."""
    for task, sets in results.items():
        iteration = task_b if task == "A" and task_b is not None else end
        for name, figures in sets.items():
            for figure in FIGURES:
                if len(sets) == 1 and ("", figure) in evaluations:
                    evaluations[name, figure] = evaluations.pop(("", figure))
                if isinstance(figures.get(figure), (int, float)):
                    series = evaluations.setdefault((name, figure), Series())
                    series.insert(iteration, float(figures[figure]))
