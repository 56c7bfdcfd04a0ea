"""What every image adds to the figures: sums that any weights of images can be applied to.

Every headline figure is a function of sums over images, so all resamples together are one matrix
product. IoUs are held as integer multiples of a power of two, which makes every sum exact in
float64: neither the number of threads, nor the linear algebra library, nor the size of a block of
resamples can change a bit.

Shapes: N images; C classes, background included; G groups (all, then the size bins); M methods;
S resamples of one block; V = 3 + 2 G sums of one image and class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from d2_smallobj.metrics.records import BACKGROUND, InstanceTable
from d2_smallobj.metrics.validation import first_ten

# Integers up to 2**53 are exact in float64; two bits are left for sums of sums.
_EXACT_BITS = 51


class Run(Protocol):
    """A method's records on a data set; :class:`d2_smallobj.metrics.Accumulator` is one."""

    @property
    def table(self) -> InstanceTable:
        """One record per instance, and per image with background."""

    @property
    def image_counts(self) -> np.ndarray:
        """int64 (N, C, 3): intersection, ground-truth and predicted pixels."""

    @property
    def images(self) -> Sequence[str]:
        """N distinct ids in the order of ``image_counts``."""


@dataclasses.dataclass(frozen=True)
class ImageSums:
    """What every image adds to the figures.

    Attributes:
        images: ids, sorted; a resample's weights are in this order.
        size_names: names of the size bins.
        index: by class, int64 (n_c,): positions of the images that have the class in truth or
            prediction.
        values: by class, float64 (n_c, V): intersection, truth and predicted pixels, then for
            all records and for every size bin the number of records and their summed IoU.
    """

    images: tuple[str, ...]
    size_names: tuple[str, ...]
    index: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    def supports(self) -> dict[str, int]:
        """Number of images that each headline figure rests on, by name."""

        def count(classes: range, column: int) -> int:
            held = [self.index[c][self.values[c][:, column] > 0] for c in classes]
            return len(np.unique(np.concatenate([np.zeros(0, np.int64), *held])))

        everything, foreground = range(len(self.index)), range(1, len(self.index))
        numbers = {"mIoU": count(everything, 1), "IA-mIoU": count(everything, 3)}
        numbers["IA-mIoU_fg"] = count(foreground, 3)
        for position, name in enumerate(self.size_names, start=1):
            numbers[f"IA-mIoU_{name}"] = count(foreground, 3 + 2 * position)
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

    Args:
        sums: one entry a method.
        relative: take the first method's from all of them; what the methods have in common is
            then 0 and costs nothing.
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
    table: InstanceTable,
    image_counts: np.ndarray,
    images: Sequence[str],
    *,
    num_classes: int,
    size_bins: Mapping[str, float],
) -> ImageSums:
    """Sum the records and counts of every image; the order of images leaves no trace.

    Args:
        table: the records.
        image_counts: integers (N, C, 3): intersection, ground-truth and predicted pixels.
        images: N distinct ids, in the order of ``image_counts``; those without records included.
        num_classes: C.
        size_bins: exclusive upper bounds by name.

    Raises:
        ValueError: if shapes do not fit, an id comes twice, a record's image is not among
            ``images``, or its category is not below ``num_classes``.
    """
    names = np.asarray([str(image) for image in images], np.str_)
    counts = np.asarray(image_counts)
    _check(table, counts, names, num_classes)
    order = np.argsort(names, kind="stable")
    names, counts = names[order], counts[order].astype(np.float64)
    image = np.searchsorted(names, table.image_id)
    iou = fixed_point(table.iou, _largest_sum(image, table.category_id, num_classes, len(names)))
    group = np.where(table.category_id == BACKGROUND, -1, table.size_of(size_bins))
    index, values = [], []
    for category in range(num_classes):
        chosen = table.category_id == category
        sums = _record_sums(image[chosen], iou[chosen], group[chosen], len(names), len(size_bins))
        rows = np.concatenate([counts[:, category], sums], axis=1)
        held = np.flatnonzero(rows.any(axis=1))
        index.append(held)
        values.append(rows[held])
    return ImageSums(tuple(names.tolist()), tuple(size_bins), tuple(index), tuple(values))


