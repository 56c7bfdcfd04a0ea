"""A scored run: all that is known of a method once its pixels have been read.

Shapes: N number of images; C number of classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

import numpy as np

from d2_smallobj.annotations.truth import GroundTruth, TruthImage
from d2_smallobj.metrics import (
    COCO_SIZE_BINS,
    Accumulator,
    BlobTable,
    InstanceTable,
    PixelTable,
    SizeBins,
    component_instances,
    parse_size_bins,
    summarize,
)
from d2_smallobj.metrics.summary import headline_names
from d2_smallobj.scoring.inputs import DatasetOpener, Inputs, choose_ignore_label
from d2_smallobj.scoring.predictions import Predictions, open_predictions, read_prediction
from d2_smallobj.statistics.comparison import run_stuff, run_worst
from d2_smallobj.statistics.intervals import Interval, bootstrap

SOURCE_KINDS = ("prediction", "semantic", "instances", "image")
"""Kinds of files of an image, in this order."""
LEVEL = 0.95
"""Confidence level of intervals."""

Source = Union[str, Callable[[], np.ndarray]]


class PixelSources(Mapping[str, Mapping[str, Source]]):
    """The pixels behind a run, by image id and kind.

    Values are files, or functions that return the array where there is no file (annotations, run
    lengths). The first such call opens the inputs again, once for all images; without a
    ``description`` (:meth:`.Inputs.describe`) there are only files. ``files`` has, by image id,
    one for each of :data:`SOURCE_KINDS`, empty where there is none.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[str]],
        description: Mapping[str, Any] | None = None,
        open_dataset: DatasetOpener | None = None,
    ) -> None:
        self.files = {image: tuple(paths) for image, paths in files.items()}
        self._description = description
        self._open_dataset = open_dataset

    def __getitem__(self, image_id: str) -> Mapping[str, Source]:
        paths = zip(SOURCE_KINDS, self.files[image_id])
        known: dict[str, Source] = {kind: path for kind, path in paths if path}
        if self._description is None:
            return known
        opened: dict[str, Source] = {
            "semantic": functools.partial(self._truth_map, image_id, 0),
            "instances": functools.partial(self._truth_map, image_id, 1),
            "prediction": functools.partial(self._prediction, image_id),
        }
        if "semantic" in known:
            # Ground truth in files: without an instance map, there is none.
            del opened["semantic"], opened["instances"]
        return {**opened, **known}

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def _truth_map(self, image_id: str, which: int) -> np.ndarray:
        truth, _ = self._truth
        maps = truth.read(self._image(image_id))
        if maps[which] is not None:
            return maps[which]
        ignore_label = choose_ignore_label(None, truth)
        return component_instances(maps[0], stuff=truth.stuff, ignore_label=ignore_label)

    def _prediction(self, image_id: str) -> np.ndarray:
        image = self._image(image_id)
        found = self._predictions.find(image)
        if found is None:
            raise ValueError(
                f"prediction of {image_id!r} not found; were the predictions changed since scoring?"
            )
        size, label_ids = self._truth[0].size(image), self._inputs.prediction_ids == "label"
        return read_prediction(found[1], size, f"prediction of {image_id}", label_ids=label_ids)

    def _image(self, image_id: str) -> TruthImage:
        if image_id not in self._truth[1]:
            raise ValueError(
                f"ground truth of {image_id!r} not found; were the inputs moved since scoring?"
            )
        return self._truth[1][image_id]

    @functools.cached_property
    def _inputs(self) -> Inputs:
        return Inputs.from_description(self._description, self._open_dataset)

    @functools.cached_property
    def _truth(self) -> tuple[GroundTruth, dict[str, TruthImage]]:
        truth = self._inputs.open_truth()
        return truth, {image.image_id: image for image in truth.images}

    @functools.cached_property
    def _predictions(self) -> Predictions:
        return open_predictions(self._inputs.predictions, self._truth[0].json_classes)


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """The result of scoring one method on one data set.

    Attributes:
        name: the run's name in tables.
        options: how it was scored: ``mode``, ``stuff`` (class ids), ``ignore_label``,
            ``void_instance``, ``size_bins`` (text), ``worst`` (percent), ``version``, and what
            the command was given.
        class_names: C names.
        table: a record for every instance, sorted.
        blobs: the false-positive blobs, sorted.
        images: N ids, sorted; images without any record included.
        pixels: pixel counts by image and class, sorted.
        confusion: int64 (C, C), rows ground truth, columns prediction.
        sources: the files of each image, for pictures.
        intervals: of the headline figures, in percent; empty if none were computed.
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
        """Ids of the stuff classes of the options; the background (0) by default."""
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

    def with_intervals(self) -> ScoredRun:
        """Return the run with bootstrap intervals as the options say; none without an image."""
        samples = int(self.options.get("bootstrap", 0))
        if samples == 0 or not self.images:
            return self
        found = bootstrap(
            self,
            class_names=self.class_names,
            stuff=self.stuff,
            size_bins=self.size_bins,
            worst=self.worst,
            samples=samples,
            seed=int(self.options.get("seed", 0)),
            level=float(self.options.get("level", LEVEL)),
        )
        return dataclasses.replace(self, intervals=found)

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
        """Make a run of what an accumulator has collected; its settings become options."""
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
