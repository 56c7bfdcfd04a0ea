"""Speed measurements: one module for each sub-command of ``tools/benchmark.py``.

A module has ``add_arguments(parser)`` and ``run(args) -> Measurement``; the command shows its
docstring as help. Modules are imported when they are run: ``metric`` and ``folder`` need no torch.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

import d2_smallobj
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.tables import markdown_table

_Case = TypeVar("_Case")

BENCHMARKS = {
    "metric": "IA-mIoU of one image against a confusion matrix",
    "folder": "scoring folders of PNGs against decoding them",
    "inference": "what the evaluator adds to running a model over a data set",
    "train": "training steps of every loss against a plainly written one",
    "lvis": "building PASCAL-B from annotation files as large as LVIS v1's",
}
"""Summary by name; the module is ``benchmarks.<name>``."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Figures of a benchmark for JSON, the same as Markdown, and sentences on missed targets."""

    figures: Mapping[str, Any]
    text: str
    missed: Sequence[str] = ()


def load(name: str) -> ModuleType:
    """Import the module of a benchmark; ``name`` is a key of :data:`BENCHMARKS`."""
    return importlib.import_module(f"{__name__}.{name}")


def race(
    cases: Sequence[_Case],
    functions: Mapping[str, Callable[[_Case], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    per: int = 1,
) -> dict[str, dict[str, float]]:
    """Time functions on cases, in turn, so that a busy machine slows all of them alike.

    Returns for each function ``median`` of all timings in milliseconds, ``quiet``, the median over
    cases of the best round (as on a machine without other work), and ``ratio`` and ``quiet_ratio``
    of these to the first function's, the yardstick. Of a case's ``per`` parts, one counts.
    """
    times = {name: np.empty((rounds, len(cases))) for name in functions}
    for turn in range(rounds):
        for number, case in enumerate(cases):
            for name, function in functions.items():
                begin = clock()
                function(case)
                times[name][turn, number] = 1e3 * (clock() - begin) / per
    found = {
        name: {"median": float(np.median(t)), "quiet": float(np.median(t.min(axis=0)))}
        for name, t in times.items()
    }
    base = found[next(iter(functions))]
    for row in found.values():
        row["ratio"] = row["median"] / base["median"]
        row["quiet_ratio"] = row["quiet"] / base["quiet"]
    return found


def in_process(function: Callable[..., _Case], *arguments: object) -> _Case:
    """Call a function in a fresh process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenCV use one thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def race_table(rows: Mapping[str, Mapping[str, float]], unit: str = "ms") -> str:
    """Format the result of :func:`race` as a Markdown table."""
    columns = {"median": (f"median {unit}", ".3f"), "ratio": ("×", ".2f")}
    columns |= {"quiet": (f"best-round {unit}", ".3f"), "quiet_ratio": ("×", ".2f")}
    return table(rows, "what", columns)


def table(
    rows: Mapping[str, Mapping[str, float]], what: str, columns: Mapping[str, tuple[str, str]]
) -> str:
    """Format rows as a Markdown table; columns are a title and a format by key."""
    cells = [
        [name, *(format(row[k], f) if k in row else "" for k, (_, f) in columns.items())]
        for name, row in rows.items()
    ]
    return markdown_table([what, *(title for title, _ in columns.values())], cells)


def machine() -> str:
    """Describe processor and library versions."""
    python = f"{platform.machine()}, Python {platform.python_version()}"
    return f"{python}, numpy {np.__version__}, OpenCV {cv2.__version__}"


def torch_machine() -> dict[str, str]:
    """Describe the machine with torch, the host and the device that is used."""
    import torch

    host = d2_smallobj.host()
    text = f"{machine()}, torch {torch.__version__}, {host.name} host {host.version}"
    gpu = torch.cuda.is_available()
    return {"machine": text, "device": torch.cuda.get_device_name() if gpu else "CPU"}
