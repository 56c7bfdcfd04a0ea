"""Figures by image: IoU averaged over images, and over the worst of them.

After Wang et al., "Revisiting Evaluation Metrics for Semantic Segmentation" (NeurIPS 2023, data
sets and benchmarks); see docs/method.md#image-and-class-means. Unlike mIoU over the data set, a
large image or object counts no more here than a small one.

Shapes: N images; C classes; P pairs of an image and a class that is present in it; S resamples of
one block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from d2_smallobj.metrics.image_sums import fixed_point
from d2_smallobj.metrics.records import PixelTable

WORST_PERCENT = 5
"""Share of images that the worst cases are taken from, in percent."""


@dataclasses.dataclass(frozen=True)
class ImageIoUs:
    """IoU by image, and by class and image, each list with the smallest first.

    Attributes:
        images: int64 (n_g,) by list, positions of images; first the list of images (mean IoU of
            the classes present), then one for every class, empty where it is present nowhere.
        values: float64 (n_g,) by list, 0..1, ascending.
    """

    images: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    @property
    def support(self) -> int:
        """Number of images that the figures rest on."""
        return len(self.images[0])

    def rounded(self) -> ImageIoUs:
        """Round the values so that their sums over resamples are exact, in any order."""
        bound = float(self.support)
        return dataclasses.replace(self, values=tuple(fixed_point(v, bound) for v in self.values))


def figure_names(worst: int) -> list[str]:
    """Names of the figures, in the order of all tables."""
    return ["mIoU_I", "mIoU_C", f"mIoU_I@{worst}", f"mIoU_C@{worst}"]


def check_worst(worst: int) -> int:
    """Check the share of worst images: a whole number of percent in 1..100, or ValueError."""
    whole = isinstance(worst, (int, np.integer)) and not isinstance(worst, bool)
    if not whole or not 1 <= worst <= 100:
        raise ValueError(f"worst must be a whole number of percent in 1..100, got {worst!r}")
    return int(worst)


def image_ious(pixels: PixelTable, images: np.ndarray, num_classes: int) -> ImageIoUs:
    """Compute the IoU of every image and class; ``images`` are all ids, sorted."""
    present = pixels.select(pixels.ground_truth > 0)
    image = np.searchsorted(images, present.image_id)
    order = np.lexsort((present.category_id, image))
    image, category, iou = image[order], present.category_id[order], present.iou[order]
    held, first, number = np.unique(image, return_index=True, return_counts=True)
    means = np.add.reduceat(iou, first) / number if len(held) else np.zeros(0)
    lists = [_ascending(held, means)]
    order = np.argsort(category, kind="stable")
    ends = np.searchsorted(category[order], np.arange(num_classes + 1)).tolist()
    for start, end in zip(ends[:-1], ends[1:]):
        chosen = order[start:end]
        lists.append(_ascending(image[chosen], iou[chosen]))
    return ImageIoUs(tuple(part[0] for part in lists), tuple(part[1] for part in lists))


def plain_figures(ious: ImageIoUs, worst: int) -> dict[str, float]:
    """Compute the figures of the data set, in percent; NaN where no class is present."""
    means = [_mean(values) for values in ious.values]
    lows = [_mean(values[: _share(len(values), worst)]) for values in ious.values]
    figures = (means[0], _mean(_defined(means[1:])), lows[0], _mean(_defined(lows[1:])))
    return {name: 100.0 * value for name, value in zip(figure_names(worst), figures)}


def resampled_figures(ious: ImageIoUs, weights: np.ndarray, worst: int) -> dict[str, np.ndarray]:
    """Compute the figures of resamples, percent (S,); NaN where the resample has no class.

    ``ious`` are rounded, so that sums are exact; ``weights``, float64 (S, N), are whole numbers:
    how often each image is in.
    """
    by_image = weights.T
    columns = [
        _list_figures(values, by_image[index], worst)
        for index, values in zip(ious.images, ious.values)
        if len(index)
    ]
    undefined = np.full(len(weights), np.nan)
    if not columns:
        return dict.fromkeys(figure_names(worst), undefined)
    found = []
    for part in (0, 1):
        by_class = np.stack([column[part] for column in columns[1:]])
        defined = ~np.isnan(by_class)
        number = defined.sum(axis=0)
        total = np.where(defined, by_class, 0.0).sum(axis=0)
        mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
        found += [columns[0][part], mean]
    return {name: 100.0 * values for name, values in zip(figure_names(worst), found)}


def joined(first: ImageIoUs, second: ImageIoUs, images: int) -> ImageIoUs:
    """Put two methods' lists together, the second's images numbered from ``images`` on."""
    pairs = [
        _ascending(np.concatenate([index, others + images]), np.concatenate([values, more]))
        for index, others, values, more in zip(
            first.images, second.images, first.values, second.values
        )
    ]
    return ImageIoUs(tuple(part[0] for part in pairs), tuple(part[1] for part in pairs))


def _ascending(index: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((index, values))
    return index[order], values[order]


def _share(number: int, worst: int) -> int:
    """Number of worst cases among so many: whole, at least one."""
    return max(1, worst * number // 100)


def _mean(values: np.ndarray | Sequence[float]) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan


def _defined(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _list_figures(
    values: np.ndarray, weights: np.ndarray, worst: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean of the worst cases of one list, float64 (S,), from weights (n, S)."""
    number = weights.sum(axis=0)
    below = np.maximum(number, 1)
    share = np.maximum(np.floor(worst * number / 100), 1)
    # The worst cases lie at the front; how far they reach depends on the resample.
    length = min(len(values), 2 * _share(len(values), worst) + 50)
    while True:
        counted = np.minimum(weights[:length].cumsum(axis=0), share)
        if length == len(values) or (counted[-1] == share).all():
            break
        length = len(values)
    # Σ v_i (n_i − n_{i−1}) by parts, n_i being the running number of cases.
    steps = np.append(values[: length - 1] - values[1:length], values[length - 1])
    mean = np.where(number > 0, values @ weights / below, np.nan)
    return mean, np.where(number > 0, steps @ counted / share, np.nan)
