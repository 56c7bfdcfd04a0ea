"""Paired tests of two methods on the same images: differences, intervals, p-values.

Shapes: N images; S draws of one block; C classes; V sums of one class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Union

import numpy as np

from d2_smallobj.metrics.image_sums import Run, joined, joint_sums
from d2_smallobj.metrics.records import COCO_SIZE_BINS, InstanceTable, PixelTable
from d2_smallobj.metrics.summary import WORST_PERCENT
from d2_smallobj.statistics.intervals import (
    Interval,
    Scores,
    bootstrap_figures,
    check_settings,
    intervals,
    is_complete,
    number_of_swaps,
    resampled,
    score,
    swap_weights,
)
from d2_smallobj.utils.messages import listed

Table = Union[InstanceTable, PixelTable]

# Percentage points below which two differences count as equal: sums are exact, ratios are not.
_TIE = 1e-9


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference of two figures, second minus first, in percentage points.

    With the ends of its interval and a two-sided p-value; NaN where the figure is undefined.
    """

    estimate: float
    low: float
    high: float
    p_value: float


def paired(
    first: Run,
    second: Run,
    *,
    class_names: Sequence[str],
    stuff: Collection[int] = (0,),
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    include_background: bool = True,
    worst: int = WORST_PERCENT,
) -> dict[str, Difference]:
    """Compare two methods on the same images: second minus first, for every headline figure.

    The interval is the percentile bootstrap with the same images drawn for both, so that
    difficult images cancel. The p-value is a permutation test: under the null hypothesis the
    two methods are interchangeable on every image, so each image's results are swapped between
    them with probability 1/2 (for a mean of per-image values this is the sign-flip test; a swap
    also suits figures such as mIoU, which are no such mean). It counts how often the absolute
    difference is at least the observed one: ``p = (1 + count) / (1 + samples)``, or the exact
    share if all ``2**N`` patterns fit into ``samples``. Unlike a p-value read off the
    bootstrap, it is valid at any number of images, and no class ever goes missing.

    ``first`` is the method that is subtracted, ``samples`` the number of resamples and of
    permutations; the other arguments are those of :func:`.intervals.bootstrap`.

    Raises:
        ValueError: if the two do not have the same images and ground truth (the message lists
            the first ten images), or an option is out of range.
    """
    check_settings(samples, seed, level)
    check_same_truth(first, second)
    options: dict[str, Any] = {"class_names": class_names, "stuff": stuff, "size_bins": size_bins}
    options |= {"include_background": include_background, "worst": worst}
    scores = [score(run, **options) for run in (first, second)]
    draws = bootstrap_figures(scores, samples, seed)
    p_values = swap_test(scores, [(0, 1)], samples, seed)
    return differences(scores, draws, p_values[0], level)


def paired_over_seeds(
    first: Sequence[Run],
    second: Sequence[Run],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    **options: Any,
) -> dict[str, Interval]:
    """Compare two ways to train, each with several seeds: mean of second minus first.

    Runs of one position have the same training seed. The interval is the percentile bootstrap over
    images and seeds: images are drawn with replacement, the same for all runs, and so are the
    seeds. It holds what the choice of test images and of seeds does to the mean difference; with
    one seed, the images alone.

    Args:
        first: runs of the one that is subtracted, one a seed.
        second: runs of the other one, in the same order of seeds.
        samples: number of resamples.
        seed: of the resamples.
        level: share of the resamples that the interval holds.
        **options: ``class_names`` and the further arguments of :func:`.intervals.score`.

    Returns:
        By figure, in percentage points; NaN where a seed's figure is undefined.

    Raises:
        ValueError: the numbers of runs differ or are 0, runs have other images or ground truth, or
            an option is out of range.
    """
    check_settings(samples, seed, level)
    if len(first) != len(second) or not first:
        raise ValueError(
            f"expected one run for each seed on both sides, got {len(first)} and {len(second)}"
        )
    runs = [*first, *second]
    for run in runs[1:]:
        check_same_truth(runs[0], run)
    scores = [score(run, **options) for run in runs]
    draws = bootstrap_figures(scores, samples, seed)
    pairs = list(zip(range(len(first)), range(len(first), len(runs))))
    chosen = np.random.default_rng([seed, 2]).integers(0, len(pairs), (len(pairs), samples))
    gaps, drawn = {}, {}
    for name in scores[0].figures:
        values = [scores[b].figures[name] - scores[a].figures[name] for a, b in pairs]
        by_seed = np.stack([draws[b][name] - draws[a][name] for a, b in pairs])
        gaps[name] = float(np.mean(values))
        drawn[name] = np.take_along_axis(by_seed, chosen, axis=0).mean(axis=0)
    return intervals(gaps, drawn, scores[0].supports(), level)


