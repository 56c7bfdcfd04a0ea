"""Figures in percent, and outcomes of instances, as functions of the record tables.

Shapes: C number of classes; R number of records; N number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.metrics.image_sums import figure_names, image_ious, worst_cases
from d2_smallobj.metrics.records import (
    COCO_SIZE_BINS,
    FOUND_IOU,
    BlobTable,
    InstanceTable,
    PixelTable,
    as_size_bins,
)
from d2_smallobj.metrics.validation import check_stuff

WORST_PERCENT = 5
"""Share of images that the worst cases are taken from, in percent."""
OUTCOMES = ("good", "partial", "fragmented", "merged", "missed")
_GOOD, _PARTIAL, _FRAGMENTED, _MERGED, _MISSED = range(len(OUTCOMES))


def check_worst(worst: int) -> int:
    """Check the share of worst images: a whole number of percent in 1..100, or ValueError."""
    whole = isinstance(worst, (int, np.integer)) and not isinstance(worst, bool)
    if not whole or not 1 <= worst <= 100:
        raise ValueError(f"worst must be a whole number of percent in 1..100, got {worst!r}")
    return int(worst)


def headline_names(size_bins: Iterable[str], worst: int = WORST_PERCENT) -> list[str]:
    """Names of the figures of a data set, in the order of all tables."""
    sizes = [f"_{name}" for name in size_bins]
    names = ["mIoU", "IA-mIoU", "IA-mIoU_fg", *(f"IA-mIoU{size}" for size in sizes)]
    names += figure_names(worst)
    return names + [f"{recall}{size}" for recall in ("recall", "mRecall") for size in ["", *sizes]]


def split_headline(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split the figures of a data set: mIoU and IA-mIoU by size, and the others."""
    names = list(names)
    first = [name for name in names if name == "mIoU" or name.startswith("IA-mIoU")]
    return first, [name for name in names if name not in first]


def summarize(
    table: InstanceTable,
    pixels: PixelTable,
    class_names: Sequence[str],
    *,
    stuff: Collection[int] = (0,),
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    worst: int = WORST_PERCENT,
    images: int | None = None,
) -> dict[str, float]:
    """Compute mIoU, the instance-aware figures, and those that go by image.

    ``IA-IoU_c`` is the mean IoU over all instances of class c in the data set, ``IA-mIoU`` the
    mean of it over the classes that have instances. A figure without any instance to rest on is
    NaN, never 0. Means are exactly rounded sums: the order of records does not show. The
    definitions are in docs/method.md.

    Args:
        table: one record per instance, and per image and stuff class.
        pixels: pixel counts by image and class.
        class_names: C names.
        stuff: ids of the stuff classes.
        size_bins: exclusive upper bound of the area in pixels by bin name, ascending.
        worst: share of the worst images, in percent, for the figures with ``@``.
        images: number of images; default: those that have a pixel count.

    Returns:
        In this order, with one entry per bin of ``size_bins`` where S is written:
        ``mIoU`` (over classes present in the ground truth, stuff included),
        ``IA-mIoU`` (a stuff class is one more class, one record per image),
        ``IA-mIoU_fg`` (things only), ``IA-mIoU_S``, ...;
        ``mIoU_I``, ``mIoU_C``, ``mIoU_I@5``, ``mIoU_C@5`` (means over images, and over the worst
        5 %); ``recall``, ``recall_S``, ... (share of instances with IoU >= 0.5) and ``mRecall``,
        ``mRecall_S``, ... (mean over classes); ``images``, ``instances`` (things only, so that
        the sizes sum to it), ``instances_S``, ...; then for every class ``IoU-<name>``,
        ``IA-IoU-<name>``, ``IA-IoU_S-<name>``, ..., ``instances-<name>``,
        ``instances_S-<name>``, ... (no sizes for stuff).

    Raises:
        ValueError: if names and categories do not fit together, if names are not distinct, if a
            bin is called ``fg``, or if bounds do not ascend.
    """
    names = list(class_names)
    stuff = check_stuff(stuff, len(names))
    _check(table, pixels, names, size_bins)
    check_worst(worst)
    things = [category for category in range(len(names)) if category not in stuff]
    iou = class_iou(pixels, len(names))
    sizes = table.size_of(size_bins)
    groups = {"": np.ones(len(table), bool)}
    groups |= {
        f"_{name}": (sizes == position) & table.things for position, name in enumerate(size_bins)
    }
    by_class = {group: _class_means(table, chosen, len(names)) for group, chosen in groups.items()}
    means = {group: [found[0][one] for one in things] for group, found in by_class.items()}
    figures = {
        "mIoU": _mean(iou.tolist()),
        "IA-mIoU": _mean(by_class[""][0]),
        "IA-mIoU_fg": _mean(means[""]),
    }
    figures |= {f"IA-mIoU{group}": _mean(means[group]) for group in groups if group}
    ids = np.unique(pixels.image_id)
    figures |= _image_figures(pixels, ids, len(names), worst)
    figures |= _recall(table, groups, len(names))
    figures["images"] = len(ids) if images is None else images
    counts = {group: [found[1][one] for one in things] for group, found in by_class.items()}
    figures |= {f"instances{group}": sum(counts[group]) for group in groups}
    for category, name in enumerate(names):
        shown = [group for group in groups if not group or category not in stuff]
        figures[f"IoU-{name}"] = iou[category]
        figures |= {f"IA-IoU{group}-{name}": by_class[group][0][category] for group in shown}
        figures |= {f"instances{group}-{name}": by_class[group][1][category] for group in shown}
    return {key: float(value) for key, value in figures.items()}


