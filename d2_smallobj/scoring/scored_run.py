"""A scored run: all that is known of a method once its pixels have been looked at.

Shapes: N number of images; C number of classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

import numpy as np

from d2_smallobj.metrics import (
    COCO_SIZE_BINS,
    Accumulator,
    BlobTable,
    InstanceTable,
    PixelTable,
    SizeBins,
    parse_size_bins,
    summarize,
)
from d2_smallobj.metrics.summary import headline_names
from d2_smallobj.statistics.comparison import run_stuff, run_worst
from d2_smallobj.statistics.intervals import Interval

SOURCE_KINDS = ("prediction", "semantic", "instances", "image")
"""What is known of an image's files, in this order."""

Source = Union[str, Callable[[], np.ndarray]]


class Sources(Mapping[str, Mapping[str, Source]]):
    """Where the pixels of every image are, by image id and kind.

    Values are files, or functions that return the array where there is no file (annotations,
    run lengths): those open their inputs on first use only.

    Args:
        files: by image id, the file of each of :data:`SOURCE_KINDS`, empty where there is none.
        reopen: makes the functions of an image; ``None``: there is nothing but files.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[str]],
        reopen: Callable[[str], Mapping[str, Callable[[], np.ndarray]]] | None = None,
    ) -> None:
        self.files = {image: tuple(paths) for image, paths in files.items()}
        self._reopen = reopen

    def __getitem__(self, image_id: str) -> Mapping[str, Source]:
        paths = zip(SOURCE_KINDS, self.files[image_id])
        known: dict[str, Source] = {kind: path for kind, path in paths if path}
        if self._reopen is not None:
            painted = dict(self._reopen(image_id))
            if "semantic" in known:
                # Ground truth in files: where there is no instance map, there are none.
                del painted["semantic"], painted["instances"]
            known = {**painted, **known}
        return known

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """The result of scoring one method on one data set.

    Attributes:
        name: what tables call it.
        options: how it was scored: ``mode``, ``stuff`` (class ids), ``ignore_label``,
            ``void_instance``, ``size_bins`` (text), ``worst`` (percent), ``version``, and what
            the command was given.
        class_names: C names.
        table: a record for every instance, sorted.
        blobs: the false-positive blobs, sorted.
        images: N ids, sorted; images without any record included.
        pixels: pixel counts by image and class, sorted.
        confusion: int64 (C, C), rows ground truth, columns prediction.
        sources: where the pixels are, for pictures.
        intervals: of the headline figures, in percent; empty where none were computed.
        remarks: what the reader should know about the inputs, one sentence each.
    """

    name: str
    options: Mapping[str, Any]
    class_names: tuple[str, ...]
    table: InstanceTable
    blobs: BlobTable
    images: Sequence[str]
    pixels: PixelTable
    confusion: np.ndarray
    sources: Mapping[str, Mapping[str, Source]] = dataclasses.field(default_factory=dict)
    intervals: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def size_bins(self) -> SizeBins:
        """The size bins of the options, COCO's by default."""
        return parse_size_bins(self.options.get("size_bins", str(COCO_SIZE_BINS)))

    @property
    def stuff(self) -> tuple[int, ...]:
        """Ids of the stuff classes of the options; the background (0) if nothing is said."""
        return run_stuff(self.options)

    @property
    def worst(self) -> int:
        """Share of the worst images of the options, in percent."""
        return run_worst(self.options)

    @property
    def headline(self) -> dict[str, float]:
        """The figures of the data set by name, in percent."""
        return {name: self.figures[name] for name in headline_names(self.size_bins, self.worst)}

    @functools.cached_property
    def figures(self) -> dict[str, float]:
        """All figures; see :func:`d2_smallobj.metrics.summary.summarize`."""
        return summarize(
            self.table,
            self.pixels,
            self.class_names,
            stuff=self.stuff,
            size_bins=self.size_bins,
            worst=self.worst,
            images=len(self.images),
        )

    @classmethod
    def from_accumulator(
        cls,
        accumulator: Accumulator,
        class_names: Sequence[str],
        *,
        name: str = "",
        options: Mapping[str, Any] | None = None,
        sources: Mapping[str, Mapping[str, Source]] | None = None,
        remarks: Sequence[str] = (),
    ) -> ScoredRun:
        """Take what an accumulator has collected; its settings become options."""
        settings = {**accumulator.settings, "stuff": list(accumulator.stuff)}
        del settings["num_classes"]
        return cls(
            name=name,
            options={**settings, **(options or {})},
            class_names=tuple(class_names),
            table=accumulator.table,
            blobs=accumulator.blobs,
            images=accumulator.images,
            pixels=accumulator.pixels,
            confusion=accumulator.confusion.copy(),
            sources=sources or {},
            remarks=tuple(remarks),
        )
