"""Read the folders of scored runs back, and merge the shards of a run."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar, Union

import msgspec
import numpy as np

from d2_smallobj.metrics import BlobTable, InstanceTable, PixelTable
from d2_smallobj.scoring.inputs import DatasetOpener, PixelSources
from d2_smallobj.scoring.pipeline import parse_shard
from d2_smallobj.scoring.scored_run import (
    CORNER,
    DETAIL_COLUMNS,
    FORMAT,
    IMAGE_COLUMNS,
    INSTANCE_COLUMNS,
    METRICS_FILE,
    RUN_FILES,
    ScoredRun,
)
from d2_smallobj.statistics.comparison import run_size_bins
from d2_smallobj.statistics.intervals import Interval
from d2_smallobj.utils.files import digest, open_file, read_bytes
from d2_smallobj.utils.messages import listed

_Table = TypeVar("_Table", InstanceTable, BlobTable, PixelTable)
_LONGEST_CELL = 1000  # characters of a CSV file
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Figure = Optional[float]
_Whole = Optional[int]
_Text = Optional[str]
_Bins = Union[str, dict[str, float], None]
_Paths = Optional[dict[str, str]]


class _Interval(msgspec.Struct):
    estimate: _Figure
    low: _Figure
    high: _Figure


class _Options(msgspec.Struct):
    """The options that are read back; a run may have others."""

    mode: _Text = None
    stuff: list[_Count] = []
    ignore_label: _Whole = None
    size_bins: _Bins = None
    worst: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    bootstrap: _Count = 0
    seed: _Count = 0
    level: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.95
    shard: _Text = None
    inputs: _Paths = None


class _Metrics(msgspec.Struct):
    """What must be in ``metrics.json``, beside the figures."""

    classes: dict[str, Any]
    options: _Options
    intervals: dict[str, _Interval]
    remarks: list[str]
    files: dict[str, str] = {}


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
            "`smallobj evaluate` or the evaluator wrote)"
        )
    document = _read_metrics(folder / METRICS_FILE)
    class_names = tuple(document["classes"])
    images, files = _read_images(folder / "images.csv")
    run = ScoredRun(
        name=folder.resolve().name,
        options=document["options"],
        class_names=class_names,
        table=_read_instances(folder / "instances.csv", folder / "instance_details.csv"),
        blobs=_read_table(folder / "blobs.csv", BlobTable),
        images=images,
        pixels=_read_pixels(folder / "pixels.csv", images, len(class_names)),
        confusion=_read_confusion(folder / "confusion.csv", class_names),
        sources=PixelSources(files, document["options"].get("inputs"), open_dataset),
        intervals={
            name: Interval(*(_number(ends[key]) for key in ("estimate", "low", "high")))
            for name, ends in document["intervals"].items()
        },
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


def merge(
    folders: Sequence[str | os.PathLike[str]], *, open_dataset: DatasetOpener | None = None
) -> ScoredRun:
    """Merge the shards of a run, in any order: to the bit what one run over all images gives.

    Raises ValueError if a shard is missing, given twice, or was scored with different inputs,
    options or classes.
    """
    if not folders:
        raise ValueError("merge: give the folders of all shards, got none")
    runs = [load_run(folder) for folder in folders]
    _check_shards(runs, [Path(folder) for folder in folders])
    read = [run.sources for run in runs if isinstance(run.sources, PixelSources)]
    files = {image: paths for source in read for image, paths in source.files.items()}
    ids = sorted(image for run in runs for image in run.images)
    options = {key: value for key, value in runs[0].options.items() if key != "shard"}
    sources = PixelSources({image: files[image] for image in ids}, options["inputs"], open_dataset)
    merged = dataclasses.replace(
        runs[0],
        name="",
        options=options,
        table=InstanceTable.concatenate([run.table for run in runs]).sorted(),
        blobs=BlobTable.concatenate([run.blobs for run in runs]).sorted(),
        images=ids,
        pixels=PixelTable.concatenate([run.pixels for run in runs]).sorted(),
        confusion=np.sum([run.confusion for run in runs], axis=0),
        sources=sources,
    )
    return merged.with_intervals()


def _check_shards(runs: Sequence[ScoredRun], folders: Sequence[Path]) -> None:
    """Refuse anything but all shards of one run."""
    where: dict[tuple[int, int], Path] = {}
    first = runs[0]
    for scored, folder in zip(runs, folders):
        if "shard" not in scored.options:
            raise ValueError(f"merge: {folder} is no shard (it was scored without --shard)")
        shard = parse_shard(str(scored.options["shard"]))
        if shard in where:
            raise ValueError(
                f"merge: shard {shard[0]}/{shard[1]} is given twice: {where[shard]} and {folder}"
            )
        where[shard] = folder
        pairs = {
            key: (first.options.get(key), scored.options.get(key))
            for key in sorted({*first.options, *scored.options} - {"shard"})
        }
        pairs["classes"] = (first.class_names, scored.class_names)
        pairs["remarks"] = (first.remarks, scored.remarks)
        for key, (mine, theirs) in pairs.items():
            if mine != theirs:
                raise ValueError(
                    f"merge: shards of different runs: {key} is {mine!r} in {folders[0]}, "
                    f"{theirs!r} in {folder}"
                )
    parts = shard[1]
    counts = sorted({parts for _, parts in where})
    if len(counts) > 1:
        raise ValueError(f"merge: shards of different numbers of shards, {counts}")
    missing = [f"{part}/{parts}" for part in range(1, parts + 1) if (part, parts) not in where]
    if missing:
        raise ValueError(f"merge: {len(missing)} shard(s) missing: {listed(missing)}")


def _read_metrics(path: Path) -> dict[str, Any]:
    """Read ``metrics.json`` and check its format."""
    content = read_bytes(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a complete JSON file ({error})") from error
    form = document.get("format") if isinstance(document, dict) else None
    if form != FORMAT:
        raise ValueError(
            f"{path}: no metrics of a scored run of format {FORMAT}, got {form!r:.60}:"
            " score the predictions again with this version"
        )
    try:
        msgspec.json.decode(content, type=_Metrics)
        run_size_bins(document["options"])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no metrics of a scored run ({error})") from error
    return document


def _check_together(run: ScoredRun, document: Mapping[str, Any], folder: Path) -> None:
    """Refuse files of different runs: a mean over them would be wrong."""
    found = []
    known = set(run.images)
    for name, table in (("instances.csv", run.table), ("blobs.csv", run.blobs)):
        if not known.issuperset(table.image_id.tolist()):
            found.append(f"{name} has images that images.csv lacks")
    hit, truth, predicted = run.pixels.class_sums(len(run.class_names)).T
    margins = (np.diagonal(run.confusion), run.confusion.sum(axis=1), run.confusion.sum(axis=0))
    if not all(map(np.array_equal, margins, (hit, truth, predicted))):
        found.append("pixels.csv does not add up to confusion.csv")
    try:
        wrong = [
            name
            for name, value in run.headline.items()
            if repr(_number(document.get(name))) != repr(value)
        ]
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{folder / METRICS_FILE}: a figure is no number ({error})") from error
    if wrong:
        found.append(f"metrics.json has another {', '.join(wrong)} than the records")
    if found:
        raise ValueError(f"{folder}: its files belong to different runs ({'; '.join(found)})")
    # Runs that were written before there were checksums have none.
    written = document.get("files", {})
    tables = [name for name in RUN_FILES[:-1] if name in written]
    changed = [name for name in tables if digest(read_bytes(folder / name)) != written[name]]
    if changed:
        raise ValueError(
            f"{folder}: changed or cut short since it was scored: {listed(changed)}; score the "
            "predictions again"
        )


def _read_instances(path: Path, details: Path) -> InstanceTable:
    columns = _read_columns(path, INSTANCE_COLUMNS, InstanceTable)
    more = _read_columns(details, DETAIL_COLUMNS, InstanceTable)
    for name in ("image_id", "instance_id"):
        if not np.array_equal(columns[name], more[name]):
            raise ValueError(f"{details}: its rows must be of the same instances as {path}'s")
    return InstanceTable.from_columns({**more, **columns}).sorted()


def _read_images(path: Path) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Read the ids, sorted, and the files of each image."""
    rows = _read_rows(path, IMAGE_COLUMNS)
    files = {row[0]: tuple(row[1:]) for row in rows}
    images = [row[0] for row in rows]
    if images != sorted(files):
        raise ValueError(f"{path}: image ids must ascend, each of them once")
    return images, files


