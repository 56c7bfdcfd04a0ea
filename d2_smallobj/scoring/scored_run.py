"""A scored run: all that is known of a method once its pixels have been read, and its folder.

The folder holds small text files, from which a run is read back to the bit (:mod:`.run_folder`):

| file | holds |
|---|---|
| ``metrics.json`` | figures, options, versions |
| ``instances.csv`` | a row for every instance, and for every image and stuff class |
| ``instance_details.csv`` | further columns of these rows |
| ``blobs.csv`` | a row for every false-positive blob |
| ``images.csv`` | a row for every image, with its files |
| ``pixels.csv`` | pixels by image and class: intersection, ground truth, predicted |
| ``confusion.csv`` | the confusion matrix, rows ground truth, columns prediction |

The keys of ``metrics.json`` are stable: ``mIoU``, ``IA-mIoU``, ``IA-mIoU_fg``, ``IA-mIoU_<size>``
and the other figures of :func:`d2_smallobj.metrics.summary.headline_names` in percent (``null``
where undefined), ``intervals``, ``classes``, ``counts``, ``outcomes``, ``blobs``,
``few_instances``, ``warnings``, ``options``, ``versions``, ``files`` (checksums). None depends on
the time, the machine's speed, or the number of processes. Shapes: N number of images; C number of
classes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import d2_smallobj
from d2_smallobj.metrics import (
    OUTCOMES,
    Accumulator,
    BlobTable,
    InstanceTable,
    PixelTable,
    SizeBins,
    blob_summary,
    classify,
    outcome_summary,
    summarize,
)
from d2_smallobj.metrics.summary import headline_names
from d2_smallobj.scoring.inputs import SOURCE_KINDS, Sources
from d2_smallobj.scoring.suspicious_maps import suspicions
from d2_smallobj.statistics.comparison import run_size_bins, run_stuff, run_worst
from d2_smallobj.statistics.intervals import (
    FewInstances,
    Interval,
    bootstrap,
    few_instances,
    few_instances_warnings,
)
from d2_smallobj.utils.files import atomic_write_text, csv_text, digest
from d2_smallobj.utils.messages import listed
from d2_smallobj.utils.opencv import cv2

FORMAT = 3
"""Version of the files of a run, raised when older readers would misread them."""
LEVEL = 0.95
"""Confidence level of intervals."""

METRICS_FILE = "metrics.json"
RUN_FILES = (
    *("instances.csv", "instance_details.csv", "blobs.csv", "images.csv", "pixels.csv"),
    *("confusion.csv", METRICS_FILE),
)
"""The files of a run, in the order they are written."""
INSTANCE_COLUMNS = (
    *("image_id", "instance_id", "category_id", "area", "size", "iou", "intersection"),
    *("charged", "components", "outcome"),
)
DETAIL_COLUMNS = ("image_id", "instance_id", "pixels", "shared", "image_area")
IMAGE_COLUMNS = ("image_id", *SOURCE_KINDS)
CORNER = "ground truth \\ prediction"
"""Title of the first column of ``confusion.csv``."""


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
    sources: Sources = dataclasses.field(default_factory=dict)
    intervals: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def size_bins(self) -> SizeBins:
        """The size bins of the options, COCO's by default."""
        return run_size_bins(self.options)

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

    @functools.cached_property
    def few_instances(self) -> list[FewInstances]:
        """Classes and sizes with too few instances for a mean."""
        return few_instances(self.table, self.class_names, self.size_bins, stuff=self.stuff)

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
        sources: Sources | None = None,
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


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder and check that it can be written, before hours are spent on its content."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to the output folder {folder}: {error.strerror or error}"
        ) from error


