"""Record tables of instances, unmatched components and pixels; size bins.

Class means, outcomes and intervals are functions of the tables; none needs the maps again.
Shapes: R number of records; B number of unmatched components; P number of pixel records; C number
of classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

FOUND_IOU = 0.5
"""IoU from which an instance counts as found."""

_RELATIVE = "relative:"
_SYNTAX = (
    "'coco', 'S:1024,M:9216,L:inf' (pixels) or 'relative:S:0.01,M:0.1,L:1' (share of the image)"
)

_DTYPES = {"image_id": np.str_, "charged": np.float64}

_Table = TypeVar("_Table", bound="_Columns")


class SizeBins(Mapping[str, float]):
    """Exclusive upper bounds by bin name, ascending; a mapping, as a plain dict of pixels is.

    An instance falls into the first bin whose bound exceeds its area (``relative=False``), or
    its area divided by the number of pixels of the image, ignored ones included
    (``relative=True``; a bound of 1 takes in an instance that fills the image, too).

    Args:
        bounds: upper bound by name.
        relative: whether bounds are shares of the image, in (0, 1] or inf, instead of pixels.

    Raises:
        ValueError: if there is no bin, a bound is not above the one before it (the first: above
            0), or a share exceeds 1.

    Example:
        >>> bins = SizeBins({"tiny": 0.01, "rest": 1}, relative=True)
        >>> bins.positions([99, 100, 10000], 10000).tolist()
        [0, 1, 1]
    """

    def __init__(self, bounds: Mapping[str, float], *, relative: bool = False) -> None:
        self._bounds = {str(name): float(bound) for name, bound in bounds.items()}
        self.relative = relative
        limits = [0.0, *self._bounds.values()]
        if len(limits) == 1 or not all(low < high for low, high in zip(limits, limits[1:])):
            raise ValueError(
                f"bins must map names to ascending upper bounds, got {dict(self._bounds)}"
            )
        wrong = [bound for bound in limits if relative and 1 < bound < math.inf]
        if wrong:
            raise ValueError(
                f"bins: a relative bound is a share of the image and at most 1, got {wrong}"
            )

    def __getitem__(self, name: str) -> float:
        return self._bounds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return list(self.items()) == list(other.items()) and self.relative == getattr(
            other, "relative", False
        )

    def __hash__(self) -> int:
        return hash((tuple(self._bounds.items()), self.relative))

    def __repr__(self) -> str:
        return f"SizeBins({self._bounds}, relative={self.relative})"

    def __str__(self) -> str:
        """The text that :func:`parse_size_bins` reads back."""
        parts = [f"{name}:{_plain(bound)}" for name, bound in self._bounds.items()]
        return (_RELATIVE if self.relative else "") + ",".join(parts)

    def positions(self, area: np.ndarray, image_area: np.ndarray | int) -> np.ndarray:
        """Find the bin of every area.

        Args:
            area: (R,) pixels.
            image_area: (R,) or one number, pixels of the image, for relative bins.

        Returns:
            int64 (R,), position of the first bin whose bound exceeds the area; ``len(self)`` if
            none does.
        """
        bounds = np.array(list(self._bounds.values()))
        if not self.relative:
            return np.searchsorted(bounds, area, side="right")
        # Nothing is larger than its image, so a share of 1 is no limit.
        bounds[bounds == 1] = math.inf
        return np.searchsorted(bounds, np.divide(area, image_area), side="right")


# docs/method.md#sizes: S < 32², M < 96², L the rest.
COCO_SIZE_BINS = SizeBins({"S": 32.0**2, "M": 96.0**2, "L": math.inf})


def as_size_bins(bins: Mapping[str, float]) -> SizeBins:
    """Take a plain mapping for absolute bins."""
    return bins if isinstance(bins, SizeBins) else SizeBins(bins)


def parse_size_bins(text: str) -> SizeBins:
    """Read bins from an option's text.

    Args:
        text: ``coco``; or ``NAME:BOUND`` pairs separated by commas, bounds ascending, in pixels
            (a number or ``inf``); with ``relative:`` in front, as shares of the image.

    Returns:
        The bins; ``str()`` of them gives the pairs back.

    Raises:
        ValueError: if the text has another form, a name comes twice, or bounds do not ascend.

    Example:
        >>> dict(parse_size_bins("S:1024,L:inf"))
        {'S': 1024.0, 'L': inf}
    """
    text = text.strip()
    if text.lower() == "coco":
        return COCO_SIZE_BINS
    relative = text.startswith(_RELATIVE)
    bounds: dict[str, float] = {}
    for pair in text[len(_RELATIVE) if relative else 0 :].split(","):
        name, _, number = pair.strip().partition(":")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not name or math.isnan(bound):
            raise ValueError(f"size bins: expected {_SYNTAX}, got {pair!r} in {text!r}")
        if name in bounds:
            raise ValueError(f"size bins: duplicate bin name {name!r} in {text!r}")
        bounds[name] = bound
    return SizeBins(bounds, relative=relative)


def _plain(bound: float) -> str:
    """A bound without a superfluous ``.0``."""
    return str(int(bound)) if bound.is_integer() else repr(bound)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """A table as a struct of equally long one-dimensional arrays."""

    def __post_init__(self) -> None:
        """Check the lengths."""
        lengths = {getattr(column, "shape", None) for column in self.__dict__.values()}
        if lengths != {(len(self),)}:
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

    def check_categories(self, what: str, num_classes: int) -> None:
        """Check that no category is beyond the classes; ``what`` is the table's name in errors."""
        highest = self.columns()["category_id"].max(initial=0)
        if highest >= num_classes:
            raise ValueError(
                f"{what}: category_id must be in 0..{num_classes - 1} for {num_classes} classes,"
                f" got {highest}"
            )

    def size_of(self, bins: Mapping[str, float] = COCO_SIZE_BINS) -> np.ndarray:
        """Find the size bin of every record, stuff included: see :meth:`SizeBins.positions`."""
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
        return cls(
            **{name: np.asarray(columns[name], _DTYPES.get(name, np.int64)) for name in names}
        )

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
        """Order by (image, category, instance)."""
        return self.select(np.lexsort((self.instance_id, self.category_id, self.image_id)))


@dataclasses.dataclass(frozen=True)
class BlobTable(_Columns):
    """Unmatched components: predicted ones that overlap no instance of their class.

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
        """Order by (image, category, area)."""
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
