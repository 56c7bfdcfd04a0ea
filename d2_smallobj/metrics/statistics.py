"""How certain a figure is: intervals, and cells that hold too few instances.

The image is the unit throughout: its instances share a scene and a photographer, so they are not
independent draws, and an interval over instances would be too narrow.

Shapes: N images; C classes, background included; R records.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from d2_smallobj.metrics.image_sums import ImageSums, Run, figures, image_sums, joint_sums
from d2_smallobj.metrics.records import BACKGROUND, InstanceTable
from d2_smallobj.metrics.resampling import bootstrap_weights, check_settings
from d2_smallobj.metrics.sizes import COCO_SIZE_BINS
from d2_smallobj.metrics.summary import summarize

MINIMUM_INSTANCES = 10


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and its interval, in percent; NaN where undefined.

    Attributes:
        estimate: the plain figure.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """A class and size with few instances.

    Attributes:
        category: class name.
        size: name of the size bin.
        instances: their number.
    """

    category: str
    size: str
    instances: int


class _Records(NamedTuple):
    """The least that is a :class:`.image_sums.Run`."""

    table: InstanceTable
    image_counts: np.ndarray
    images: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Scores:
    """A method's plain figures, and what resampling them takes.

    Attributes:
        figures: percent by headline figure.
        sums: what every image adds.
        include_background: whether the background is a class of ``IA-mIoU``.
    """

    figures: Mapping[str, float]
    sums: ImageSums
    include_background: bool


def score(
    run: Run,
    *,
    class_names: Sequence[str],
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    include_background: bool = True,
) -> Scores:
    """Compute the plain headline figures, to the bit those of :func:`.summary.summarize`.

    Args:
        run: a method's records, counts and images; an :class:`.accumulator.Accumulator` will do.
        class_names: C names, background first.
        size_bins: exclusive upper bounds by name.
        include_background: whether the background is a class of ``IA-mIoU``.

    Raises:
        ValueError: if table, counts, images and names do not fit together.
    """
    count = len(class_names)
    counts = np.asarray(run.image_counts)
    sums = image_sums(run.table, counts, run.images, num_classes=count, size_bins=size_bins)
    # mIoU needs no more of the confusion matrix than its diagonal and margins.
    blank = np.zeros((count, count), np.int64)
    plain = summarize(run.table, blank, class_names, size_bins=size_bins)
    hit, truth, predicted = counts.sum(axis=0, dtype=np.int64).T
    present = truth > 0
    ious = 100.0 * hit[present] / (truth + predicted - hit)[present]
    result = {"mIoU": math.fsum(ious.tolist()) / len(ious) if len(ious) else math.nan}
    result |= {name: value for name, value in plain.items() if name.startswith("IA-mIoU")}
    if not include_background:
        result["IA-mIoU"] = result["IA-mIoU_fg"]
    return Scores(result, sums, include_background)


def bootstrap(
    table: InstanceTable,
    image_counts: np.ndarray,
    images: Sequence[str],
    *,
    class_names: Sequence[str],
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    include_background: bool = True,
) -> dict[str, Interval]:
    """Intervals of the headline figures by the percentile bootstrap over images.

    N images are drawn with replacement ``samples`` times, the figures computed anew each time,
    and the ``(1 ± level) / 2`` quantiles (linear between order statistics) are the interval. A
    resample that lacks a class averages over the others, as the plain figure does; a resample
    in which a figure is undefined is left out of its interval.

    Args:
        table: the records.
        image_counts: int64 (N, C, 3): intersection, ground-truth and predicted pixels of every
            class in every image.
        images: N distinct ids in the order of ``image_counts``; those without records included.
        class_names: C names, background first.
        size_bins: exclusive upper bounds by name.
        samples: number of resamples; 1000 settle the ends to about a tenth of their distance.
        seed: same seed, same intervals, whatever the order of images or the number of threads.
        level: share of the resamples that the interval holds.
        include_background: whether the background is a class of ``IA-mIoU``.

    Returns:
        By figure: ``mIoU``, ``IA-mIoU``, ``IA-mIoU_fg``, ``IA-mIoU_S``, .... The estimate is the
        plain figure; the ends are NaN where fewer than two images bear on it, as nothing can be
        said about the variation then.

    Raises:
        ValueError: if table, counts, images and names do not fit together, or an option is out
            of range.
    """
    check_settings(samples, seed, level)
    scores = score(
        _Records(table, image_counts, images),
        class_names=class_names,
        size_bins=size_bins,
        include_background=include_background,
    )
    draws = bootstrap_figures([scores], samples, seed)[0]
    return intervals(scores.figures, draws, scores.sums.supports(), level)


def bootstrap_figures(
    scores: Sequence[Scores],
    samples: int,
    seed: int,
    *,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Compute the figures of every resample, the same resamples for all methods.

    Args:
        scores: one entry a method, all with the same images.
        samples: number of resamples.
        seed: of the generator.
        progress: called with the number of resamples of each block that is done.

    Returns:
        For every method float64 (samples,) by figure; without images, (0,).
    """
    images = len(scores[0].sums.images)
    joint = joint_sums([method.sums for method in scores])
    draws: list[dict[str, list[np.ndarray]]] = [{name: [] for name in x.figures} for x in scores]
    for weights in bootstrap_weights(images, samples, seed) if images else ():
        for drawn, method, totals in zip(draws, scores, joint.totals(weights)):
            for name, values in resampled(method, totals).items():
                drawn[name].append(values)
        if progress is not None:
            progress(len(weights))
    empty = np.zeros(0)
    return [
        {name: np.concatenate([empty, *parts]) for name, parts in drawn.items()} for drawn in draws
    ]


def resampled(scores: Scores, totals: np.ndarray) -> dict[str, np.ndarray]:
    """A method's figures, float64 (S,) by name, from its totals (S, C, V)."""
    return figures(totals, scores.sums.size_names, include_background=scores.include_background)


def intervals(
    estimates: Mapping[str, float],
    draws: Mapping[str, np.ndarray],
    supports: Mapping[str, int],
    level: float,
) -> dict[str, Interval]:
    """Percentile intervals from resampled figures; NaN where fewer than two images bear on one."""
    result = {}
    for name, estimate in estimates.items():
        low, high = percentiles(draws[name], level) if supports[name] > 1 else (math.nan,) * 2
        result[name] = Interval(estimate, low, high)
    return result


def percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """Ends that hold the central ``level`` of the defined values; NaN if none is defined."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cell_warnings(
    table: InstanceTable,
    class_names: Sequence[str],
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    *,
    minimum: int = MINIMUM_INSTANCES,
) -> list[Cell]:
    """Find the classes and sizes with too few instances for their mean to say anything.

    Args:
        table: the records.
        class_names: C names, background first.
        size_bins: exclusive upper bounds by name.
        minimum: cells with fewer instances are listed.

    Returns:
        By size, then class; cells without any instance included (they are in no mean, so the
        figures of two sizes are means over different classes). No background.
    """
    positions, count = table.size_of(size_bins), len(class_names)
    cells = []
    for position, size in enumerate(size_bins):
        chosen = table.category_id[(positions == position) & (table.category_id != BACKGROUND)]
        numbers = np.bincount(chosen, minlength=count).tolist()
        cells += [
            Cell(class_names[category], size, numbers[category])
            for category in range(BACKGROUND + 1, count)
            if numbers[category] < minimum
        ]
    return cells
