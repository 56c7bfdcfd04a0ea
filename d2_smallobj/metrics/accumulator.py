"""Evaluation over a data set: images in, one table and one confusion matrix out.

Shapes: H, W image height and width; C number of classes, background included; R number of records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.metrics import validation
from d2_smallobj.metrics.matching import MODES, ImageMatch, match_image
from d2_smallobj.metrics.records import COCO_SIZE_BINS, BlobTable, InstanceTable
from d2_smallobj.metrics.summary import summarize
from d2_smallobj.utils.options import look_up_option

_SETTINGS = ("num_classes", "ignore_label", "mode")


class Accumulator:
    """Collects records and the confusion matrix of any number of images.

    Nothing depends on the order of images or on how they were spread over accumulators: counts
    are integers, records are sorted, and means are exactly rounded sums.

    Args:
        num_classes: C, background included.
        ignore_label: semantic value that is left out.
        mode: ``"exact"`` or ``"official"``; see :func:`d2_smallobj.metrics.matching.match_image`.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[0, 0, 1, 1]], np.uint8)
        >>> accumulator = Accumulator(num_classes=2)
        >>> accumulator.update("a", np.array([[0, 0, 0, 1]], np.uint8), truth)
        >>> accumulator.table.iou.round(3).tolist()
        [0.667, 0.5]
    """

    def __init__(self, num_classes: int, *, ignore_label: int = 255, mode: str = "exact") -> None:
        validation.check_classes(num_classes, ignore_label)
        self.num_classes = int(num_classes)
        self.ignore_label = int(ignore_label)
        self.mode = look_up_option("mode", mode, MODES)
        self.confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        # By image, the classes it has and their three counts: (P,) and (P, 3).
        self._images: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._tables: list[InstanceTable] = []
        self._blobs: list[BlobTable] = []

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
    def image_counts(self) -> np.ndarray:
        """Pixels of every class in every image, int64 (N, C, 3), in the order of ``images``.

        The last axis holds intersection, ground-truth and predicted pixels, of the pixels that
        the confusion matrix counts; its sum over images has the matrix's diagonal, row sums and
        column sums.
        """
        counts = np.zeros((len(self._images), self.num_classes, 3), np.int64)
        for row, image in zip(counts, self.images):
            classes, values = self._images[image]
            row[classes] = values
        return counts

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
            num_classes=self.num_classes,
            ignore_label=self.ignore_label,
            mode=self.mode,
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
        if match.confusion.shape != self.confusion.shape:
            raise ValueError(
                f"match: confusion must have shape {self.confusion.shape}"
                f" for {self.num_classes} classes, got {match.confusion.shape}"
            )
        self._images[image_id] = _class_counts(match.confusion)
        self._tables.append(match.table)
        self._blobs.append(match.blobs)
        self.confusion += match.confusion

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
        self.confusion += other.confusion

    def summarize(
        self, class_names: Sequence[str], *, size_bins: Mapping[str, float] = COCO_SIZE_BINS
    ) -> dict[str, float]:
        """Compute the figures; see :func:`d2_smallobj.metrics.summary.summarize`."""
        return summarize(
            self.table,
            self.confusion,
            class_names,
            size_bins=size_bins,
            images=len(self._images),
        )

    def state(self) -> dict[str, Any]:
        """Everything collected as plain settings, lists of str and numpy arrays, to be sent."""
        images = self.images
        present = [self._images[image] for image in images]
        return {
            **{name: getattr(self, name) for name in _SETTINGS},
            "images": images,
            "confusion": self.confusion.copy(),
            "records": self.table.columns(),
            "blobs": self.blobs.columns(),
            # Rows (image's position, class, intersection, ground truth, predicted).
            "image_counts": np.concatenate(
                [np.zeros((0, 5), np.int64)]
                + [
                    np.column_stack([np.full_like(classes, position), classes, values])
                    for position, (classes, values) in enumerate(present)
                ]
            ),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Accumulator:
        """Rebuild an accumulator from :meth:`state`; arrays may have become nested lists.

        Raises:
            ValueError: if a key is missing, or the confusion matrix or a column does not fit.
        """
        wanted = {*_SETTINGS, "images", "confusion", "records", "blobs", "image_counts"}
        if set(state) != wanted:
            raise ValueError(f"state must have the keys {sorted(wanted)}, got {sorted(state)}")
        accumulator = cls(
            state["num_classes"], ignore_label=state["ignore_label"], mode=state["mode"]
        )
        confusion = np.asarray(state["confusion"], np.int64)
        if confusion.shape != accumulator.confusion.shape:
            raise ValueError(
                f"state: confusion must have shape {accumulator.confusion.shape}"
                f" for {accumulator.num_classes} classes, got {confusion.shape}"
            )
        accumulator.confusion += confusion
        images = list(state["images"])
        counts = np.asarray(state["image_counts"], np.int64).reshape(-1, 5)
        ends = np.searchsorted(counts[:, 0], np.arange(len(images) + 1)).tolist()
        accumulator._images = {
            image: (counts[start:end, 1], counts[start:end, 2:])
            for image, start, end in zip(images, ends[:-1], ends[1:])
        }
        accumulator._tables = [InstanceTable.from_columns(state["records"])]
        accumulator._blobs = [BlobTable.from_columns(state["blobs"])]
        return accumulator

    def _refuse_duplicates(self, images: Iterable[str]) -> None:
        twice = sorted(image for image in images if image in self._images)
        if twice:
            more = f" and {len(twice) - 10} more" if len(twice) > 10 else ""
            raise ValueError(
                f"image_id: every image may be evaluated once, got again {', '.join(twice[:10])}"
                f"{more} (does the sampler repeat images, or do two images share an id?)"
            )


def _class_counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes that an image has in truth or prediction (P,), and their counts (P, 3)."""
    truth, guess = confusion.sum(axis=1), confusion.sum(axis=0)
    classes = np.flatnonzero(truth + guess)
    counts = confusion.diagonal()[classes], truth[classes], guess[classes]
    return classes, np.array(counts).T
