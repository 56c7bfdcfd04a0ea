"""The record tables, the one data structure of evaluation: instances, and false-positive blobs.

Sizes, class means, outcomes and intervals are functions of them; none needs the pixels again.
Shapes: R number of instance records; B number of blobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from d2_smallobj.metrics.sizes import COCO_SIZE_BINS, as_size_bins

BACKGROUND = 0

_Table = TypeVar("_Table", bound="_Columns")


@dataclasses.dataclass(frozen=True)
class _Columns:
    """A table as a struct of equally long one-dimensional arrays."""

    def __post_init__(self) -> None:
        """Check that all columns are arrays of one length.

        Raises:
            ValueError: if a column is not one-dimensional or differs in length.
        """
        shapes = {name: np.shape(column) for name, column in self.columns().items()}
        if len(set(shapes.values())) != 1 or len(shapes["image_id"]) != 1:
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
            ``len(bins)`` if none does. The background is binned like any other record.

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

    The background of an image is one record with category 0 and instance id 0.

    Attributes:
        image_id: str (R,).
        instance_id: int64 (R,), id in the instance map, or number of the semantic map's
            component where there is no instance map.
        category_id: int64 (R,), semantic label, 0 = background.
        area: int64 (R,), pixels of the instance map with this id, ignored ones included: the
            size that S, M and L are decided by.
        pixels: int64 (R,), those of ``area`` that are not ignored: |G_t| of the IoU, >= 1.
        intersection: int64 (R,), Σ_j n_jt, pixels of it that the prediction got right.
        charged: float64 (R,), Σ_j a_jt, predicted pixels that count for this instance; 0 where
            nothing overlaps.
        components: int64 (R,), number of predicted components of its class that overlap it;
            for the background, taken as one component, 0 or 1.
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
        """IoU of every record (SPEC 1.4), float64 (R,) in 0..1; 0 where nothing overlaps."""
        return self.intersection / (self.pixels + self.charged - self.intersection)

    def sorted(self) -> InstanceTable:
        """Order by (image, category, instance), so that the way it was gathered leaves no trace."""
        keys = (self.instance_id, self.category_id, self.image_id)
        return self.select(np.lexsort(keys))


@dataclasses.dataclass(frozen=True)
class BlobTable(_Columns):
    """False-positive blobs: predicted components that overlap no instance of their class.

    IA-IoU does not see them (a component that overlaps nothing is charged to nobody), so they
    are reported beside it. Foreground classes only, those without any instance in the image
    included.

    Attributes:
        image_id: str (B,).
        category_id: int64 (B,), predicted class, >= 1.
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


def _dtype(column: str) -> type:
    """dtype of a column."""
    return {"image_id": np.str_, "charged": np.float64}.get(column, np.int64)