def _read_pixels(path: Path, images: Sequence[str], num_classes: int) -> PixelTable:
    pixels = _read_table(path, PixelTable)
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
    rows = _read_rows(path, (CORNER, *class_names))
    if [row[0] for row in rows] != list(class_names):
        raise ValueError(f"{path}: its rows must be the classes {list(class_names)}")
    cells = _cells(path, [cell for row in rows for cell in row[1:]], np.int64)
    return cells.reshape(len(class_names), len(class_names))


def _read_rows(path: Path, header: Sequence[str]) -> list[list[str]]:
    """Read the rows of a CSV file with this header."""
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8", newline="") as file:
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


def _read_table(path: Path, kind: type[_Table]) -> _Table:
    return kind.from_columns(_read_columns(path, kind.names(), kind)).sorted()


def _read_columns(path: Path, header: Sequence[str], kind: type[_Table]) -> dict[str, np.ndarray]:
    """Read the columns of a file that are columns of a table, too, by name."""
    rows = _read_rows(path, header)
    types: dict[str, type] = {"image_id": np.str_, "charged": np.float64}
    return {
        name: _cells(path, [row[place] for row in rows], types.get(name, np.int64))
        for place, name in enumerate(header)
        if name in kind.names()
    }


def _cells(path: Path, cells: Sequence[str], dtype: type) -> np.ndarray:
    longest = max(map(len, cells), default=0)
    try:
        # An array has room for the longest text in each of its cells.
        if longest > _LONGEST_CELL:
            raise ValueError(f"{longest} characters")
        return np.array(cells, np.str_).astype(dtype)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: a cell holds no number ({error})") from error


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
