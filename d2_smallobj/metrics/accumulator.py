"""Evaluate a data set image by image: record tables and a confusion matrix.

Shapes: H, W image height and width; C number of classes; R number of records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Union

import numpy as np

from d2_smallobj.metrics.image_runs import ImageRuns
from d2_smallobj.metrics.matching import ImageMatch, match_images, read_or_match
from d2_smallobj.metrics.records import COCO_SIZE_BINS, BlobTable, InstanceTable, PixelTable
from d2_smallobj.metrics.summary import WORST_PERCENT, summarize
from d2_smallobj.metrics.validation import VOID_INSTANCE, MatchSettings
from d2_smallobj.utils.messages import listed

Table = Union[InstanceTable, BlobTable, PixelTable]
_TABLES: dict[str, type[Table]] = {
    "table": InstanceTable,
    "blobs": BlobTable,
    "pixels": PixelTable,
}
# Images and runs that are matched together.
_MOST_IMAGES, _MOST_RUNS = 16, 1 << 16

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
        void_instance: int | None = VOID_INSTANCE,
        mode: str = "exact",
    ) -> None:
        self._settings = MatchSettings(num_classes, stuff, ignore_label, void_instance, mode)
        self.num_classes = self._settings.num_classes
        self.stuff = self._settings.stuff
        self.ignore_label = self._settings.ignore_label
        self.void_instance = self._settings.void_instance
        self.mode = self._settings.mode
        self._confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        self._images: set[str] = set()
        # Read, but not matched yet: a few images together take less time than one by one.
        self._pending: list[ImageRuns] = []
        self._pending_runs = 0
        self._tables: dict[str, list[Any]] = {attribute: [] for attribute in _TABLES}

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that the accumulator was made with, by name."""
        return {name: getattr(self._settings, name) for name in _SETTINGS}

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, int64 (C, C), rows ground truth, columns prediction."""
        self._match_pending()
        return self._confusion

    @property
    def images(self) -> list[str]:
        """Ids of the images seen, sorted; those without any record included."""
        return sorted(self._images)

    @property
    def table(self) -> InstanceTable:
        """All records, sorted by image, category and instance."""
        return self._gathered("table")

    @property
    def blobs(self) -> BlobTable:
        """All unmatched components, sorted by image, category and area."""
        return self._gathered("blobs")

    @property
    def pixels(self) -> PixelTable:
        """Pixel counts by image and class, sorted.

        Summed over the images they are the confusion matrix's diagonal, row sums and column sums.
        """
        return self._gathered("pixels")

    def update(
        self,
        image_id: str | int,
        prediction: np.ndarray,
        semantic: np.ndarray,
        instances: np.ndarray | None = None,
    ) -> None:
        """Add one image; arguments as for :func:`d2_smallobj.metrics.matching.match_image`.

        Raises:
            TypeError, ValueError: if a map is malformed, or ``image_id`` was already added.
                Nothing is added then.
        """
        image_id = str(image_id)
        if image_id in self._images:
            self._refuse_duplicates([image_id])
        image = read_or_match(prediction, semantic, instances, self._settings, image_id)
        self._images.add(image_id)
        if isinstance(image, ImageMatch):
            self._take(image)
            return
        self._pending.append(image)
        self._pending_runs += len(image.runs)
        if len(self._pending) >= _MOST_IMAGES or self._pending_runs >= _MOST_RUNS:
            self._match_pending()

    def add(self, image_id: str, match: ImageMatch) -> None:
        """Add one image that was matched elsewhere, with these settings and this name.

        Raises:
            ValueError: if the image was already added, or C differs.
        """
        self._refuse_duplicates([image_id])
        if match.num_classes != self.num_classes:
            raise ValueError(
                f"match: must have {self.num_classes} classes, got {match.num_classes}"
            )
        self._images.add(image_id)
        self._take(match)

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
        other._match_pending()
        for attribute, tables in other._tables.items():
            self._tables[attribute] += tables
        self._confusion += other._confusion

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
        """Settings, image ids and tables as lists and arrays, for another process."""
        return {
            **self.settings,
            "images": self.images,
            "confusion": self.confusion.copy(),
            **{attribute: self._gathered(attribute).columns() for attribute in _TABLES},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Accumulator:
        """Rebuild an accumulator from :meth:`state`; arrays may have become nested lists.

        Raises:
            ValueError: if a key is missing, or the confusion matrix or a column does not fit.
        """
        wanted = {*_SETTINGS, "images", "confusion", *_TABLES}
        if set(state) != wanted:
            raise ValueError(f"state must have the keys {sorted(wanted)}, got {sorted(state)}")
        accumulator = cls(**{name: state[name] for name in _SETTINGS})
        confusion = np.asarray(state["confusion"], np.int64)
        if confusion.shape != accumulator._confusion.shape:
            raise ValueError(
                f"state: confusion must have shape {accumulator._confusion.shape}"
                f" for {accumulator.num_classes} classes, got {confusion.shape}"
            )
        accumulator._confusion += confusion
        accumulator._images = set(state["images"])
        for attribute, kind in _TABLES.items():
            accumulator._tables[attribute] = [kind.from_columns(state[attribute])]
        return accumulator

    def _match_pending(self) -> None:
        """Match the images that were read."""
        if self._pending:
            images, self._pending, self._pending_runs = self._pending, [], 0
            self._take(match_images(images, self._settings))

    def _take(self, match: ImageMatch) -> None:
        """Add the result of a matching."""
        truth, predicted, count = match.entries.T
        self._confusion[truth, predicted] += count
        for attribute, tables in self._tables.items():
            tables.append(getattr(match, attribute))

    def _gathered(self, attribute: str) -> Any:
        """Join and sort one of the tables."""
        self._match_pending()
        return _TABLES[attribute].concatenate(self._tables[attribute]).sorted()

    def _refuse_duplicates(self, images: Iterable[str]) -> None:
        twice = sorted(image for image in images if image in self._images)
        if twice:
            raise ValueError(
                f"image_id: every image may be evaluated once, got again {listed(twice)} "
                "(does the sampler repeat images, or do two images share an id?)"
            )