def _image_figures(
    pixels: PixelTable, images: np.ndarray, num_classes: int, worst: int
) -> dict[str, float]:
    """Means of the IoU over images, and over the worst of them; NaN where no class is present."""
    ious = [values.tolist() for values in image_ious(pixels, images, num_classes).values]
    means = [_mean(values) for values in ious]
    lows = [_mean(values[: worst_cases(len(values), worst)]) for values in ious]
    figures = (means[0], _mean(means[1:]), lows[0], _mean(lows[1:]))
    return {name: 100.0 * value for name, value in zip(figure_names(worst), figures)}


def class_iou(pixels: PixelTable, num_classes: int) -> np.ndarray:
    """IoU of every class over the data set, percent (C,); NaN where ground truth has none."""
    hit, truth, predicted = pixels.class_sums(num_classes).T
    union = truth + predicted - hit
    return np.where(truth > 0, 100.0 * hit / np.maximum(union, 1), np.nan)


def classify(table: InstanceTable, *, good: float = FOUND_IOU, missed: float = 0.0) -> np.ndarray:
    """Give every record the first outcome whose rule it meets.

    ``good``: IoU >= ``good``. ``missed``: IoU <= ``missed``, at the default nothing of it was
    found. ``merged``: a component that overlaps it overlaps another instance of its class, too
    (``shared > 0``). ``fragmented``: several components overlap it. ``partial``: one component
    of its own, of too small an IoU. Stuff is classified like any record; the summaries leave it
    out.

    Args:
        table: the records.
        good: IoU from which an instance counts as found, in (0, 1].
        missed: IoU up to which it counts as missed, in [0, good).

    Returns:
        int64 (R,), position in :data:`OUTCOMES`.

    Raises:
        ValueError: if ``0 <= missed < good <= 1`` does not hold.
    """
    if not 0 <= missed < good <= 1:
        raise ValueError(f"0 <= missed < good <= 1 must hold, got missed {missed}, good {good}")
    iou = table.iou
    rules = [iou >= good, iou <= missed, table.shared > 0, table.components > 1]
    return np.select(rules, [_GOOD, _MISSED, _MERGED, _FRAGMENTED], _PARTIAL)


def outcome_summary(
    table: InstanceTable,
    class_names: Sequence[str],
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    *,
    stuff: Collection[int] = (0,),
    good: float = FOUND_IOU,
    missed: float = 0.0,
) -> dict[str, Any]:
    """Count the outcomes of the instances, and the IoU that each cost.

    Args:
        table: the records.
        class_names: C names.
        size_bins: see :meth:`d2_smallobj.metrics.records.InstanceTable.size_of`.
        stuff: ids of the stuff classes.
        good: as for :func:`classify`.
        missed: as for :func:`classify`.

    Returns:
        ``{"all": row, "sizes": {bin: row}, "classes": {name: {"all": row, "sizes": {bin: row}}}}``
        where a row maps each outcome to ``{"instances": int, "lost": float}``, ``lost`` being
        Σ (1 − IoU), exactly rounded. All thing classes are listed. Instances larger than the
        last bin count in ``all`` only.

    Raises:
        ValueError: if a category has no name, or as :func:`classify`.
    """
    outcome, lost = classify(table, good=good, missed=missed), 1.0 - table.iou

    def row(chosen: np.ndarray) -> dict[str, Any]:
        parts = [chosen[outcome[chosen] == position] for position in range(len(OUTCOMES))]
        return {
            name: {"instances": len(part), "lost": math.fsum(lost[part].tolist())}
            for name, part in zip(OUTCOMES, parts)
        }

    return _by_class_and_size(table, class_names, size_bins, stuff, row)