def figures(
    totals: np.ndarray, size_names: Sequence[str], *, include_background: bool = True
) -> dict[str, np.ndarray]:
    """Compute the headline figures of every resample, in percent.

    Args:
        totals: float64 (S, C, V), see :meth:`JointSums.totals`.
        size_names: names of the size bins.
        include_background: whether the background is a class of ``IA-mIoU``.

    Returns:
        float64 (S,) by name, in the order of :func:`d2_smallobj.metrics.summarize`: ``mIoU``,
        ``IA-mIoU``, ``IA-mIoU_fg``, ``IA-mIoU_S``, ... . Means go over the classes that the
        resample has; NaN where it has none.
    """
    hit, truth, predicted = totals[..., 0], totals[..., 1], totals[..., 2]
    first = 0 if include_background else BACKGROUND + 1
    result = {
        "mIoU": _mean_ratio(np.where(truth > 0, hit, 0), (truth + predicted - hit) * (truth > 0)),
        "IA-mIoU": _mean_ratio(totals[:, first:, 4], totals[:, first:, 3]),
    }
    for position, name in enumerate(["fg", *size_names]):
        column = 3 + 2 * position
        result[f"IA-mIoU_{name}"] = _mean_ratio(
            totals[:, BACKGROUND + 1 :, column + 1], totals[:, BACKGROUND + 1 :, column]
        )
    return result


def fixed_point(values: np.ndarray, largest_sum: float) -> np.ndarray:
    """Round to multiples of the smallest power of two that keeps all sums exact in float64.

    Args:
        values: float64 of any shape, of magnitude at most 1.
        largest_sum: bound on the sum of magnitudes in any resample.
    """
    scale = 2.0 ** min(40, _EXACT_BITS - math.ceil(math.log2(max(largest_sum, 1))))
    return np.round(values * scale) / scale


def _largest_sum(image: np.ndarray, category: np.ndarray, num_classes: int, images: int) -> float:
    """Bound on the records of a class in a resample: the fullest image drawn every time."""
    counts = np.bincount(image * num_classes + category)
    return float(images) * float(counts.max(initial=0))


def _record_sums(
    image: np.ndarray, iou: np.ndarray, group: np.ndarray, images: int, sizes: int
) -> np.ndarray:
    """Number and summed IoU of one class's records, all and by size: float64 (N, 2 + 2 sizes)."""
    columns = []
    for position in range(-1, sizes):
        chosen = np.ones(len(image), bool) if position < 0 else group == position
        columns.append(np.bincount(image[chosen], minlength=images))
        columns.append(np.bincount(image[chosen], weights=iou[chosen], minlength=images))
    return np.stack(columns, axis=1).astype(np.float64)


def _mean_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean over classes of ``100 above / below`` where below > 0: (S, C) and (S, C) to (S,)."""
    defined = below > 0
    ratios = np.divide(100.0 * above, below, out=np.zeros(below.shape), where=defined)
    number = defined.sum(axis=1)
    mean = ratios.sum(axis=1) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def _check(table: InstanceTable, counts: np.ndarray, names: np.ndarray, num_classes: int) -> None:
    """Check that table, counts and image ids belong together."""
    if counts.shape != (len(names), num_classes, 3) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"image_counts must be integers of shape ({len(names)}, {num_classes}, 3) for"
            f" {len(names)} images and {num_classes} classes, got {counts.dtype} {counts.shape}"
        )
    unique, number = np.unique(names, return_counts=True)
    if np.any(number > 1):
        raise ValueError(f"images must be distinct, got again {first_ten(unique[number > 1])}")
    strange = np.setdiff1d(table.image_id, unique)
    if len(strange):
        raise ValueError(f"images lacks images of the table: {first_ten(strange)}")
    highest = table.category_id.max(initial=0)
    if highest >= num_classes:
        raise ValueError(f"table: category_id must be in 0..{num_classes - 1}, got {highest}")
