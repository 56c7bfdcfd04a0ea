"""Sums by image and class, from which the figures of resampled images are computed.

Every headline figure is a function of sums over images, so all resamples together are one matrix
product. IoUs are held as integer multiples of a power of two, which makes every sum exact in
float64: neither the number of threads, nor the linear algebra library, nor the size of a block of
resamples can change a bit.

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

Figures = dict[str, np.ndarray]
"""Resampled figures in percent, float64 (S,) by name."""


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
        """Sum over the images of every resample.

        Args:
            weights: float64 (S, N), whole numbers: how often each image is in.

        Returns:
            float64 (M, S, C, V), exact.
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
    table, pixels = run.table, run.pixels
    image, pixel_image = (np.searchsorted(names, x.image_id) for x in (table, pixels))
    iou = fixed_point(table.iou, _largest_sum(image, table.category_id, num_classes, len(names)))
    group = np.where(table.things, table.size_of(size_bins), -1)
    found = table.iou >= FOUND_IOU
    counts = (pixels.intersection, pixels.ground_truth, pixels.predicted)
    records = _by_class(table.category_id, num_classes)
    rows = _by_class(pixels.category_id, num_classes)
    index, values = [], []
    for chosen, counted in zip(records, rows):
        held, place = np.unique(
            np.concatenate([pixel_image[counted], image[chosen]]), return_inverse=True
        )
        place = place.ravel()
        sums = np.stack(
            [np.bincount(place[: len(counted)], column[counted], len(held)) for column in counts],
            axis=1,
        )
        parts = _record_sums(
            place[len(counted) :],
            (iou[chosen], found[chosen], group[chosen]),
            len(held),
            len(size_bins),
        )
        index.append(held)
        values.append(np.concatenate([sums, parts], axis=1))
    things = ~np.isin(np.arange(num_classes), list(stuff))
    return ImageSums(tuple(names.tolist()), tuple(size_bins), tuple(index), tuple(values), things)


def sorted_images(run: Run, num_classes: int) -> np.ndarray:
    """Sort the ids of a run's images, str (N,), and check that its tables go with them.

    Raises:
        ValueError: as :func:`image_sums`.
    """
    names = np.asarray([str(image) for image in run.images], np.str_)
    unique, number = np.unique(names, return_counts=True)
    if np.any(number > 1):
        raise ValueError(f"images must be distinct, got again {listed(unique[number > 1])}")
    for what, table in (("table", run.table), ("pixels", run.pixels)):
        strange = np.setdiff1d(table.image_id, unique)
        if len(strange):
            raise ValueError(f"images lacks images of the {what}: {listed(strange)}")
        highest = table.category_id.max(initial=0)
        if highest >= num_classes:
            raise ValueError(f"{what}: category_id must be in 0..{num_classes - 1}, got {highest}")
    return unique


def figures(sums: ImageSums, totals: np.ndarray, *, include_background: bool = True) -> Figures:
    """Compute the figures that are ratios of sums, of every resample, in percent.

    Args:
        sums: the sums by image.
        totals: float64 (S, C, V), see :meth:`JointSums.totals`.
        include_background: count stuff classes in ``IA-mIoU``.

    Returns:
        float64 (S,) by name: ``mIoU``, ``IA-mIoU``, ``IA-mIoU_fg``, ``IA-mIoU_S``, ...,
        ``recall``, ``recall_S``, ..., ``mRecall``, .... Means go over the classes that the
        resample has; NaN where it has none.
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


def _largest_sum(image: np.ndarray, category: np.ndarray, num_classes: int, images: int) -> float:
    """Bound on the records of a class in a resample: the fullest image drawn every time."""
    counts = np.bincount(image * num_classes + category)
    return float(images) * float(counts.max(initial=0))


def _by_class(category: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Positions of the rows of every class, in their order."""
    order = np.argsort(category, kind="stable")
    return np.split(order, np.searchsorted(category[order], np.arange(1, num_classes)))


def _record_sums(
    place: np.ndarray, columns: tuple[np.ndarray, np.ndarray, np.ndarray], length: int, sizes: int
) -> np.ndarray:
    """Sum one class's records by row (``place``), all and by size: (length, 3 + 3 sizes).

    The columns are IoU, 1 where the record is found, and size bin (-1: none).
    """
    iou, found, group = columns
    sums = []
    for position in range(-1, sizes):
        chosen = np.ones(len(place), bool) if position < 0 else group == position
        where = place[chosen]
        sums.append(np.bincount(where, minlength=length))
        sums.append(np.bincount(where, weights=iou[chosen], minlength=length))
        sums.append(np.bincount(where, weights=found[chosen], minlength=length))
    return np.stack(sums, axis=1).astype(np.float64)


def _mean_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean over classes of ``100 above / below`` where below > 0: (S, C) and (S, C) to (S,)."""
    defined = below > 0
    ratios = np.divide(100.0 * above, below, out=np.zeros(below.shape), where=defined)
    number = defined.sum(axis=1)
    mean = ratios.sum(axis=1) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)
