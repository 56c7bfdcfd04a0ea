"""The scored runs of a report: figures, intervals, outcomes and false positives by method."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from d2_smallobj.metrics.records import SizeBins
from d2_smallobj.metrics.summary import OUTCOMES, blob_summary, outcome_summary
from d2_smallobj.statistics.comparison import run_size_bins, run_stuff, run_worst
from d2_smallobj.statistics.intervals import MINIMUM_INSTANCES

_SIZE_WORDS = {"S": "small", "M": "medium", "L": "large"}
_SHARED = {
    "class_names": "classes",
    "stuff": "stuff classes",
    "bins": "size bins",
    "worst": "share of worst images",
}
"""Attributes of a method that all methods of a report have in common, and their names."""


@dataclasses.dataclass(frozen=True)
class ScoredMethod:
    """One scored run as the report shows it.

    Attributes:
        run: the :class:`d2_smallobj.scoring.ScoredRun`, or anything with its attributes.
        name: of the run.
        position: place of the run in the report, from 0; decides colour and marker.
        class_names: by category.
        bins: the size bins that the run was scored with.
        stuff: ids of the stuff classes.
        worst: share of the worst images, in percent.
        ignore_label: label of ignored pixels.
        intervals: (low, high) in percent by figure; empty where none was computed.
    """

    run: Any
    name: str
    position: int
    class_names: list[str]
    bins: SizeBins
    stuff: tuple[int, ...]
    worst: int
    ignore_label: int
    intervals: Mapping[str, tuple[float, float]]

    @property
    def thing_names(self) -> list[str]:
        """Names of the classes of objects."""
        return [name for place, name in enumerate(self.class_names) if place not in self.stuff]

    @functools.cached_property
    def outcomes(self) -> dict[str, Any]:
        """Outcomes of the instances; see :func:`d2_smallobj.metrics.summary.outcome_summary`."""
        return outcome_summary(self.run.table, self.class_names, self.bins, stuff=self.stuff)

    def outcome_row(self, size: str) -> dict[str, dict[str, float]]:
        """Instances and IoU lost by outcome, of one size bin (empty: of all)."""
        return self.outcomes["sizes"][size] if size else self.outcomes["all"]

    def outcome_shares(self, size: str) -> dict[str, float]:
        """Percentage of the instances of one size bin (empty: of all) by outcome."""
        return outcome_shares(self.outcome_row(size))

    @functools.cached_property
    def blobs(self) -> dict[str, Any]:
        """False-positive blobs; see :func:`d2_smallobj.metrics.summary.blob_summary`."""
        return blob_summary(self.run.blobs, self.class_names, self.bins, stuff=self.stuff)

    def figure(self, key: str) -> float:
        """A figure in percent, or a count; NaN where it is undefined."""
        value = self.run.figures.get(key)
        return math.nan if value is None else float(value)

    def few_instances(self, key: str) -> int:
        """Number of instances behind an instance figure if they are too few to rely on, else 0."""
        if not key.startswith("IA-IoU"):
            return 0
        instances = self.figure(key.replace("IA-IoU", "instances", 1))
        return int(instances) if instances < MINIMUM_INSTANCES else 0

    def has_class(self, name: str) -> bool:
        """Tell whether a class has instances, pixels or blobs."""
        blobs = self.blobs["classes"]
        return (
            self.figure(f"instances-{name}") > 0
            or not math.isnan(self.figure(f"IoU-{name}"))
            or (name in blobs and blobs[name]["all"]["blobs"] > 0)
        )


def make_methods(
    runs: Sequence[Any], intervals: Mapping[str, Mapping[str, Any]] | None
) -> list[ScoredMethod]:
    """Check that scored runs can stand in one report, and prepare them; see :func:`.render_report`.

    Raises:
        ValueError: if there is no run, two have one name, classes or size bins differ, or
            ``intervals`` names a run that is not there.
    """
    if not runs:
        raise ValueError("runs must hold at least one scored run, got none")
    names = [str(run.name) for run in runs]
    if len(set(names)) != len(names):
        raise ValueError(f"runs must have distinct names, got {names}: rename one of them")
    intervals = intervals or {}
    unknown = sorted(set(intervals) - set(names))
    if unknown:
        raise ValueError(f"intervals: no run is called {unknown}; the runs are {names}")
    methods = []
    for position, (name, run) in enumerate(zip(names, runs)):
        options, classes = run.options, list(run.class_names)
        shared = run_size_bins(options), run_stuff(options), run_worst(options)
        ignore_label = int(options.get("ignore_label", 255))
        found = _bounds(intervals.get(name, getattr(run, "intervals", {})))
        methods.append(ScoredMethod(run, name, position, classes, *shared, ignore_label, found))
    first = methods[0]
    for other in methods[1:]:
        for attribute, words in _SHARED.items():
            mine, theirs = getattr(first, attribute), getattr(other, attribute)
            if mine != theirs:
                raise ValueError(
                    f"runs must share their {words} to stand side by side: {first.name!r} has"
                    f" {mine}, {other.name!r} has {theirs}"
                )
    return methods


def size_word(name: str) -> str:
    """The word for a size bin: ``small`` for ``S``; other names stay as they are."""
    return _SIZE_WORDS.get(name, name)


def size_range(bins: SizeBins, name: str) -> str:
    """The bounds of a size bin as text, such as ``32² to 96² px``."""
    high = bins[name]
    low = max((bound for bound in bins.values() if bound < high), default=0.0)
    if math.isinf(high) or (bins.relative and high == 1):
        return f"from {_size(low, bins.relative)}" if low else "any size"
    if not low:
        return f"below {_size(high, bins.relative)}"
    return f"{_size(low, bins.relative, unit=False)} to {_size(high, bins.relative)}"


def outcome_shares(row: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Percentage of the instances by outcome; NaN without an instance."""
    total = sum(counts["instances"] for counts in row.values())
    return {
        name: 100.0 * row[name]["instances"] / total if total else math.nan for name in OUTCOMES
    }


def _size(bound: float, relative: bool, *, unit: bool = True) -> str:
    """A bound as text."""
    if relative:
        return f"{100 * bound:g} %" + " of the image" * unit
    side = math.isqrt(int(bound))
    number = f"{side}²" if side * side == bound else f"{bound:,.0f}"
    return number + " px" * unit


def _bounds(intervals: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(low, high) by figure; undefined intervals left out."""
    found = {}
    for key, interval in intervals.items():
        given = hasattr(interval, "low")
        low, high = (interval.low, interval.high) if given else tuple(interval)[-2:]
        if None not in (low, high) and math.isfinite(low) and math.isfinite(high):
            found[str(key)] = (float(low), float(high))
    return found
