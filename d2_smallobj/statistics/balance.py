"""Instances of a data set by class and size, and how evenly they spread.

An instance's size is what of it is visible: its pixels in the instance map, larger annotations
being painted first (docs/method.md#sizes).

Legend: H, W height and width of an image; N instances; C object classes; B size bins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from d2_smallobj.metrics.matching import match_image
from d2_smallobj.metrics.records import COCO_SIZE_BINS, SizeBins, as_size_bins


@dataclasses.dataclass(frozen=True)
class InstanceSizes:
    """The visible instances of any number of images.

    Attributes:
        class_ids: int64 (N,).
        areas: int64 (N,), visible pixels, >= 1.
        image_areas: int64 (N,), H·W of the instance's image.
        num_images: number of images, those without an instance included.
    """

    class_ids: np.ndarray
    areas: np.ndarray
    image_areas: np.ndarray
    num_images: int

    def __len__(self) -> int:
        return len(self.areas)

    def select(self, chosen: np.ndarray) -> InstanceSizes:
        """The instances that a bool (N,) chooses, of as many images."""
        columns = (self.class_ids, self.areas, self.image_areas)
        class_ids, areas, image_areas = (column[chosen] for column in columns)
        return InstanceSizes(class_ids, areas, image_areas, self.num_images)

    @classmethod
    def concatenate(cls, parts: Iterable[InstanceSizes]) -> InstanceSizes:
        """Join the instances of several images, in the order given."""
        parts = list(parts)
        class_ids, areas, image_areas = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in parts)])
            for name in ("class_ids", "areas", "image_areas")
        )
        return cls(class_ids, areas, image_areas, sum(part.num_images for part in parts))


def map_sizes(
    semantic: np.ndarray,
    instances: np.ndarray | None,
    *,
    num_classes: int,
    stuff: Sequence[int] = (0,),
    ignore_label: int = 255,
    void_instance: int | None = 255,
) -> InstanceSizes:
    """Measure the instances of an image, as the metric counts them.

    Arguments and errors are those of :func:`d2_smallobj.metrics.matching.match_image`. Returns
    one entry per instance that has a pixel which is not ignored; its area counts the ignored
    ones, too (docs/method.md#sizes).
    """
    # The ground truth as its own prediction: the metric's records, with its rules for void.
    table = match_image(
        semantic,
        semantic,
        instances,
        num_classes=num_classes,
        stuff=stuff,
        ignore_label=ignore_label,
        void_instance=void_instance,
    ).table
    table = table.select(table.things)
    return InstanceSizes(table.category_id, table.area, table.image_area, num_images=1)


@dataclasses.dataclass(frozen=True)
class SizeStatistics:
    """Instances of a data set by class and size.

    Attributes:
        name: the data set's.
        class_names: (C,) names, without stuff.
        size_names: (B,) names of the size bins.
        counts: int64 (C, B).
        num_images: number of images.
        num_beyond: instances larger than the last bin, not in ``counts``.
    """

    name: str
    class_names: tuple[str, ...]
    size_names: tuple[str, ...]
    counts: np.ndarray
    num_images: int
    num_beyond: int = 0

    @property
    def entropy(self) -> float:
        """Normalised entropy over class × size, 0..1; 1 = all counts are equal."""
        return normalized_entropy(self.counts)

    @property
    def variation(self) -> float:
        """Coefficient of variation over class × size; 0 = all counts are equal."""
        return coefficient_of_variation(self.counts)

    @property
    def num_empty(self) -> int:
        """Number of pairs of class and size without any instance."""
        return int(np.count_nonzero(self.counts == 0))


def size_statistics(
    name: str,
    sizes: InstanceSizes,
    class_names: Iterable[str],
    *,
    stuff: Sequence[int] = (0,),
    bins: SizeBins = COCO_SIZE_BINS,
) -> SizeStatistics:
    """Count instances by class and size; ValueError if a class id has no name."""
    all_names = tuple(class_names)
    things = np.setdiff1d(np.arange(len(all_names)), np.asarray(stuff, np.int64))
    names = tuple(all_names[number] for number in things)
    chosen = sizes.select(~np.isin(sizes.class_ids, np.asarray(stuff, np.int64)))
    # 1.. in the order of the classes; other ids stay as they are and are errors below.
    rank = np.searchsorted(things, chosen.class_ids) + 1
    ranks = np.where(np.isin(chosen.class_ids, things), rank, chosen.class_ids)
    counts = class_size_counts(
        ranks,
        chosen.areas,
        num_classes=len(names),
        bins=bins,
        image_areas=chosen.image_areas,
    )
    larger = len(ranks) - int(counts.sum())
    return SizeStatistics(name, names, tuple(bins), counts, sizes.num_images, larger)


def class_size_counts(
    class_ids: ArrayLike,
    areas: ArrayLike,
    *,
    num_classes: int,
    bins: Mapping[str, float] = COCO_SIZE_BINS,
    image_areas: np.ndarray | int = 0,
) -> np.ndarray:
    """Count instances by class and size.

    ``class_ids`` are integers 1..C. Returns int64 (C, B); instances larger than the last bin are
    not counted.

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
    place = (class_ids[inside] - 1) * len(bins) + position[inside]
    return np.bincount(place, minlength=num_classes * len(bins)).reshape(num_classes, len(bins))


def normalized_entropy(counts: ArrayLike) -> float:
    """Entropy of the counts, as a share of the largest possible: −Σ p log p / log(their number).

    ``counts`` are non-negative numbers of any shape; zeros count, too. 1 if all are equal, 0 if one
    holds everything; NaN without any count, or with fewer than two.

    Example:
        >>> normalized_entropy([5, 5, 0, 0])
        0.5
    """
    counts = _checked(counts)
    total = counts.sum()
    if total == 0 or counts.size < 2:
        return float("nan")
    share = counts[counts > 0] / total
    # max: -0.0 of a single count reads badly.
    return max(0.0, float(-(share * np.log(share)).sum() / np.log(counts.size)))


def coefficient_of_variation(counts: ArrayLike) -> float:
    """Standard deviation (of the population) over mean, of counts as above; NaN without any.

    0 if all are equal; sqrt(number of counts − 1) if one holds everything.

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
