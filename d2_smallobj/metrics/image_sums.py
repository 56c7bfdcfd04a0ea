"""Sums and IoUs by image, from which the figures of resampled images are computed.

Most headline figures are functions of sums over images, so all resamples together are one matrix
product. IoUs are held as integer multiples of a power of two, which makes every sum exact in
float64: neither the number of threads, nor the linear algebra library, nor the size of a block of
resamples can change a bit. The means over images and over the worst of them (Wang et al.,
"Revisiting Evaluation Metrics for Semantic Segmentation", NeurIPS 2023, data sets and benchmarks;
docs/method.md#image-and-class-means) rest on sorted lists of IoUs instead.

Shapes: N images; C classes; G groups (all, then the size bins); M methods; S resamples of one
block; V = 3 + 3 G sums of one image and class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from d2_smallobj.metrics.records import FOUND_IOU, InstanceTable, PixelTable
from d2_smallobj.utils.messages import listed

# Integers up to 2**53 are exact in float64; two bits are left for sums of sums.
_EXACT_BITS = 51


class Run(Protocol):
    """A method's records on a data set; :class:`d2_smallobj.metrics.Accumulator` is one."""

    @property
    def table(self) -> InstanceTable:
        """One record per instance, and per image and stuff class."""

    @property
    def pixels(self) -> PixelTable:
        """Pixel counts by image and class."""

    @property
    def images(self) -> Sequence[str]:
        """N distinct ids; those without records included."""


@dataclasses.dataclass(frozen=True)
class ImageSums:
    """Sums of every image, which add up to the figures.

    Attributes:
        images: ids, sorted; a resample's weights are in this order.
        size_names: names of the size bins.
        index: by class, int64 (n_c,): positions of the images that have the class in truth or
            prediction.
        values: by class, float64 (n_c, V): intersection, truth and predicted pixels, then for
            all records and for every size bin the number of records, their summed IoU, and the
            number of those of an IoU of at least 0.5.
        things: bool (C,), classes of objects; the others are stuff.
    """

    images: tuple[str, ...]
    size_names: tuple[str, ...]
    index: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    things: np.ndarray

    def supports(self) -> dict[str, int]:
        """Number of images that each figure of :func:`figures` rests on, by name."""

        def count(classes: Sequence[int], column: int) -> int:
            held = [self.index[c][self.values[c][:, column] > 0] for c in classes]
            return len(np.unique(np.concatenate([np.zeros(0, np.int64), *held])))

        everything, things = range(len(self.index)), np.flatnonzero(self.things).tolist()
        numbers = {"mIoU": count(everything, 1), "IA-mIoU": count(everything, 3)}
        sizes = [count(things, 3 + 3 * place) for place in range(len(self.size_names) + 1)]
        for name in ("IA-mIoU_fg", "recall", "mRecall"):
            numbers[name] = sizes[0]
        for name, number in zip(self.size_names, sizes[1:]):
            for figure in ("IA-mIoU", "recall", "mRecall"):
                numbers[f"{figure}_{name}"] = number
        return numbers


@dataclasses.dataclass(frozen=True)
class JointSums:
    """Sums over the images of several methods at once, M of them.

    Ground truth is the same for all methods and some sizes are empty, so that many columns are
    equal: each is added up once.

    Attributes:
        methods: M.
        index: by class, int64 (n_c,): positions of the images that add anything.
        values: by class, float64 (n_c, U_c): the distinct columns.
        place: by class, int64 (M V,): which of them each sum of each method is.
    """

    methods: int
    index: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    place: tuple[np.ndarray, ...]

    def totals(self, weights: np.ndarray) -> np.ndarray:
        """Sum over the images of every resample: float64 (M, S, C, V), exact.

        ``weights``, float64 (S, N), are whole numbers: how often each image is in.
        """
        # Image by image, so that whole rows are gathered: the weights come in that order.
        by_image = weights.T
        parts = np.stack(
            [
                (values.T @ by_image[index])[place]
                for index, values, place in zip(self.index, self.values, self.place)
            ]
        )
        classes, _, samples = parts.shape
        return parts.reshape(classes, self.methods, -1, samples).transpose(1, 3, 0, 2)


