"""Compare methods: intervals, paired differences, ranks, and remarks on the settings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from d2_smallobj.metrics.image_sums import Run
from d2_smallobj.metrics.records import COCO_SIZE_BINS, SizeBins, as_size_bins, parse_size_bins
from d2_smallobj.metrics.summary import WORST_PERCENT, split_headline
from d2_smallobj.statistics.intervals import (
    FewInstances,
    Interval,
    bootstrap_figures,
    check_settings,
    few_instances,
    intervals,
    number_of_swaps,
    score,
)
from d2_smallobj.statistics.pairing import (
    Difference,
    check_same_truth,
    differences,
    holm,
    swap_test,
)
from d2_smallobj.statistics.ranking import RankTable, rank_table

# Options that may differ between compared runs; a remark says so.
_REMARKED = ("mode", "ignore_label", "version")


class NamedRun(Run, Protocol):
    """A scored method; :class:`d2_smallobj.scoring.ScoredRun` is one.

    Of the options, ``size_bins`` (a mapping or text; default COCO's), ``stuff`` (class ids; default
    ``[0]``), ``worst`` (percent; default 5), ``include_background`` (default true), ``mode`` and
    ``ignore_label`` are looked at.
    """

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def class_names(self) -> Sequence[str]:
        """C names."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the scoring."""


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """One figure of two methods.

    Attributes:
        first: name of the method that is subtracted.
        second: name of the other one.
        figure: e.g. ``IA-mIoU_S``.
        difference: second minus first, with interval and p-value.
        p_adjusted: the p-value after Holm's adjustment for all differences of the comparison in
            mIoU and IA-mIoU; differences in the other figures are adjusted among themselves.
    """

    first: str
    second: str
    figure: str
    difference: Difference
    p_adjusted: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of :func:`compare_runs`.

    Attributes:
        names: the methods, in the order given.
        images: number of images.
        intervals: by method and figure.
        differences: for every pair of methods and every figure.
        ranks: methods ranked by figure, and correlations between figures.
        few_instances: classes and sizes with fewer than ``MINIMUM_INSTANCES`` instances.
        remarks: settings that differ, and the runs' own remarks, one sentence each.
        samples: number of resamples and of permutations.
        seed: of both.
        level: of the intervals.
    """

    names: tuple[str, ...]
    images: int
    intervals: Mapping[str, Mapping[str, Interval]]
    differences: tuple[PairedDifference, ...]
    ranks: RankTable
    few_instances: tuple[FewInstances, ...]
    remarks: tuple[str, ...]
    samples: int
    seed: int
    level: float


def compare_runs(
    runs: Sequence[NamedRun],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    baseline: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """Compare methods that were scored on the same images with the same ground truth.

    Args:
        runs: at least one; more than one for differences.
        samples: number of resamples and of permutations; see :func:`.pairing.paired`.
        seed: same seed, same result.
        level: of the intervals.
        baseline: name of the method that all others are compared with; ``None``: every pair, the
            earlier subtracted from the later.
        progress: called now and then with the number of draws done so far and of all.

    Raises:
        ValueError: if there is no run, two have one name, there is no such baseline, an option
            is out of range, or the runs differ in classes, size bins, images or ground truth.
    """
    check_settings(samples, seed, level)
    names = _check_runs(runs, baseline)
    class_names, shared = list(runs[0].class_names), shared_options(runs[0].options)
    scores = [score(run, class_names=class_names, **shared) for run in runs]
    images = len(scores[0].sums.images)
    pairs = _pairs(names, baseline)
    step = _counter(samples + (number_of_swaps(images, samples) if pairs else 0), progress)
    draws = bootstrap_figures(scores, samples, seed, progress=step)
    p_values = swap_test(scores, pairs, samples, seed, progress=step) if pairs else []
    found = [
        (pair, differences([scores[i] for i in pair], [draws[i] for i in pair], p, level))
        for pair, p in zip(pairs, p_values)
    ]
    supports = scores[0].supports()
    return Comparison(
        names=names,
        images=images,
        intervals={
            name: intervals(method.figures, drawn, supports, level)
            for name, method, drawn in zip(names, scores, draws)
        },
        differences=_adjusted(names, found),
        ranks=rank_table({name: method.figures for name, method in zip(names, scores)}),
        few_instances=tuple(
            few_instances(runs[0].table, class_names, shared["size_bins"], stuff=shared["stuff"])
        ),
        remarks=tuple(_remarks(runs)),
        samples=samples,
        seed=seed,
        level=level,
    )


def run_size_bins(options: Mapping[str, Any]) -> SizeBins:
    """The size bins of a run's options, a mapping or text; COCO's by default."""
    given = options.get("size_bins")
    if given is None:
        return COCO_SIZE_BINS
    return parse_size_bins(given) if isinstance(given, str) else as_size_bins(given)


def run_stuff(options: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the stuff classes of a run's options; (0,), the background, by default."""
    return tuple(int(category) for category in options.get("stuff", (0,)))


