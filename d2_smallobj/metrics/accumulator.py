"""Evaluation over a data set: images in, one table and one confusion matrix out.

Shapes: H, W image height and width; C number of classes; R number of records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.metrics import validation
from d2_smallobj.metrics.matching import MODES, ImageMatch, match_image
from d2_smallobj.metrics.records import COCO_SIZE_BINS, BlobTable, InstanceTable, PixelTable
from d2_smallobj.metrics.summary import WORST_PERCENT, summarize
from d2_smallobj.utils.options import look_up_option

_SETTINGS = ("num_classes", "stuff", "ignore_label", "void_instance", "mode")


class Accumulator:
    """Collects records and the confusion matrix of any number of images.

    Nothing depends on the order of images or on how they were spread over accumulators: counts
    are integers, records are sorted, and means are exactly rounded sums.

    Args:
        num_classes: C.
        stuff: ids of the classes whose pixels are no objects, such as background or sky; all
            others are things.
        ignore_label: semantic value that is left out.
        void_instance: value of instance pixels that are left out; ``None``: there are none.
        mode: ``"exact"`` or ``"official"``; see :func:`d2_smallobj.metrics.matching.match_image`.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[0, 0, 1, 1]], np.uint8)
        >>> accumulator = Accumulator(num_classes=2)
        >>> accumulator.update("a", np.array([[0, 0, 0, 1]], np.uint8), truth)
        >>> accumulator.table.iou.round(3).tolist()
        [0.667, 0.5]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        stuff: Collection[int] = (0,),
        ignore_label: int = 255,
        void_instance: int | None = validation.VOID_INSTANCE,
        mode: str = "exact",
    ) -> None:
        validation.check_classes(num_classes, ignore_label)
        self.num_classes = int(num_classes)
        self.stuff = validation.check_stuff(stuff, self.num_classes)
        self.ignore_label = int(ignore_label)
        self.void_instance = validation.check_void_instance(void_instance)
        self.mode = look_up_option("mode", mode, MODES)
        self.confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        self._images: set[str] = set()
        self._tables: list[InstanceTable] = []
        self._blobs: list[BlobTable] = []
        self._pixels: list[PixelTable] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What the accumulator was made with, by argument."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @property
    def images(self) -> list[str]:
        """Ids of the images seen, sorted; those without any record included."""
        return sorted(self._images)

    @property
    def table(self) -> InstanceTable:
        """All records, sorted by image, category and instance."""
        return InstanceTable.concatenate(self._tables).sorted()

    @property
    def blobs(self) -> BlobTable:
        """All false-positive blobs, sorted by image, category and area."""
        return BlobTable.concatenate(self._blobs).sorted()

    @property
    def pixels(self) -> PixelTable:
        """Pixel counts by image and class, sorted.

        Summed over the images they are the confusion matrix's diagonal, row sums and column sums.
        """
        return PixelTable.concatenate(self._pixels).sorted()

    def update(
        self,
        image_id: str | int,
        prediction: np.ndarray,
        semantic: np.ndarray,
        instances: np.ndarray | None = None,
    ) -> None:
        """Add one image; arguments as for :func:`d2_smallobj.metrics.matching.match_image`.

        Args:
            image_id: a name that no other image of the data set has.
            prediction: (H, W) integers.
            semantic: (H, W) integers.
            instances: (H, W) integers, or ``None``.

        Raises:
            TypeError: if a map is not an integer array.
            ValueError: if a map is malformed, or if the image was already added. Nothing is
                added then.
        """
        self._refuse_duplicates([str(image_id)])
        match = match_image(
            prediction,
            semantic,
            instances,
            **self.settings,
            image_id=str(image_id),
        )
        self.add(str(image_id), match)

    def add(self, image_id: str, match: ImageMatch) -> None:
        """Add one image that was matched elsewhere, with this accumulator's settings.

        Args:
            image_id: the name that the match's records carry.
            match: what :func:`d2_smallobj.metrics.matching.match_image` returned.

        Raises:
            ValueError: if the image was already added, or C differs.
        """
        self._refuse_duplicates([image_id])
        if match.num_classes != self.num_classes:
            raise ValueError(
                f"match: must have {self.num_classes} classes, got {match.num_classes}"
            )
        self._images.add(image_id)
        self._tables.append(match.table)
        self._blobs.append(match.blobs)
        self._pixels.append(match.pixels)
        truth, guess, count = match.cells.T
        self.confusion[truth, guess] += count

    def merge(self, other: Accumulator) -> None:
        """Add everything that ``other`` holds (another process's share of the data set).

        Raises:
            ValueError: if the settings differ, or if both saw the same image: a sampler that
                pads would count it twice.
        """
        for name in _SETTINGS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(
                    f"cannot merge accumulators: {name} {mine!r} here, {theirs!r} there"
                )
        self._refuse_duplicates(other._images)
        self._images.update(other._images)
        self._tables += other._tables
        self._blobs += other._blobs
        self._pixels += other._pixels
        self.confusion += other.confusion

    def summarize(
        self,
        class_names: Sequence[str],
        *,
        size_bins: Mapping[str, float] = COCO_SIZE_BINS,
        worst: int = WORST_PERCENT,
    ) -> dict[str, float]:
        """Compute the figures; see :func:`d2_smallobj.metrics.summary.summarize`."""
        return summarize(
            self.table,
            self.pixels,
            class_names,
            stuff=self.stuff,
            size_bins=size_bins,
            worst=worst,
            images=len(self._images),
        )

    def state(self) -> dict[str, Any]:
        """Everything collected as plain settings, lists of str and numpy arrays, to be sent."""
        return {
            **self.settings,
            "images": self.images,
            "confusion": self.confusion.copy(),
            "records": self.table.columns(),
            "blobs": self.blobs.columns(),
            "pixels": self.pixels.columns(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Accumulator:
        """Rebuild an accumulator from :meth:`state`; arrays may have become nested lists.

        Raises:
            ValueError: if a key is missing, or the confusion matrix or a column does not fit.
        """
        wanted = {*_SETTINGS, "images", "confusion", "records", "blobs", "pixels"}
        if set(state) != wanted:
            raise ValueError(f"state must have the keys {sorted(wanted)}, got {sorted(state)}")
        accumulator = cls(**{name: state[name] for name in _SETTINGS})
        confusion = np.asarray(state["confusion"], np.int64)
        if confusion.shape != accumulator.confusion.shape:
            raise ValueError(
                f"state: confusion must have shape {accumulator.confusion.shape}"
                f" for {accumulator.num_classes} classes, got {confusion.shape}"
            )
        accumulator.confusion += confusion
        accumulator._images = set(state["images"])
        accumulator._tables = [InstanceTable.from_columns(state["records"])]
        accumulator._blobs = [BlobTable.from_columns(state["blobs"])]
        accumulator._pixels = [PixelTable.from_columns(state["pixels"])]
        return accumulator

    def _refuse_duplicates(self, images: Iterable[str]) -> None:
        twice = sorted(image for image in images if image in self._images)
        if twice:
            more = f" and {len(twice) - 10} more" if len(twice) > 10 else ""
            raise ValueError(
                f"image_id: every image may be evaluated once, got again {', '.join(twice[:10])}"
                f"{more} (does the sampler repeat images, or do two images share an id?)"
            )