def joint_sums(sums: Sequence[ImageSums], *, relative: bool = False) -> JointSums:
    """Put the sums of several methods on the same images together.

    ``relative`` subtracts the first method's from all: what they have in common costs nothing then.
    """
    index, values, place = [], [], []
    for category in range(len(sums[0].index)):
        held = np.unique(np.concatenate([method.index[category] for method in sums]))
        width = sums[0].values[category].shape[1]
        rows = np.zeros((len(sums), len(held), width))
        for method, row in zip(sums, rows):
            row[np.searchsorted(held, method.index[category])] = method.values[category]
        if relative:
            rows = rows - rows[0]
        adding = rows.any(axis=(0, 2))
        columns = rows[:, adding].transpose(0, 2, 1).reshape(len(sums) * width, -1)
        known: dict[bytes, int] = {}
        number = [known.setdefault(column.tobytes(), len(known)) for column in columns]
        first = np.unique(number, return_index=True)[1]
        index.append(held[adding])
        values.append(np.ascontiguousarray(columns[first].T))
        place.append(np.asarray(number, np.int64))
    return JointSums(len(sums), tuple(index), tuple(values), tuple(place))


def image_sums(
    run: Run,
    *,
    num_classes: int,
    size_bins: Mapping[str, float],
    stuff: Collection[int] = (0,),
) -> ImageSums:
    """Sum the records and counts of every image.

    Raises:
        ValueError: if an id comes twice, a record's image is not among the images, or its
            category is not below ``num_classes``.
    """
    names = sorted_images(run, num_classes)
    table, pixels, images = run.table, run.pixels, len(names)
    # Pairs of class and image that occur, and which of them each row belongs to.
    pairs = [x.category_id * images + np.searchsorted(names, x.image_id) for x in (pixels, table)]
    cells, place = np.unique(np.concatenate(pairs), return_inverse=True)
    counted, recorded = np.split(place.ravel(), [len(pixels)])
    # No sum is larger than if the fullest image were drawn every time.
    iou = fixed_point(table.iou, float(images) * np.bincount(recorded, minlength=1).max())
    size = np.where(table.things, table.size_of(size_bins), -1)
    sums = [
        np.bincount(counted, column, len(cells))
        for column in (pixels.intersection, pixels.ground_truth, pixels.predicted)
    ]
    everything = np.ones(len(table), bool)
    for chosen in (everything, *(size == position for position in range(len(size_bins)))):
        for column in (chosen, chosen * iou, chosen & (table.iou >= FOUND_IOU)):
            sums.append(np.bincount(recorded, column, len(cells)))
    ends = np.searchsorted(cells, images * np.arange(1, num_classes))
    index = np.split(cells % max(images, 1), ends)
    values = np.split(np.stack(sums, axis=1), ends)
    things = ~np.isin(np.arange(num_classes), list(stuff))
    return ImageSums(tuple(names.tolist()), tuple(size_bins), tuple(index), tuple(values), things)


def sorted_images(run: Run, num_classes: int) -> np.ndarray:
    """Sort the ids of a run's images, str (N,); errors as :func:`image_sums`."""
    names = np.asarray([str(image) for image in run.images], np.str_)
    unique, number = np.unique(names, return_counts=True)
    if np.any(number > 1):
        raise ValueError(f"images must be distinct, got again {listed(unique[number > 1])}")
    for what, table in (("table", run.table), ("pixels", run.pixels)):
        strange = np.setdiff1d(table.image_id, unique)
        if len(strange):
            raise ValueError(f"images lacks images of the {what}: {listed(strange)}")
        table.check_categories(what, num_classes)
    return unique