def save_run(
    folder: str | os.PathLike[str], run: ScoredRun, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a run, each file atomically, ``metrics.json`` last.

    Files of an earlier run in the folder are replaced. The run's name is not written: a run is
    called by its folder's name. ``extra`` keys go into ``metrics.json``.
    """
    details = zip(*(getattr(run.table, name).tolist() for name in DETAIL_COLUMNS))
    sources = getattr(run.sources, "files", {})
    images = ((image, *sources.get(image, ("",) * len(SOURCE_KINDS))) for image in run.images)
    confusion = zip(run.class_names, run.confusion.tolist())
    tables = (
        _instances_csv(run),
        csv_text(DETAIL_COLUMNS, details),
        _table_csv(run.blobs),
        csv_text(IMAGE_COLUMNS, images),
        _table_csv(run.pixels),
        csv_text((CORNER, *run.class_names), ((name, *row) for name, row in confusion)),
    )
    document = _plain(describe(run, extra))
    document["files"] = {name: digest(text.encode()) for name, text in zip(RUN_FILES, tables)}
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    for name, content in zip(RUN_FILES, (*tables, f"{text}\n")):
        atomic_write_text(os.path.join(folder, name), content)


def describe(run: ScoredRun, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the content of ``metrics.json``, ``extra`` keys first; undefined figures are NaN."""
    bins = run.size_bins
    return {
        **(extra or {}),
        **run.headline,
        "intervals": {name: dataclasses.asdict(found) for name, found in run.intervals.items()},
        "classes": _classes(run),
        "counts": _counts(run),
        "outcomes": outcome_summary(run.table, run.class_names, bins, stuff=run.stuff),
        "blobs": blob_summary(run.blobs, run.class_names, bins, stuff=run.stuff),
        "few_instances": [dataclasses.asdict(one) for one in run.few_instances],
        "warnings": warnings(run),
        "remarks": list(run.remarks),
        "options": dict(run.options),
        # What the figures could depend on.
        "versions": {
            "d2_smallobj": d2_smallobj.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "format": FORMAT,
    }


def input_warnings(run: ScoredRun) -> list[str]:
    """List what the reader should know about the inputs, one sentence each."""
    return [*run.remarks, *suspicions(run.table, len(run.class_names), run.options)]


def warnings(run: ScoredRun) -> list[str]:
    """List the limits of the figures, one sentence each."""
    found = input_warnings(run)
    if "shard" in run.options:
        found.append(
            f"These are the figures of shard {run.options['shard']} alone; merge all shards."
        )
    if not run.images:
        found.append("No image was scored; all figures are undefined.")
    things = [name for place, name in enumerate(run.class_names) if place not in run.stuff]
    absent = [name for name in things if not run.figures[f"instances-{name}"]]
    if absent and run.images:
        found.append(
            f"IA-mIoU leaves out {len(absent)} class(es) without an instance: {listed(absent)}."
        )
    return found + few_instances_warnings(run.few_instances)


def _classes(run: ScoredRun) -> dict[str, dict[str, float]]:
    """Return all figures by class; stuff has no sizes."""
    groups = ["", *(f"_{size}" for size in run.size_bins)]
    found = {}
    for category, name in enumerate(run.class_names):
        shown = groups if category not in run.stuff else groups[:1]
        found[name] = {"IoU": run.figures[f"IoU-{name}"]}
        found[name] |= {f"IA-IoU{group}": run.figures[f"IA-IoU{group}-{name}"] for group in shown}
        found[name] |= {f"instances{g}": int(run.figures[f"instances{g}-{name}"]) for g in shown}
    return found


def _counts(run: ScoredRun) -> dict[str, int]:
    """Count images, instances, pixels and blobs."""
    groups = ["", *(f"_{size}" for size in run.size_bins)]
    pixels = run.pixels.select(run.pixels.ground_truth > 0)
    with_instances = np.unique(run.table.image_id[run.table.things])
    return {
        "images": len(run.images),
        **{f"instances{group}": int(run.figures[f"instances{group}"]) for group in groups},
        "images_without_instances": len(run.images) - len(with_instances),
        "images_all_ignored": len(run.images) - len(np.unique(pixels.image_id)),
        "classes_in_ground_truth": len(np.unique(pixels.category_id)),
        "pixels": int(pixels.ground_truth.sum()),
        "blobs": len(run.blobs),
    }


def _plain(value: Any) -> Any:
    """Convert to plain JSON values; undefined numbers become ``None``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _instances_csv(run: ScoredRun) -> str:
    """Write the records with size, IoU and outcome; stuff has no size or outcome."""
    names = (*run.size_bins, "")
    sizes = np.where(run.table.things, run.table.size_of(run.size_bins), len(names) - 1)
    outcomes = np.where(run.table.things, classify(run.table), len(OUTCOMES))
    columns = {name: column.tolist() for name, column in run.table.columns().items()}
    columns["size"] = [names[size] for size in sizes.tolist()]
    columns["outcome"] = [(*OUTCOMES, "")[outcome] for outcome in outcomes.tolist()]
    # repr keeps every bit, so that figures can be computed from the file.
    columns["charged"] = list(map(repr, columns["charged"]))
    columns["iou"] = list(map(repr, run.table.iou.tolist()))
    return csv_text(INSTANCE_COLUMNS, zip(*(columns[name] for name in INSTANCE_COLUMNS)))


def _table_csv(table: BlobTable | PixelTable) -> str:
    columns = table.columns()
    return csv_text(columns, zip(*(column.tolist() for column in columns.values())))
