"""Write a scored run as a folder of small text files, and read it back to the bit.

| file | holds |
|---|---|
| ``metrics.json`` | figures, options, versions (:mod:`.run_figures`) |
| ``instances.csv`` | a row for every instance, and for every image and stuff class |
| ``instance_details.csv`` | further columns of these rows |
| ``blobs.csv`` | a row for every false-positive blob |
| ``images.csv`` | a row for every image, with its files |
| ``pixels.csv`` | pixels by image and class: intersection, ground truth, predicted |
| ``confusion.csv`` | the confusion matrix, rows ground truth, columns prediction |

Statistics, comparisons, reports and merging shards need nothing else: no pixel is read again.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2_smallobj.metrics import OUTCOMES, BlobTable, InstanceTable, PixelTable, classify
from d2_smallobj.scoring import run_figures
from d2_smallobj.scoring.inputs import DatasetOpener
from d2_smallobj.scoring.scored_run import SOURCE_KINDS, PixelSources, ScoredRun
from d2_smallobj.utils.files import atomic_write_text, csv_text

INSTANCES_FILE = "instances.csv"
DETAILS_FILE = "instance_details.csv"
BLOBS_FILE = "blobs.csv"
IMAGES_FILE = "images.csv"
PIXELS_FILE = "pixels.csv"
CONFUSION_FILE = "confusion.csv"
METRICS_FILE = "metrics.json"
RUN_FILES = (
    INSTANCES_FILE,
    DETAILS_FILE,
    BLOBS_FILE,
    IMAGES_FILE,
    PIXELS_FILE,
    CONFUSION_FILE,
    METRICS_FILE,
)
"""The files of a run, in the order they are written."""

_INSTANCE_COLUMNS = (
    *("image_id", "instance_id", "category_id", "area", "size", "iou", "intersection"),
    *("charged", "components", "outcome"),
)
_DETAIL_COLUMNS = ("image_id", "instance_id", "pixels", "shared", "image_area")
_IMAGE_COLUMNS = ("image_id", *SOURCE_KINDS)
_CORNER = "ground truth \\ prediction"


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
    details = zip(*(getattr(run.table, name).tolist() for name in _DETAIL_COLUMNS))
    files = getattr(run.sources, "files", {})
    no_files = ("",) * len(SOURCE_KINDS)
    images = ((image, *files.get(image, no_files)) for image in run.images)
    confusion = zip(run.class_names, run.confusion.tolist())
    contents = {
        INSTANCES_FILE: _instances_csv(run),
        DETAILS_FILE: csv_text(_DETAIL_COLUMNS, details),
        BLOBS_FILE: _table_csv(run.blobs),
        IMAGES_FILE: csv_text(_IMAGE_COLUMNS, images),
        PIXELS_FILE: _table_csv(run.pixels),
        CONFUSION_FILE: csv_text((_CORNER, *run.class_names), ((n, *row) for n, row in confusion)),
        METRICS_FILE: run_figures.dumps(run_figures.describe(run, extra)),
    }
    for name in RUN_FILES:
        atomic_write_text(os.path.join(folder, name), contents[name])


def load_run(
    folder: str | os.PathLike[str], *, open_dataset: DatasetOpener | None = None
) -> ScoredRun:
    """Read a run back, equal to the one written in every bit; its folder's name is the run's.

    Missing files are a FileNotFoundError that names them; malformed files, or files that do not
    belong together, a ValueError.
    """
    folder = Path(folder)
    missing = [name for name in RUN_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no scored run, {', '.join(missing)} missing (give a folder that "
            "tools/evaluate.py or the evaluator wrote)"
        )
    document = _read_metrics(folder / METRICS_FILE)
    class_names = tuple(document["classes"])
    images, files = _read_images(folder / IMAGES_FILE)
    run = ScoredRun(
        name=folder.resolve().name,
        options=document["options"],
        class_names=class_names,
        table=_read_instances(folder / INSTANCES_FILE, folder / DETAILS_FILE),
        blobs=BlobTable.from_columns(
            _read_columns(folder / BLOBS_FILE, BlobTable.names(), BlobTable)
        ).sorted(),
        images=images,
        pixels=_read_pixels(folder / PIXELS_FILE, images, len(class_names)),
        confusion=_read_confusion(folder / CONFUSION_FILE, class_names),
        sources=PixelSources(files, document["options"].get("inputs"), open_dataset),
        intervals=run_figures.intervals_of(document),
        remarks=tuple(document["remarks"]),
    )
    _check_together(run, document, folder)
    return run


def load_runs(
    folders: Sequence[str | os.PathLike[str]], *, open_dataset: DatasetOpener | None = None
) -> list[ScoredRun]:
    """Read several runs and give them names that differ; a folder given twice is a ValueError.

    Folders of one name (``a/val`` and ``b/val``) get as much of their paths as tells them apart.
    """
    parts = [Path(folder).resolve().parts for folder in folders]
    twice = sorted({os.path.join(*path) for path in parts if parts.count(path) > 1})
    if twice:
        raise ValueError(f"a run can be compared with others only; given twice: {twice[0]}")
    runs = [load_run(folder, open_dataset=open_dataset) for folder in folders]
    for length in itertools.count(1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names)]


def _read_metrics(path: Path) -> dict[str, Any]:
    """Read ``metrics.json`` and check its format."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a complete JSON file ({error})") from error
    wanted = {"classes": dict, "options": dict, "intervals": dict, "remarks": list}
    form = document.get("format") if isinstance(document, dict) else None
    if form != run_figures.FORMAT or any(
        not isinstance(document.get(key), kind) for key, kind in wanted.items()
    ):
        raise ValueError(
            f"{path}: no metrics of a scored run of format {run_figures.FORMAT}, got {form!r}:"
            " score the predictions again with this version"
        )
    return document


