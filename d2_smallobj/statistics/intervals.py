"""Bootstrap intervals of the figures, and classes and sizes with too few instances.

The image is the unit throughout: its instances share a scene and a photographer, so they are not
independent draws, and an interval over instances would be too narrow.

Shapes: N images; C classes; S resamples of one block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from d2_smallobj.metrics.image_sums import (
    ImageIoUs,
    ImageSums,
    Run,
    figure_names,
    figures,
    image_ious,
    image_sums,
    joint_sums,
    resampled_figures,
    sorted_images,
)
from d2_smallobj.metrics.records import COCO_SIZE_BINS, InstanceTable
from d2_smallobj.metrics.summary import WORST_PERCENT, headline_names, summarize
from d2_smallobj.utils.messages import listed

MINIMUM_INSTANCES = 10

# Weights held at once: 32 MB as float64.
_BLOCK_CELLS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure (``estimate``) and the ends of its interval, in percent; NaN where undefined."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class FewInstances:
    """A class and size with too few instances for a mean, and their number."""

    category: str
    size: str
    instances: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """A method's plain figures, and what their resampling needs.

    Attributes:
        figures: percent by headline figure.
        sums: sums by image, for figures that are ratios of sums.
        ious: IoU by image, for figures that are means over images.
        include_background: count stuff classes in ``IA-mIoU``.
        worst: share of the worst images, in percent.
    """

    figures: Mapping[str, float]
    sums: ImageSums
    ious: ImageIoUs
    include_background: bool = True
    worst: int = WORST_PERCENT

    def supports(self) -> dict[str, int]:
        """Number of images that each headline figure rests on, by name."""
        found = self.sums.supports()
        return {**found, **dict.fromkeys(figure_names(self.worst), self.ious.support)}


def score(
    run: Run,
    *,
    class_names: Sequence[str],
    stuff: Collection[int] = (0,),
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    include_background: bool = True,
    worst: int = WORST_PERCENT,
) -> Scores:
    """Compute the plain headline figures, to the bit those of :func:`.summary.summarize`.

    Arguments and errors are those of :func:`bootstrap`.
    """
    count = len(class_names)
    sums = image_sums(run, num_classes=count, size_bins=size_bins, stuff=stuff)
    ious = image_ious(run.pixels, sorted_images(run, count), count)
    plain = summarize(
        run.table, run.pixels, class_names, stuff=stuff, size_bins=size_bins, worst=worst
    )
    result = {name: plain[name] for name in headline_names(size_bins, worst)}
    if not include_background:
        result["IA-mIoU"] = result["IA-mIoU_fg"]
    return Scores(result, sums, ious.rounded(), include_background, worst)


def bootstrap(
    run: Run,
    *,
    class_names: Sequence[str],
    stuff: Collection[int] = (0,),
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    include_background: bool = True,
    worst: int = WORST_PERCENT,
) -> dict[str, Interval]:
    """Compute intervals of the headline figures by the percentile bootstrap over images.

    N images are drawn with replacement ``samples`` times, the figures computed anew each time,
    and the ``(1 ± level) / 2`` quantiles (linear between order statistics) are the interval. A
    resample that lacks a class averages over the others, as the plain figure does; a resample
    in which a figure is undefined is left out of its interval.

    Args:
        run: the records, counts and images; e.g. an :class:`.accumulator.Accumulator`.
        class_names: C names.
        stuff: ids of the stuff classes.
        size_bins: exclusive upper bounds by name.
        samples: number of resamples; 1000 settle the ends to about a tenth of their distance.
        seed: same seed, same intervals, whatever the order of images or the number of threads.
        level: share of the resamples that the interval holds.
        include_background: count stuff classes in ``IA-mIoU``.
        worst: share of the worst images, in percent.

    Returns:
        By figure, as :func:`.summary.headline_names` names them. The estimate is the plain
        figure; the ends are NaN where it rests on fewer than two images.

    Raises:
        ValueError: if tables, images and names do not fit together, or an option is out of
            range.
    """
    check_settings(samples, seed, level)
    scores = score(
        run,
        class_names=class_names,
        stuff=stuff,
        size_bins=size_bins,
        include_background=include_background,
        worst=worst,
    )
    draws = bootstrap_figures([scores], samples, seed)[0]
    return intervals(scores.figures, draws, scores.supports(), level)


def bootstrap_figures(
    scores: Sequence[Scores],
    samples: int,
    seed: int,
    *,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Compute the figures of every resample, the same resamples for all methods.

    Returns float64 (samples,) by figure for every method; without images, (0,).
    """
    images = len(scores[0].sums.images)
    joint = joint_sums([method.sums for method in scores])
    draws: list[dict[str, list[np.ndarray]]] = [{name: [] for name in x.figures} for x in scores]
    for weights in bootstrap_weights(images, samples, seed) if images else ():
        for drawn, method, totals in zip(draws, scores, joint.totals(weights)):
            for name, values in resampled(method, totals, method.ious, weights).items():
                drawn[name].append(values)
        if progress is not None:
            progress(len(weights))
    empty = np.zeros(0)
    return [
        {name: np.concatenate([empty, *parts]) for name, parts in drawn.items()} for drawn in draws
    ]


