"""A scored run as a folder of small text files, and back to the bit.

| file | holds |
|---|---|
| ``metrics.json`` | figures, options, versions (:mod:`.run_figures`) |
| ``instances.csv`` | a row for every instance, and for every image and stuff class |
| ``instance_details.csv`` | what else there is to know of these rows |
| ``blobs.csv`` | a row for every false-positive blob |
| ``images.csv`` | a row for every image, with the files it comes from |
| ``pixels.csv`` | pixels by image and class: intersection, ground truth, predicted |
| ``confusion.csv`` | the confusion matrix, rows ground truth, columns prediction |

Statistics, comparisons, reports and merging shards need nothing else: no pixel is read again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2_smallobj.scoring import run_figures, run_tables
from d2_smallobj.scoring.reopen import reopener
from d2_smallobj.scoring.scored_run import ScoredRun, Sources
from d2_smallobj.utils.files import atomic_write_text

METRICS_FILE = "metrics.json"
INSTANCES_FILE = "instances.csv"
DETAILS_FILE = "instance_details.csv"
BLOBS_FILE = "blobs.csv"
IMAGES_FILE = "images.csv"
PIXELS_FILE = "pixels.csv"
CONFUSION_FILE = "confusion.csv"
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


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Find out that a folder cannot be written before hours are spent on what belongs there.

    Args:
        folder: the folder; created if it is missing.

    Raises:
        OSError: it cannot be created or written; names it.
    """
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

    Args:
        folder: created if it is missing; files of an earlier run in it are replaced.
        run: the run. Its name is not written: a folder is called by its own.
        extra: further keys of ``metrics.json``.

    Raises:
        OSError: a file cannot be written; names it.
    """
    contents = {
        INSTANCES_FILE: run_tables.instances_csv(run),
        DETAILS_FILE: run_tables.details_csv(run),
        BLOBS_FILE: run_tables.blobs_csv(run),
        IMAGES_FILE: run_tables.images_csv(run),
        PIXELS_FILE: run_tables.pixels_csv(run),
        CONFUSION_FILE: run_tables.confusion_csv(run),
        METRICS_FILE: run_figures.dumps(run_figures.describe(run, extra)),
    }
    for name in RUN_FILES:
        atomic_write_text(os.path.join(folder, name), contents[name])


def load_run(folder: str | os.PathLike[str]) -> ScoredRun:
    """Read a run back.

    Args:
        folder: what :func:`save_run` wrote; its own name is the run's.

    Returns:
        The run, equal to the one written in every bit.

    Raises:
        FileNotFoundError: a file is missing; names all that are.
        ValueError: a file is malformed, or the files do not belong together; names it.
    """
    folder = Path(folder)
    missing = [name for name in RUN_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no scored run, {', '.join(missing)} missing (give a folder that "
            "tools/evaluate.py or the evaluator wrote)"
        )
    document = _read_document(folder / METRICS_FILE)
    class_names = tuple(document["classes"])
    images, files = run_tables.read_images(folder / IMAGES_FILE)
    run = ScoredRun(
        name=folder.resolve().name,
        options=document["options"],
        class_names=class_names,
        table=run_tables.read_instances(folder / INSTANCES_FILE, folder / DETAILS_FILE),
        blobs=run_tables.read_blobs(folder / BLOBS_FILE),
        images=images,
        pixels=run_tables.read_pixels(folder / PIXELS_FILE, images, len(class_names)),
        confusion=run_tables.read_confusion(folder / CONFUSION_FILE, class_names),
        sources=Sources(files, reopener(document["options"].get("inputs"))),
        intervals=run_figures.intervals_of(document),
        remarks=tuple(document["remarks"]),
    )
    _check_together(run, document, folder)
    return run


def load_runs(folders: Sequence[str | os.PathLike[str]]) -> list[ScoredRun]:
    """Read several runs and give them names that differ.

    Folders of one name (``a/val`` and ``b/val``) are called by as much of their paths as it
    takes to tell them apart.

    Raises:
        ValueError: a folder is given twice; otherwise as :func:`load_run`.
    """
    parts = [Path(folder).resolve().parts for folder in folders]
    twice = sorted({os.path.join(*path) for path in parts if parts.count(path) > 1})
    if twice:
        raise ValueError(f"a run can be compared with others only; given twice: {twice[0]}")
    runs = [load_run(folder) for folder in folders]
    for length in itertools.count(1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names)]


def _read_document(path: Path) -> dict[str, Any]:
    """Read ``metrics.json`` and check that it is one of this format."""
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
    faults = []
    known = set(run.images)
    for name, table in ((INSTANCES_FILE, run.table), (BLOBS_FILE, run.blobs)):
        if not known.issuperset(table.image_id.tolist()):
            faults.append(f"{name} has images that {IMAGES_FILE} lacks")
    hit, truth, predicted = run.pixels.class_sums(len(run.class_names)).T
    margins = (np.diagonal(run.confusion), run.confusion.sum(axis=1), run.confusion.sum(axis=0))
    if not all(map(np.array_equal, margins, (hit, truth, predicted))):
        faults.append(f"{PIXELS_FILE} does not add up to {CONFUSION_FILE}")
    try:
        wrong = run_figures.differing(run, document)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from error
    if wrong:
        faults.append(f"{METRICS_FILE} has another {', '.join(wrong)} than the records")
    if faults:
        raise ValueError(f"{folder}: its files belong to different runs ({'; '.join(faults)})")