def blob_summary(
    blobs: BlobTable,
    class_names: Sequence[str],
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    *,
    stuff: Collection[int] = (0,),
) -> dict[str, Any]:
    """Count unmatched components and their pixels, by class and by their own size.

    Args and errors are those of :func:`outcome_summary`, and so is the form of the result, a row
    being ``{"blobs": int, "pixels": int}``.
    """

    def row(chosen: np.ndarray) -> dict[str, int]:
        return {"blobs": len(chosen), "pixels": int(blobs.area[chosen].sum())}

    return _by_class_and_size(blobs, class_names, size_bins, stuff, row)


def _by_class_and_size(
    table: InstanceTable | BlobTable,
    class_names: Sequence[str],
    size_bins: Mapping[str, float],
    stuff: Collection[int],
    row: Callable[[np.ndarray], dict[str, Any]],
) -> dict[str, Any]:
    """Apply ``row`` to the positions of all thing records, of each size, class, and both."""
    bins = as_size_bins(size_bins)
    size = table.size_of(bins)
    order = np.argsort(table.category_id, kind="stable")
    category = table.category_id[order]
    table.check_categories("table", len(class_names))

    def rows(chosen: np.ndarray) -> dict[str, Any]:
        sizes = {name: row(chosen[size[chosen] == where]) for where, name in enumerate(bins)}
        return {"all": row(chosen), "sizes": sizes}

    ends = np.searchsorted(category, np.arange(len(class_names) + 1))
    classes = {
        name: rows(order[ends[number] : ends[number + 1]])
        for number, name in enumerate(class_names)
        if number not in stuff
    }
    return {**rows(order[~np.isin(category, list(stuff))]), "classes": classes}


def _check(
    table: InstanceTable,
    pixels: PixelTable,
    class_names: Sequence[str],
    size_bins: Mapping[str, float],
) -> None:
    """Check that every class of the tables has a name, and that names are distinct."""
    count = len(class_names)
    if "fg" in size_bins:
        raise ValueError(
            "size_bins: 'fg' stands for the foreground figure IA-mIoU_fg already,"
            f" got {list(size_bins)}"
        )
    if len(set(class_names)) != count:
        raise ValueError(f"class_names must be distinct, got {list(class_names)}")
    table.check_categories("table", count)
    pixels.check_categories("pixels", count)


def _class_means(
    table: InstanceTable, chosen: np.ndarray, num_classes: int
) -> tuple[list[float], list[int]]:
    """Mean IoU in percent (NaN if none) and number of the chosen records, by class."""
    order = np.argsort(table.category_id[chosen], kind="stable")
    category = table.category_id[chosen][order]
    iou = table.iou[chosen][order]
    ends = np.searchsorted(category, np.arange(num_classes + 1)).tolist()
    parts = [iou[start:end].tolist() for start, end in zip(ends[:-1], ends[1:])]
    means = [100.0 * math.fsum(part) / len(part) if part else math.nan for part in parts]
    return means, [len(part) for part in parts]


def _recall(
    table: InstanceTable, groups: Mapping[str, np.ndarray], num_classes: int
) -> dict[str, float]:
    """Percent of the instances that are found: over all of them, and as mean over classes."""
    found = table.iou >= FOUND_IOU
    recall, mean_recall = {}, {}
    for group, chosen in groups.items():
        chosen = chosen & table.things
        number = np.bincount(table.category_id[chosen], minlength=num_classes)
        hits = np.bincount(table.category_id[chosen & found], minlength=num_classes)
        total = int(number.sum())
        recall[f"recall{group}"] = 100.0 * int(hits.sum()) / total if total else math.nan
        present = number > 0
        mean_recall[f"mRecall{group}"] = _mean((100.0 * hits[present] / number[present]).tolist())
    return {**recall, **mean_recall}


def _mean(values: Sequence[float]) -> float:
    """Mean of the defined values, exactly rounded; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
