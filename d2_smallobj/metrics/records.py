"""The record tables, the one data structure of evaluation: instances, false-positive blobs, pixels.

Sizes, class means, outcomes and intervals are functions of them; none needs the maps again.
Shapes: R number of instance records; B number of blobs; P number of pixel records; C number of
classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from d2_smallobj.metrics.sizes import COCO_SIZE_BINS, as_size_bins

FOUND_IOU = 0.5
"""IoU from which an instance counts as found."""

_Table = TypeVar("_Table", bound="_Columns")


@dataclasses.dataclass(frozen=True)
class _Columns:
    """A table as a struct of equally long one-dimensional arrays."""

    def __post_init__(self) -> None:
        """Check that all columns are arrays of one length.

        Raises:
            ValueError: if a column is not one-dimensional or differs in length.
        """
        lengths = {getattr(column, "shape", None) for column in self.__dict__.values()}
        if lengths != {(len(self.image_id),)}:
            shapes = {name: np.shape(column) for name, column in self.columns().items()}
            raise ValueError(
                f"columns of {type(self).__name__} must share one length, got {shapes}"
            )

    def __len__(self) -> int:
        return len(self.columns()["image_id"])

    @classmethod
    def names(cls) -> list[str]:
        """Names of the columns, in order."""
        return list(cls.__dataclass_fields__)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns by name, in order."""
        return {name: getattr(self, name) for name in self.names()}

    def select(self: _Table, index: np.ndarray) -> _Table:
        """Take records by a bool mask (R,) or by integer positions, in their order."""
        return type(self)(**{name: column[index] for name, column in self.columns().items()})

    def size_of(self, bins: Mapping[str, float] = COCO_SIZE_BINS) -> np.ndarray:
        """Find the size bin of every record.

        Args:
            bins: exclusive upper bounds by bin name, ascending: a mapping to pixels of ``area``,
                or :class:`d2_smallobj.metrics.sizes.SizeBins`, which may be shares of the image.

        Returns:
            int64 (R,), position of the first bin in ``bins`` whose bound exceeds the area;
            ``len(bins)`` if none does. Stuff is binned like any other record.

        Raises:
            ValueError: if the bounds do not ascend.
        """
        columns = self.columns()
        return as_size_bins(bins).positions(columns["area"], columns["image_area"])

    @classmethod
    def from_columns(cls: type[_Table], columns: Mapping[str, object]) -> _Table:
        """Build a table from sequences by column name, converting them to the right dtypes.

        Raises:
            ValueError: if a column is missing or unknown, or if lengths differ.
        """
        names = cls.names()
        if set(columns) != set(names):
            raise ValueError(f"columns must be {names}, got {sorted(columns)}")
        return cls(**{name: np.asarray(columns[name], _dtype(name)) for name in names})

    @classmethod
    def concatenate(cls: type[_Table], tables: Iterable[_Table]) -> _Table:
        """Join tables, records in the order given; no tables give an empty one."""
        parts = [table.columns() for table in tables]
        if not parts:
            return cls.from_columns({name: [] for name in cls.names()})
        return cls(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


@dataclasses.dataclass(frozen=True)
class InstanceTable(_Columns):
    """Ground-truth instances of any number of images, and what the prediction made of them.

    All pixels of a stuff class (background, sky) in an image are one record with instance id 0.

    Attributes:
        image_id: str (R,).
        instance_id: int64 (R,), id >= 1 in the instance map, or number of the semantic map's
            component where there is no instance map; 0 for stuff.
        category_id: int64 (R,), semantic label.
        area: int64 (R,), pixels of the instance map with this id, ignored ones included: the
            size that S, M and L are decided by.
        pixels: int64 (R,), those of ``area`` that are not ignored: |G_t| of the IoU, >= 1.
        intersection: int64 (R,), Σ_j n_jt, pixels of it that the prediction got right.
        charged: float64 (R,), Σ_j a_jt, predicted pixels that count for this instance; 0 where
            nothing overlaps.
        components: int64 (R,), number of predicted components of its class that overlap it;
            for stuff, taken as one component, 0 or 1.
        shared: int64 (R,), number of other instances of its class in the image that overlap one
            of these components, too; 0 = its components are its own.
        image_area: int64 (R,), H·W of the image, ignored pixels included.
    """

    image_id: np.ndarray
    instance_id: np.ndarray
    category_id: np.ndarray
    area: np.ndarray
    pixels: np.ndarray
    intersection: np.ndarray
    charged: np.ndarray
    components: np.ndarray
    shared: np.ndarray
    image_area: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """IoU of every record, float64 (R,) in 0..1; 0 where nothing overlaps.

        See docs/method.md#instance-aware-iou.
        """
        return self.intersection / (self.pixels + self.charged - self.intersection)

    @property
    def things(self) -> np.ndarray:
        """Mark the records of objects, bool (R,); the others are of stuff."""
        return self.instance_id != 0

    def sorted(self) -> InstanceTable:
        """Order by (image, category, instance), so that the way it was gathered leaves no trace."""
        keys = (self.instance_id, self.category_id, self.image_id)
        return self.select(np.lexsort(keys))


@dataclasses.dataclass(frozen=True)
class BlobTable(_Columns):
    """False-positive blobs: predicted components that overlap no instance of their class.

    IA-IoU does not see them (a component that overlaps nothing is charged to nobody), so they
    are reported beside it. Thing classes only, those without any instance in the image included.

    Attributes:
        image_id: str (B,).
        category_id: int64 (B,), predicted class.
        area: int64 (B,), pixels of the component that are not ignored, >= 1.
        image_area: int64 (B,), H·W of the image, ignored pixels included.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    area: np.ndarray
    image_area: np.ndarray

    def sorted(self) -> BlobTable:
        """Order by (image, category, area): equal blobs cannot be told apart."""
        return self.select(np.lexsort((self.area, self.category_id, self.image_id)))


@dataclasses.dataclass(frozen=True)
class PixelTable(_Columns):
    """Pixel counts of every class that an image has in ground truth or prediction.

    They are the margins of the image's confusion matrix: ignored pixels are left out, pixels that
    are void for the instances alone are not.

    Attributes:
        image_id: str (P,).
        category_id: int64 (P,), class.
        intersection: int64 (P,), pixels of the class in both.
        ground_truth: int64 (P,), pixels of the class in the ground truth.
        predicted: int64 (P,), pixels of the class in the prediction.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    intersection: np.ndarray
    ground_truth: np.ndarray
    predicted: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """IoU of the class in the image, float64 (P,) in 0..1."""
        return self.intersection / (self.ground_truth + self.predicted - self.intersection)

    def sorted(self) -> PixelTable:
        """Order by (image, category)."""
        return self.select(np.lexsort((self.category_id, self.image_id)))

    def class_sums(self, num_classes: int) -> np.ndarray:
        """Sum over the images: int64 (C, 3), intersection, ground truth and predicted."""
        columns = (self.intersection, self.ground_truth, self.predicted)
        # bincount adds in float64, exact up to 2**53 pixels.
        sums = [np.bincount(self.category_id, column, num_classes) for column in columns]
        return np.stack(sums, axis=1).astype(np.int64)

    @classmethod
    def from_confusion(cls, confusion: np.ndarray, image_id: str = "") -> PixelTable:
        """Count the pixels of one image from its confusion matrix, int64 (C, C)."""
        hit, truth, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        present = np.flatnonzero(truth + predicted)
        names = np.full(len(present), image_id)
        return cls(names, present, hit[present], truth[present], predicted[present])


def _dtype(column: str) -> type:
    """dtype of a column."""
    return {"image_id": np.str_, "charged": np.float64}.get(column, np.int64)
