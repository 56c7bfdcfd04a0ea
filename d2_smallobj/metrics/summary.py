"""The figures, in percent, as functions of the record table and the confusion matrix.

Shapes: C number of classes, background included; R number of records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from d2_smallobj.metrics.records import BACKGROUND, COCO_SIZE_BINS, InstanceTable


def summarize(
    table: InstanceTable,
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
    images: int | None = None,
) -> dict[str, float]:
    """Compute mIoU and the instance-aware figures of SPEC 1.

    ``IA-IoU_c`` is the mean IoU over all instances of class c in the data set, ``IA-mIoU`` the
    mean of it over the classes that have instances. A figure without any instance to rest on is
    NaN, never 0. Means are exactly rounded sums: the order of records does not show.

    Args:
        table: one record per instance, and per image with background.
        confusion: int64 (C, C), rows ground truth, columns prediction.
        class_names: C names, background first.
        size_bins: exclusive upper bound of the area in pixels by bin name, ascending.
        images: number of images; default: those that have a record.

    Returns:
        In this order, with one entry per bin of ``size_bins`` where S is written:
        ``mIoU`` (over classes present in the ground truth, background included),
        ``IA-mIoU`` (background is one more class, one instance per image),
        ``IA-mIoU_fg`` (foreground only), ``IA-mIoU_S``, ...; ``images``, ``instances``
        (foreground only, so that the sizes sum to it), ``instances_S``, ...; then for every
        class ``IoU-<name>``, ``IA-IoU-<name>``, ``IA-IoU_S-<name>``, ...,
        ``instances-<name>``, ``instances_S-<name>``, ... (no sizes for the background).

    Raises:
        ValueError: if names, confusion matrix and categories do not fit together, if names are
            not distinct, if a bin is called ``fg``, or if bounds do not ascend.
    """
    _check(table, confusion, class_names, size_bins)
    names = list(class_names)
    iou = _class_iou(confusion)
    sizes = table.size_of(size_bins)
    groups = {"": np.ones(len(table), bool)}
    groups |= {
        f"_{name}": (sizes == position) & (table.category_id != BACKGROUND)
        for position, name in enumerate(size_bins)
    }
    cells = {group: _class_means(table, chosen, len(names)) for group, chosen in groups.items()}
    means = cells[""][0]
    figures = {
        "mIoU": _mean(iou.tolist()),
        "IA-mIoU": _mean(means),
        "IA-mIoU_fg": _mean(means[BACKGROUND + 1 :]),
    }
    figures |= {f"IA-mIoU{group}": _mean(cells[group][0]) for group in groups if group}
    figures["images"] = len(set(table.image_id.tolist())) if images is None else images
    figures |= {f"instances{group}": sum(cells[group][1][BACKGROUND + 1 :]) for group in groups}
    for category, name in enumerate(names):
        shown = [group for group in groups if not group or category != BACKGROUND]
        figures[f"IoU-{name}"] = iou[category]
        figures |= {f"IA-IoU{group}-{name}": cells[group][0][category] for group in shown}
        figures |= {f"instances{group}-{name}": cells[group][1][category] for group in shown}
    return {key: float(value) for key, value in figures.items()}


def _check(
    table: InstanceTable,
    confusion: np.ndarray,
    class_names: Sequence[str],
    size_bins: Mapping[str, float],
) -> None:
    """Check that table, matrix and names speak of the same classes, and that keys are unique."""
    count = len(class_names)
    if "fg" in size_bins:
        raise ValueError(
            "size_bins: 'fg' stands for the foreground figure IA-mIoU_fg already,"
            f" got {list(size_bins)}"
        )
    if len(set(class_names)) != count:
        raise ValueError(f"class_names must be distinct, got {list(class_names)}")
    if confusion.shape != (count, count):
        raise ValueError(
            f"confusion must have shape ({count}, {count}) for {count} class_names,"
            f" got {confusion.shape}"
        )
    highest = table.category_id.max(initial=0)
    if highest >= count:
        raise ValueError(f"table: category_id must be in 0..{count - 1}, got {highest}")


def _class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of every class over the data set in percent, float64 (C,), NaN if not in the truth."""
    hit = np.diagonal(confusion).astype(np.float64)
    truth = confusion.sum(axis=1)
    union = truth + confusion.sum(axis=0) - np.diagonal(confusion)
    return np.where(truth > 0, 100.0 * hit / np.maximum(union, 1), np.nan)


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


def _mean(values: Sequence[float]) -> float:
    """Mean of the defined values, NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
