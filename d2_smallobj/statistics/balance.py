"""How evenly instances spread over classes and sizes, as a table of counts and as one number.

Legend: C object classes, B size bins, N instances.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from d2_smallobj.metrics.sizes import COCO_SIZE_BINS, as_size_bins


def class_size_counts(
    class_ids: ArrayLike,
    areas: ArrayLike,
    *,
    num_classes: int,
    bins: Mapping[str, float] = COCO_SIZE_BINS,
    image_areas: ArrayLike = 0,
) -> np.ndarray:
    """Count instances by class and size.

    Args:
        class_ids: (N,) integers 1..C.
        areas: (N,) visible pixels.
        num_classes: C, without background.
        bins: exclusive upper bounds by name; default: S < 32², M < 96², L.
        image_areas: (N,) or one number, pixels of the image; for relative bins only.

    Returns:
        int64 (C, B). Instances beyond the last bound are not counted.

    Raises:
        ValueError: a class id is out of range, or there are not as many areas as class ids.
    """
    bins = as_size_bins(bins)
    class_ids, areas = np.asarray(class_ids, np.int64), np.asarray(areas)
    if class_ids.shape != areas.shape or class_ids.ndim != 1:
        raise ValueError(
            "class_ids and areas: expected two arrays of one length, got shapes "
            f"{class_ids.shape} and {areas.shape}"
        )
    wrong = class_ids[(class_ids < 1) | (class_ids > num_classes)]
    if wrong.size:
        raise ValueError(f"class_ids: must be in 1..{num_classes}, got {np.unique(wrong)[:10]}")
    position = bins.positions(areas, image_areas)
    inside = position < len(bins)
    cell = (class_ids[inside] - 1) * len(bins) + position[inside]
    return np.bincount(cell, minlength=num_classes * len(bins)).reshape(num_classes, len(bins))


def normalized_entropy(counts: ArrayLike) -> float:
    """Entropy of the counts, as a share of the largest possible.

    Args:
        counts: non-negative numbers of any shape; zeros count as cells.

    Returns:
        −Σ p log p / log(number of cells): 1 if all cells are equal, 0 if one holds everything;
        NaN without any count, or with fewer than two cells.

    Example:
        >>> normalized_entropy([5, 5, 0, 0])
        0.5
    """
    counts = _checked(counts)
    total = counts.sum()
    if total == 0 or counts.size < 2:
        return float("nan")
    share = counts[counts > 0] / total
    # max: -0.0 of a single cell reads badly.
    return max(0.0, float(-(share * np.log(share)).sum() / np.log(counts.size)))


def coefficient_of_variation(counts: ArrayLike) -> float:
    """Standard deviation (of the population) over mean.

    Args:
        counts: non-negative numbers of any shape; zeros count as cells.

    Returns:
        0 if all cells are equal; sqrt(number of cells − 1) if one holds everything; NaN without
        any count.

    Example:
        >>> coefficient_of_variation([5, 5, 0, 0])
        1.0
    """
    counts = _checked(counts)
    mean = counts.mean() if counts.size else 0.0
    return float(counts.std() / mean) if mean > 0 else float("nan")


def _checked(counts: ArrayLike) -> np.ndarray:
    """Counts as a flat float array."""
    flat = np.asarray(counts, np.float64).ravel()
    if not (np.isfinite(flat) & (flat >= 0)).all():
        raise ValueError(f"counts: must be finite and >= 0, got {flat[:10]}")
    return flat