def swap_test(
    scores: Sequence[Scores],
    pairs: Sequence[tuple[int, int]],
    samples: int,
    seed: int,
    *,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, float]]:
    """Two-sided p-values of paired differences by swapping images; see :func:`paired`.

    ``pairs`` are positions in ``scores``, which have the same images and ground truth. Returns
    the p-value by figure for every pair, NaN where the figure is undefined.
    """
    images = len(scores[0].sums.images)
    whole = joint_sums([method.sums for method in scores]).totals(np.ones((1, images)))
    apart = joint_sums([method.sums for method in scores], relative=True)
    lists = [joined(scores[one].ious, scores[other].ious, images) for one, other in pairs]

    def gaps(weights: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Absolute differences (S,) by figure for every pair, where images keep their place (1)."""
        kept = apart.totals(weights)
        for (one, other), ious in zip(pairs, lists):
            # What a method keeps, and what it gets from the other; whole numbers, so exact.
            gain = kept[one] - kept[other]
            moved = 1 - weights
            first = resampled(scores[one], whole[other] + gain, ious, np.hstack([weights, moved]))
            second = resampled(scores[one], whole[one] - gain, ious, np.hstack([moved, weights]))
            yield {name: np.abs(second[name] - first[name]) for name in first}

    observed = list(gaps(np.ones((1, images))))
    counts = [dict.fromkeys(seen, 0) for seen in observed]
    for weights in swap_weights(images, samples, seed):
        for seen, count, drawn in zip(observed, counts, gaps(weights)):
            for name in count:
                count[name] += int(np.count_nonzero(drawn[name] >= seen[name] - _TIE))
        if progress is not None:
            progress(len(weights))
    # Drawn at random, the observed arrangement is one more draw; else it is among the patterns.
    more = 0 if is_complete(images, samples) else 1
    total = number_of_swaps(images, samples) + more
    return [
        {
            name: math.nan if np.isnan(seen[name][0]) else (count[name] + more) / total
            for name in count
        }
        for seen, count in zip(observed, counts)
    ]


def differences(
    scores: Sequence[Scores],
    draws: Sequence[Mapping[str, np.ndarray]],
    p_values: Mapping[str, float],
    level: float,
) -> dict[str, Difference]:
    """Differences, second minus first, from two methods' figures and resampled figures."""
    first, second = (method.figures for method in scores)
    gaps = {name: second[name] - first[name] for name in first}
    drawn = {name: draws[1][name] - draws[0][name] for name in first}
    found = intervals(gaps, drawn, scores[0].supports(), level)
    return {
        name: Difference(gap.estimate, gap.low, gap.high, p_values[name])
        for name, gap in found.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979); NaN stays NaN and counts for nothing.

    The chance that any true null hypothesis has an adjusted value below α is at most α,
    whatever the tests have to do with one another.
    """
    given = np.asarray(p_values, np.float64)
    adjusted = np.full(len(given), np.nan)
    order = np.argsort(given, kind="stable")[: np.count_nonzero(~np.isnan(given))]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def check_same_truth(
    first: Run, second: Run, names: tuple[str, str] = ("the first", "the second")
) -> None:
    """Check that two methods were scored on the same images with the same ground truth.

    Raises:
        ValueError: if not; lists the first ten images concerned and their number.
    """
    mine, theirs = ({str(image) for image in run.images} for run in (first, second))
    parts = [
        f"{len(images)} only in {name}: {listed(sorted(images))}"
        for name, images in zip(names, (mine - theirs, theirs - mine))
        if images
    ]
    if parts:
        raise ValueError(
            f"paired comparison needs the same images in {names[0]} and {names[1]}; "
            + "; ".join(parts)
        )
    changed = sorted(_changed_images(first, second))
    if changed:
        raise ValueError(
            f"paired comparison needs the same ground truth in {names[0]} and {names[1]}; it"
            f" differs in {len(changed)} images: {listed(changed)}"
        )


def _changed_images(first: Run, second: Run) -> set[str]:
    """Images whose ground-truth pixels or instances differ."""
    return _changed_rows(
        ("image_id", "category_id", "ground_truth"),
        *(run.pixels.select(run.pixels.ground_truth > 0) for run in (first, second)),
    ) | _changed_rows(
        ("image_id", "category_id", "instance_id", "area", "pixels"), first.table, second.table
    )


def _changed_rows(columns: Sequence[str], first: Table, second: Table) -> set[str]:
    """Images in which two tables differ."""
    tables = [table.sorted() for table in (first, second)]
    if len(tables[0]) == len(tables[1]) and all(
        np.array_equal(getattr(tables[0], name), getattr(tables[1], name)) for name in columns
    ):
        return set()
    rows = [set(zip(*(getattr(table, name).tolist() for name in columns))) for table in tables]
    return {row[0] for row in rows[0] ^ rows[1]}
