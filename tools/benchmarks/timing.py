"""Timing several kinds of work in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from d2_smallobj.utils.opencv import cv2

_Case = TypeVar("_Case")


def race(
    cases: Sequence[_Case],
    functions: Mapping[str, Callable[[_Case], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Time functions on cases, every round all functions on one case after the other.

    Args:
        cases: what the functions are called with.
        functions: by name; the first is the yardstick.
        rounds: timings of each function on each case.
        clock: seconds; ``time.process_time`` leaves out what other programs take.

    Returns:
        For each function ``median`` of all timings in milliseconds, ``quiet``, the median over
        cases of the best round (what a machine without other work would show), and ``ratio``
        and ``quiet_ratio`` of these to the yardstick's.
    """
    times = {name: np.empty((rounds, len(cases))) for name in functions}
    for turn in range(rounds):
        for number, case in enumerate(cases):
            for name, function in functions.items():
                begin = clock()
                function(case)
                times[name][turn, number] = 1e3 * (clock() - begin)
    found = {
        name: {"median": float(np.median(t)), "quiet": float(np.median(t.min(axis=0)))}
        for name, t in times.items()
    }
    base = found[next(iter(functions))]
    for row in found.values():
        row["ratio"] = row["median"] / base["median"]
        row["quiet_ratio"] = row["quiet"] / base["quiet"]
    return found


def race_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """What :func:`race` found as a Markdown table."""
    lines = ["| what | median ms | × | best-round ms | × |", "|---|---|---|---|---|"]
    lines += [
        f"| {what} | {row['median']:.3f} | {row['ratio']:.2f}"
        f" | {row['quiet']:.3f} | {row['quiet_ratio']:.2f} |"
        for what, row in rows.items()
    ]
    return "\n".join(lines)


def slope(sizes: Iterable[float], times: Iterable[float]) -> float:
    """Exponent of the power law through the points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(times)), 1)[0])


def machine() -> str:
    """What the times were measured with, in a few words."""
    return (
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__},"
        f" OpenCV {cv2.__version__}"
    )
