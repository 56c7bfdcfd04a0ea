"""How many instances of which class and size a data set has.

An instance's size is what of it is visible: its pixels in the instance map, larger annotations
being painted first (docs/method.md#sizes).

Legend: H, W height and width of an image; N instances; C object classes; B size bins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.coco import Annotation
from d2_smallobj.annotations.masks import encode_mask
from d2_smallobj.metrics.matching import match_image
from d2_smallobj.metrics.sizes import COCO_SIZE_BINS, SizeBins
from d2_smallobj.statistics.balance import (
    class_size_counts,
    coefficient_of_variation,
    normalized_entropy,
)


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
        return InstanceSizes(*(column[chosen] for column in columns), self.num_images)

    @classmethod
    def concatenate(cls, parts: Iterable[InstanceSizes]) -> InstanceSizes:
        """Join the instances of several images, in the order given."""
        parts = list(parts)
        columns = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in parts)])
            for name in ("class_ids", "areas", "image_areas")
        )
        return cls(*columns, num_images=sum(part.num_images for part in parts))


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

    Args:
        semantic: (H, W) integers: classes, ``ignore_label``.
        instances: (H, W) integers, 0 = none; ``None``: the 8-connected components of ``semantic``
            are the instances.
        num_classes: number of classes, stuff included.
        stuff: ids of the classes without instances.
        ignore_label: semantic value that is left out.
        void_instance: instance id that is left out.

    Returns:
        One entry per instance that has a pixel which is not ignored; its area counts the ignored
        ones, too (docs/method.md#sizes).

    Raises:
        TypeError, ValueError: a map is malformed; see
            :func:`d2_smallobj.metrics.matching.match_image`.
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


def annotation_sizes(
    annotations: Iterable[Annotation], height: int, width: int, source: str
) -> InstanceSizes:
    """Measure the instances of an image without painting it.

    The same as :func:`map_sizes` of :meth:`.coco.InstanceAnnotations.maps`, from run lengths.

    Args:
        annotations: of the image, in the order of the file.
        height: H.
        width: W.
        source: the file that they come from, for messages.

    Raises:
        ValueError: a mask is malformed; names the annotation.
    """
    runs, class_ids = [], []
    for annotation in annotations:
        where = f"{source}: annotation {annotation.annotation_id}"
        encoded = encode_mask(annotation.segmentation, height, width, where)
        # Crowds lie beneath the instances and hide none, but a malformed one is an error.
        if not annotation.crowd:
            runs.append(encoded)
            class_ids.append(annotation.class_id)
    areas = _visible_areas(runs)
    seen = areas > 0
    shown = np.asarray(class_ids, np.int64)[seen]
    return InstanceSizes(shown, areas[seen], np.full(len(shown), height * width), num_images=1)


def _visible_areas(runs: list[dict]) -> np.ndarray:
    """Visible pixels of masks that are painted from the largest to the smallest: int64 (N,)."""
    if not runs:
        return np.zeros(0, np.int64)
    areas = coco_mask.area(runs).astype(np.int64)
    left, top, width, height = coco_mask.toBbox(runs).T
    right, bottom = left + width, top + height
    visible = areas.copy()
    # A stable sort: of two equally large ones, the later in the file lies on top.
    order = np.argsort(-areas, kind="stable")
    for place, number in enumerate(order):
        above = order[place + 1 :]
        touching = (left[above] < right[number]) & (left[number] < right[above])
        touching &= (top[above] < bottom[number]) & (top[number] < bottom[above])
        hiding = [runs[other] for other in above[touching]]
        if hiding and areas[number]:
            cover = coco_mask.merge(hiding)
            both = coco_mask.merge([runs[number], cover])
            visible[number] = int(coco_mask.area(both)) - int(coco_mask.area(cover))
    return visible


@dataclasses.dataclass(frozen=True)
class SizeStatistics:
    """Instances of a data set by class and size.

    Attributes:
        name: the data set's.
        class_names: (C,) names, without stuff.
        size_names: (B,) names of the size bins.
        counts: int64 (C, B).
        num_images: number of images.
        num_beyond: instances larger than the last bin, which ``counts`` lacks.
    """

    name: str
    class_names: tuple[str, ...]
    size_names: tuple[str, ...]
    counts: np.ndarray
    num_images: int
    num_beyond: int = 0

    @property
    def entropy(self) -> float:
        """Normalised entropy over class × size, 0..1; 1 = every cell holds as many."""
        return normalized_entropy(self.counts)

    @property
    def variation(self) -> float:
        """Coefficient of variation over class × size; 0 = every cell holds as many."""
        return coefficient_of_variation(self.counts)

    @property
    def num_empty(self) -> int:
        """Number of class × size cells without any instance."""
        return int(np.count_nonzero(self.counts == 0))


def size_statistics(
    name: str,
    sizes: InstanceSizes,
    class_names: Iterable[str],
    *,
    stuff: Sequence[int] = (0,),
    bins: SizeBins = COCO_SIZE_BINS,
) -> SizeStatistics:
    """Count instances by class and size.

    Args:
        name: of the data set.
        sizes: its instances.
        class_names: names of all classes.
        stuff: ids of the classes without instances, which are left out.
        bins: the sizes, in pixels or as shares of the image.

    Raises:
        ValueError: a class id has no name.
    """
    all_names = tuple(class_names)
    things = np.setdiff1d(np.arange(len(all_names)), np.asarray(stuff, np.int64))
    names = tuple(all_names[number] for number in things)
    objects = ~np.isin(sizes.class_ids, np.asarray(stuff, np.int64))
    class_ids = sizes.class_ids[objects]
    # 1.. in the order of the classes; ids beyond them stay what they are, to be refused.
    ranks = np.where(np.isin(class_ids, things), np.searchsorted(things, class_ids) + 1, class_ids)
    counts = class_size_counts(
        ranks,
        sizes.areas[objects],
        num_classes=len(names),
        bins=bins,
        image_areas=sizes.image_areas[objects],
    )
    beyond = len(ranks) - int(counts.sum())
    return SizeStatistics(name, names, tuple(bins), counts, sizes.num_images, beyond)
