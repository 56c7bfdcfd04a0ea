"""What happened to each instance, and what was predicted where nothing is.

Shapes: R number of records; C number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.metrics.records import FOUND_IOU, BlobTable, InstanceTable
from d2_smallobj.metrics.sizes import COCO_SIZE_BINS, as_size_bins

OUTCOMES = ("good", "partial", "fragmented", "merged", "missed")
_GOOD, _PARTIAL, _FRAGMENTED, _MERGED, _MISSED = range(len(OUTCOMES))


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
        Σ (1 − IoU), exactly rounded. All thing classes are listed. Instances beyond the
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
    """Count false-positive blobs and their pixels.

    Args:
        blobs: the blobs.
        class_names: C names.
        size_bins: bins of the blobs' own areas, as for instances.
        stuff: ids of the stuff classes.

    Returns:
        As :func:`outcome_summary`, a row being ``{"blobs": int, "pixels": int}``.

    Raises:
        ValueError: if a category has no name.
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
    if category.max(initial=0) >= len(class_names):
        raise ValueError(
            f"table: category_id must be in 0..{len(class_names) - 1} for {len(class_names)}"
            f" class_names, got {category.max()}"
        )

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
