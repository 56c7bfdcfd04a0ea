"""The CSV files of a scored run, written and read without losing a bit.

Shapes: C number of classes; R number of records.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from d2_smallobj.metrics import OUTCOMES, BlobTable, InstanceTable, PixelTable, classify
from d2_smallobj.scoring.scored_run import SOURCE_KINDS, ScoredRun

INSTANCE_COLUMNS = (
    *("image_id", "instance_id", "category_id", "area", "size", "iou", "intersection"),
    *("charged", "components", "outcome"),
)
"""Columns of ``instances.csv``, kept stable."""

DETAIL_COLUMNS = ("image_id", "instance_id", "pixels", "shared", "image_area")
"""Columns of ``instance_details.csv``: what else there is to know, for the same rows."""


def instances_csv(run: ScoredRun) -> str:
    """``instances.csv``: the records with size, IoU and outcome; stuff has no size or outcome."""
    names = (*run.size_bins, "")
    sizes = np.where(run.table.things, run.table.size_of(run.size_bins), len(names) - 1)
    outcomes = np.where(run.table.things, classify(run.table), len(OUTCOMES))
    columns = {name: column.tolist() for name, column in run.table.columns().items()}
    columns["size"] = [names[size] for size in sizes.tolist()]
    columns["outcome"] = [(*OUTCOMES, "")[outcome] for outcome in outcomes.tolist()]
    # repr keeps every bit, so that figures can be computed from the file.
    columns["charged"] = list(map(repr, columns["charged"]))
    columns["iou"] = list(map(repr, run.table.iou.tolist()))
    return _write(INSTANCE_COLUMNS, zip(*(columns[name] for name in INSTANCE_COLUMNS)))


def details_csv(run: ScoredRun) -> str:
    """``instance_details.csv``: the rest of the records, row by row."""
    columns = [getattr(run.table, name).tolist() for name in DETAIL_COLUMNS]
    return _write(DETAIL_COLUMNS, zip(*columns))


def read_instances(path: Path, details: Path) -> InstanceTable:
    """Read ``instances.csv`` and ``instance_details.csv``.

    Raises:
        ValueError: as for all readers here, names file and line; or the rows of the two are not
            of the same instances.
    """
    columns = _read_columns(path, INSTANCE_COLUMNS, InstanceTable)
    more = _read_columns(details, DETAIL_COLUMNS, InstanceTable)
    for name in ("image_id", "instance_id"):
        if not np.array_equal(columns[name], more[name]):
            raise ValueError(f"{details}: its rows must be of the same instances as {path}'s")
    return InstanceTable.from_columns({**more, **columns}).sorted()


def blobs_csv(run: ScoredRun) -> str:
    """``blobs.csv``: the false-positive blobs."""
    columns = run.blobs.columns()
    return _write(columns, zip(*(column.tolist() for column in columns.values())))


def read_blobs(path: Path) -> BlobTable:
    """Read ``blobs.csv``."""
    return BlobTable.from_columns(_read_columns(path, BlobTable.names(), BlobTable)).sorted()


def images_csv(run: ScoredRun) -> str:
    """``images.csv``: the images and their files, empty where there are none."""
    files = getattr(run.sources, "files", {})
    none = ("",) * len(SOURCE_KINDS)
    rows = [(image, *files.get(image, none)) for image in run.images]
    return _write(("image_id", *SOURCE_KINDS), rows)


def read_images(path: Path) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Read ``images.csv``: the ids, sorted, and the files of each."""
    rows = _read(path, ("image_id", *SOURCE_KINDS))
    files = {row[0]: tuple(row[1:]) for row in rows}
    images = [row[0] for row in rows]
    if images != sorted(files):
        raise ValueError(f"{path}: image ids must ascend, each of them once")
    return images, files


def pixels_csv(run: ScoredRun) -> str:
    """``pixels.csv``: the counts of all classes that an image has in truth or prediction."""
    columns = run.pixels.columns()
    return _write(columns, zip(*(column.tolist() for column in columns.values())))


def read_pixels(path: Path, images: Sequence[str], num_classes: int) -> PixelTable:
    """Read ``pixels.csv``: counts of images among ``images``."""
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


def confusion_csv(run: ScoredRun) -> str:
    """``confusion.csv``: the matrix with class names."""
    rows = zip(run.class_names, run.confusion.tolist())
    header = ("ground truth \\ prediction", *run.class_names)
    return _write(header, ((name, *row) for name, row in rows))


def read_confusion(path: Path, class_names: Sequence[str]) -> np.ndarray:
    """Read ``confusion.csv``: int64 (C, C)."""
    rows = _read(path, ("ground truth \\ prediction", *class_names))
    if [row[0] for row in rows] != list(class_names):
        raise ValueError(f"{path}: its rows must be the classes {list(class_names)}")
    return _integers(path, rows, slice(1, None)).reshape(len(class_names), len(class_names))


def _write(header: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _read(path: Path, header: Sequence[str]) -> list[list[str]]:
    """Rows of a CSV file with this header."""
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
    """The columns of a file that are columns of a table, too, by name."""
    rows = _read(path, header)
    types: dict[str, type] = {"image_id": np.str_, "charged": np.float64}
    try:
        return {
            name: np.array([row[place] for row in rows], np.str_).astype(types.get(name, np.int64))
            for place, name in enumerate(header)
            if name in kind.names()
        }
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: a cell holds no number ({error})") from error


def _integers(path: Path, rows: Sequence[Sequence[str]], cells: slice) -> np.ndarray:
    """The cells of all rows as int64."""
    try:
        return np.array([[int(cell) for cell in row[cells]] for row in rows], np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: a cell holds no number ({error})") from error