def _check_together(run: ScoredRun, document: Mapping[str, Any], folder: Path) -> None:
    """Refuse files of different runs: a mean over them would be wrong."""
    found = []
    known = set(run.images)
    for name, table in ((INSTANCES_FILE, run.table), (BLOBS_FILE, run.blobs)):
        if not known.issuperset(table.image_id.tolist()):
            found.append(f"{name} has images that {IMAGES_FILE} lacks")
    hit, truth, predicted = run.pixels.class_sums(len(run.class_names)).T
    margins = (np.diagonal(run.confusion), run.confusion.sum(axis=1), run.confusion.sum(axis=0))
    if not all(map(np.array_equal, margins, (hit, truth, predicted))):
        found.append(f"{PIXELS_FILE} does not add up to {CONFUSION_FILE}")
    try:
        wrong = run_figures.differing(run, document)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from error
    if wrong:
        found.append(f"{METRICS_FILE} has another {', '.join(wrong)} than the records")
    if found:
        raise ValueError(f"{folder}: its files belong to different runs ({'; '.join(found)})")


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
    return csv_text(_INSTANCE_COLUMNS, zip(*(columns[name] for name in _INSTANCE_COLUMNS)))


def _read_instances(path: Path, details: Path) -> InstanceTable:
    columns = _read_columns(path, _INSTANCE_COLUMNS, InstanceTable)
    more = _read_columns(details, _DETAIL_COLUMNS, InstanceTable)
    for name in ("image_id", "instance_id"):
        if not np.array_equal(columns[name], more[name]):
            raise ValueError(f"{details}: its rows must be of the same instances as {path}'s")
    return InstanceTable.from_columns({**more, **columns}).sorted()


def _read_images(path: Path) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Read the ids, sorted, and the files of each image."""
    rows = _read_rows(path, _IMAGE_COLUMNS)
    files = {row[0]: tuple(row[1:]) for row in rows}
    images = [row[0] for row in rows]
    if images != sorted(files):
        raise ValueError(f"{path}: image ids must ascend, each of them once")
    return images, files


def _read_pixels(path: Path, images: Sequence[str], num_classes: int) -> PixelTable:
    pixels = PixelTable.from_columns(_read_columns(path, PixelTable.names(), PixelTable)).sorted()
    strange = sorted(set(pixels.image_id.tolist()).difference(images))
    if strange:
        raise ValueError(f"{path}: {strange[0]!r} is not among the images")
    counts = (pixels.intersection, pixels.ground_truth, pixels.predicted)
    least = min(int(column.min(initial=0)) for column in (pixels.category_id, *counts))
    if least < 0 or pixels.category_id.max(initial=0) >= num_classes:
        raise ValueError(f"{path}: category_id must be in 0..{num_classes - 1}, counts >= 0")
    same = (pixels.image_id[1:] == pixels.image_id[:-1]) & (
        pixels.category_id[1:] == pixels.category_id[:-1]
    )
    if same.any():
        image = pixels.image_id[1:][same][0]
        raise ValueError(f"{path}: a class of image {image!r} has two rows")
    return pixels


def _read_confusion(path: Path, class_names: Sequence[str]) -> np.ndarray:
    rows = _read_rows(path, (_CORNER, *class_names))
    if [row[0] for row in rows] != list(class_names):
        raise ValueError(f"{path}: its rows must be the classes {list(class_names)}")
    try:
        cells = np.array([[int(cell) for cell in row[1:]] for row in rows], np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: a cell holds no number ({error})") from error
    return cells.reshape(len(class_names), len(class_names))


def _table_csv(table: BlobTable | PixelTable) -> str:
    columns = table.columns()
    return csv_text(columns, zip(*(column.tolist() for column in columns.values())))


def _read_rows(path: Path, header: Sequence[str]) -> list[list[str]]:
    """Read the rows of a CSV file with this header."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: no CSV file in UTF-8 ({error})") from error
    found = rows[0] if rows else []
    if found != list(header):
        raise ValueError(f"{path}: its columns must be {', '.join(header)}; got {found}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(found):
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells instead of {len(found)}; is the file"
                " complete?"
            )
    return rows[1:]


def _read_columns(
    path: Path, header: Sequence[str], kind: type[InstanceTable | BlobTable | PixelTable]
) -> dict[str, np.ndarray]:
    """Read the columns of a file that are columns of a table, too, by name."""
    rows = _read_rows(path, header)
    types: dict[str, type] = {"image_id": np.str_, "charged": np.float64}
    try:
        return {
            name: np.array([row[place] for row in rows], np.str_).astype(types.get(name, np.int64))
            for place, name in enumerate(header)
            if name in kind.names()
        }
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: a cell holds no number ({error})") from error