def run_worst(options: Mapping[str, Any]) -> int:
    """The share of worst images of a run's options, in percent."""
    return int(options.get("worst", WORST_PERCENT))


def _counter(total: int, progress: Callable[[int, int], object] | None) -> Callable[[int], None]:
    """Turn numbers of draws into a running sum."""
    done = 0

    def step(number: int) -> None:
        nonlocal done
        done += number
        if progress is not None:
            progress(done, total)

    return step


def _check_runs(runs: Sequence[NamedRun], baseline: str | None) -> tuple[str, ...]:
    """Check that runs can be compared at all, and return their names."""
    if not runs:
        raise ValueError("runs must hold at least one scored run, got none")
    names = tuple(run.name for run in runs)
    if len(set(names)) != len(names):
        raise ValueError(f"runs must have distinct names, got {list(names)}")
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline must be one of {list(names)}, got {baseline!r}")
    first = runs[0]
    for run in runs[1:]:
        if list(run.class_names) != list(first.class_names):
            raise ValueError(
                f"runs must have the same classes; {first.name}: {list(first.class_names)},"
                f" {run.name}: {list(run.class_names)}"
            )
        mine, theirs = shared_options(first.options), shared_options(run.options)
        different = [name for name in mine if mine[name] != theirs[name]]
        if different:
            listed = [
                f"{name} is {mine[name]} in {first.name} and {theirs[name]} in {run.name}"
                for name in different
            ]
            raise ValueError(f"runs must share {', '.join(mine)}; {'; '.join(listed)}")
        check_same_truth(first, run, (first.name, run.name))
    return names


def shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that compared runs must share."""
    return {
        "size_bins": run_size_bins(options),
        "stuff": run_stuff(options),
        "worst": run_worst(options),
        "include_background": bool(options.get("include_background", True)),
    }


def _pairs(names: Sequence[str], baseline: str | None) -> list[tuple[int, int]]:
    """Positions of the methods to compare, the subtracted one first."""
    if baseline is None:
        return list(itertools.combinations(range(len(names)), 2))
    first = names.index(baseline)
    return [(first, other) for other in range(len(names)) if other != first]


def _adjusted(
    names: Sequence[str], found: Sequence[tuple[tuple[int, int], Mapping[str, Difference]]]
) -> tuple[PairedDifference, ...]:
    """Flatten the differences and adjust their p-values for their number."""
    rows = [(pair, name, gap) for pair, gaps in found for name, gap in gaps.items()]
    adjusted: dict[tuple[tuple[int, int], str], float] = {}
    # Figures that answer another question must not cost the headline its certainty.
    for family in split_headline(dict.fromkeys(name for _, name, _ in rows)):
        members = [row for row in rows if row[1] in family]
        p_values = holm([gap.p_value for _, _, gap in members])
        adjusted.update({(pair, name): p for (pair, name, _), p in zip(members, p_values)})
    return tuple(
        PairedDifference(names[pair[0]], names[pair[1]], name, gap, adjusted[pair, name])
        for pair, name, gap in rows
    )


def _remarks(runs: Sequence[NamedRun]) -> list[str]:
    """Say which options differ, and pass on the runs' own remarks."""
    remarks = []
    for key in _REMARKED:
        values = {run.name: run.options.get(key) for run in runs}
        if len({str(value) for value in values.values()}) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            remarks.append(f"The runs were scored with different settings of {key}: {listed}.")
    for run in runs:
        remarks += [f"{run.name}: {remark}" for remark in getattr(run, "remarks", ())]
    return remarks