def figures(
    sums: ImageSums, totals: np.ndarray, *, include_background: bool = True
) -> dict[str, np.ndarray]:
    """Compute the figures that are ratios of sums, of every resample, in percent.

    ``totals`` are float64 (S, C, V); see :meth:`JointSums.totals`. Returns float64 (S,) by name:
    ``mIoU``, ``IA-mIoU`` (with ``include_background``, stuff classes count), ``IA-mIoU_fg``,
    ``IA-mIoU_S``, ..., ``recall``, ``recall_S``, ..., ``mRecall``, .... Means go over the classes
    that the resample has; NaN where it has none.
    """
    hit, truth, predicted = totals[..., 0], totals[..., 1], totals[..., 2]
    things = totals[:, sums.things]
    counted = totals if include_background else things
    result = {
        "mIoU": _mean_ratio(np.where(truth > 0, hit, 0), (truth + predicted - hit) * (truth > 0)),
        "IA-mIoU": _mean_ratio(counted[..., 4], counted[..., 3]),
    }
    recall, mean_recall = {}, {}
    for position, size in enumerate(["_fg", *(f"_{name}" for name in sums.size_names)]):
        number, summed, found = (things[..., 3 + 3 * position + part] for part in range(3))
        result[f"IA-mIoU{size}"] = _mean_ratio(summed, number)
        size = size if position else ""
        recall[f"recall{size}"] = _mean_ratio(
            found.sum(axis=1, keepdims=True), number.sum(axis=1, keepdims=True)
        )
        mean_recall[f"mRecall{size}"] = _mean_ratio(found, number)
    return {**result, **recall, **mean_recall}


def fixed_point(values: np.ndarray, largest_sum: float) -> np.ndarray:
    """Round values in -1..1 to multiples of a power of two, so that all sums are exact in float64.

    ``largest_sum`` bounds the sum of magnitudes in any resample.
    """
    scale = 2.0 ** min(40, _EXACT_BITS - math.ceil(math.log2(max(largest_sum, 1))))
    return np.round(values * scale) / scale


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
    """Names of the figures by image, in the order of all tables."""
    return ["mIoU_I", "mIoU_C", f"mIoU_I@{worst}", f"mIoU_C@{worst}"]


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


def resampled_figures(ious: ImageIoUs, weights: np.ndarray, worst: int) -> dict[str, np.ndarray]:
    """Compute the figures of resamples, percent (S,); NaN where the resample has no class.

    ``ious`` are rounded, so that sums are exact; ``weights`` are those of :meth:`JointSums.totals`.
    """
    by_image = weights.T
    lists = zip(ious.images, ious.values)
    columns = [_list_figures(v, by_image[index], worst) for index, v in lists if len(index)]
    if not columns:
        return dict.fromkeys(figure_names(worst), np.full(len(weights), np.nan))
    found = []
    for by_list in np.moveaxis(np.array(columns), 1, 0):
        defined = ~np.isnan(by_list[1:])
        number = defined.sum(axis=0)
        total = np.where(defined, by_list[1:], 0.0).sum(axis=0)
        found += [by_list[0], np.where(number > 0, total / np.maximum(number, 1), np.nan)]
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


def worst_cases(number: int, worst: int) -> int:
    """Number of worst cases among so many: whole, at least one."""
    return max(1, worst * number // 100)


def _ascending(index: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((index, values))
    return index[order], values[order]


def _mean_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean over classes of ``100 above / below`` where below > 0: (S, C) and (S, C) to (S,)."""
    defined = below > 0
    ratios = np.divide(100.0 * above, below, out=np.zeros(below.shape), where=defined)
    number = defined.sum(axis=1)
    mean = ratios.sum(axis=1) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def _list_figures(
    values: np.ndarray, weights: np.ndarray, worst: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean of the worst cases of one list, float64 (S,), from weights (n, S)."""
    number = weights.sum(axis=0)
    below = np.maximum(number, 1)
    share = np.maximum(np.floor(worst * number / 100), 1)
    # The worst cases lie at the front; how far they reach depends on the resample.
    length = min(len(values), 2 * worst_cases(len(values), worst) + 50)
    while True:
        counted = np.minimum(weights[:length].cumsum(axis=0), share)
        if length == len(values) or (counted[-1] == share).all():
            break
        length = len(values)
    # Σ v_i (n_i − n_{i−1}) by parts, n_i being the running number of cases.
    steps = np.append(values[: length - 1] - values[1:length], values[length - 1])
    mean = np.where(number > 0, values @ weights / below, np.nan)
    return mean, np.where(number > 0, steps @ counted / share, np.nan)