def resampled(
    scores: Scores, totals: np.ndarray, ious: ImageIoUs, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute a method's figures, float64 (S,) by name, from totals (S, C, V) and IoUs by image."""
    found = figures(scores.sums, totals, include_background=scores.include_background)
    return found | resampled_figures(ious, weights, scores.worst)


def intervals(
    estimates: Mapping[str, float],
    draws: Mapping[str, np.ndarray],
    supports: Mapping[str, int],
    level: float,
) -> dict[str, Interval]:
    """Percentile intervals of figures; NaN where one rests on fewer than two images."""
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


def few_instances(
    table: InstanceTable,
    class_names: Sequence[str],
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    *,
    stuff: Collection[int] = (0,),
    minimum: int = MINIMUM_INSTANCES,
) -> list[FewInstances]:
    """List the thing classes and sizes with fewer than ``minimum`` instances, by size, then class.

    Those without any instance are listed, too: they are in no mean, so that the figures of two
    sizes are means over different classes.
    """
    positions, count = table.size_of(size_bins), len(class_names)
    found = []
    for position, size in enumerate(size_bins):
        chosen = table.category_id[(positions == position) & table.things]
        numbers = np.bincount(chosen, minlength=count).tolist()
        found += [
            FewInstances(class_names[category], size, numbers[category])
            for category in range(count)
            if category not in stuff and numbers[category] < minimum
        ]
    return found


def few_instances_warnings(found: Sequence[FewInstances]) -> list[str]:
    """Say, a sentence for every size, on how few instances its mean rests."""
    sentences = []
    for size in dict.fromkeys(one.size for one in found):
        few = [one for one in found if one.size == size and one.instances]
        none = sum(one.size == size and not one.instances for one in found)
        if few:
            names = [f"{one.category} ({one.instances})" for one in few]
            sentences.append(
                f"IA-mIoU_{size} rests on fewer than {MINIMUM_INSTANCES} instances of each of"
                f" {len(few)} class(es): {listed(names)}."
            )
        if none:
            sentences.append(
                f"IA-mIoU_{size} leaves out {none} class(es) without such an instance."
            )
    return sentences


def bootstrap_weights(images: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw N = ``images`` images with replacement, ``samples`` times, block by block.

    Yields:
        float64 (S, N), how often each image is in; every row sums to N.
    """
    generator = np.random.default_rng([seed, 0])
    for size in _block_sizes(images, samples):
        drawn = generator.integers(0, images, size=(size, images))
        # Counted into an array by image, then resample; see JointSums.totals.
        drawn *= size
        drawn += np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * images)
        yield counts.reshape(images, size).astype(np.float64).T


def swap_weights(images: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw which of N images two methods keep (1) or swap (0), block by block.

    If ``2**N <= samples`` (see :func:`is_complete`), every pattern comes exactly once instead.

    Yields:
        float64 (S, N) of 0 and 1.
    """
    if is_complete(images, samples):
        patterns = np.arange(1 << images)[:, None] >> np.arange(images)
        yield (patterns & 1).astype(np.float64)
        return
    generator = np.random.default_rng([seed, 1])
    for size in _block_sizes(images, samples):
        kept = generator.random((size, images)) < 0.5
        yield kept.astype(np.float64, order="F")


def is_complete(images: int, samples: int) -> bool:
    """True if ``samples`` suffice for all patterns of swaps of that many images."""
    return images < 60 and 1 << images <= samples


def number_of_swaps(images: int, samples: int) -> int:
    """Number of draws that :func:`swap_weights` gives."""
    return 1 << images if is_complete(images, samples) else samples


def check_settings(samples: int, seed: int, level: float) -> None:
    """Check that ``samples`` >= 1 and ``seed`` >= 0 are ints, and ``level`` in (0, 1)."""
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, e.g. 0.95, got {level!r}")


def _block_sizes(images: int, samples: int) -> Iterator[int]:
    """Sizes of blocks of rows that add up to ``samples``."""
    size = max(1, _BLOCK_CELLS // images)
    for start in range(0, samples, size):
        yield min(size, samples - start)
