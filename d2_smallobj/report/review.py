"""The review sheet: candidates for PASCAL-B, to be kept or rejected by eye.

A sheet is one HTML file that holds its pictures, styles and script, and is forbidden by its own
policy to load anything. It exports the reject list that the builder reads: ``{"version": 1,
"rejected": [{"image_id": 123, "reason": "..."}], "kept": [124]}``; the kept images are only for
another browser to go on from.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import msgspec
from markupsafe import Markup

from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.coco_file import Id
from d2_smallobj.annotations.dataset_files import resolve_inside
from d2_smallobj.metrics.records import COCO_SIZE_BINS
from d2_smallobj.report.page import content_policy, read_asset, template_environment
from d2_smallobj.report.review_images import ReviewTask, draw_review_image
from d2_smallobj.utils.files import atomic_write, read_bytes, read_text
from d2_smallobj.utils.messages import Problems
from d2_smallobj.utils.parallel import parallel_map

SUSPICIOUS_DISAGREEMENT = 0.25
"""Share of labelled pixels on which LVIS and COCO differ, from which on it is a suspicion."""
SUSPICIOUS_VOID = 0.2
"""Share of void pixels, likewise."""
_COLUMNS = ("image_id", "disagreement", "void_share", "message")


class _ImageNotes(msgspec.Struct):
    """Keys of an image's entry besides COCO's own."""

    id: Id
    suspicion: list[str] = []
    # PASCAL-B's: where COCO has the file. Python 3.9 evaluates the type, hence Optional.
    coco_file: Optional[str] = None  # noqa: UP045


class _Notes(msgspec.Struct):
    images: list[_ImageNotes]


@dataclasses.dataclass(frozen=True)
class ReviewSet:
    """Images to review.

    Attributes:
        tasks: the images, in the order in which they are shown.
        class_names: names of the classes, background first.
        set_id: hash of the annotation file: decisions are kept under it.
    """

    tasks: list[ReviewTask]
    class_names: tuple[str, ...]
    set_id: str


def open_review_set(
    json_path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    suspicions: Mapping[Id, Sequence[str]] | None = None,
    only_suspicious: bool = False,
) -> ReviewSet:
    """List the images to review; none is opened.

    Args:
        json_path: COCO-format annotations. An image's entry may have a list ``suspicion`` of
            texts: reasons to look at it.
        image_dir: folder of the images, by their names or, for PASCAL-B, by COCO's.
        suspicions: more such reasons, by image id. Images with the most reasons come first.
        only_suspicious: leave out images without reasons.

    Raises:
        FileNotFoundError: there is no such file or folder.
        InputError: file names that lead out of the folder, or missing images.
        ValueError: the annotation file is malformed, or there is no image to review.
    """
    json_path, image_dir = Path(json_path), Path(image_dir)
    annotations = InstanceAnnotations(json_path)
    if not image_dir.is_dir():
        raise FileNotFoundError(f"{image_dir}: no such folder of images")
    content = read_bytes(json_path)
    notes = _read_notes(json_path, content)
    tasks, problems = [], Problems()
    for image_id in annotations.image_ids:
        note = notes[image_id]
        why = (*note.suspicion, *(suspicions or {}).get(image_id, ()))
        if only_suspicious and not why:
            continue
        where = f"{json_path}: image {image_id}"
        try:
            name = annotations.file_name(image_id)
            path = resolve_inside(image_dir, name, where)
            if note.coco_file is not None and not path.is_file():
                path = resolve_inside(image_dir, note.coco_file, where)
        except ValueError as error:
            problems.add("image(s) without a usable file name", str(error))
            continue
        if not path.is_file():
            problems.add("image file(s) missing", str(path))
        size, found = annotations.image_size(image_id), tuple(annotations.annotations(image_id))
        tasks.append(ReviewTask(image_id, name, path, size, found, why, str(json_path)))
    problems.raise_if_any()
    if not tasks:
        raise ValueError(f"{json_path}: no image to review")
    tasks.sort(key=lambda task: -len(task.reasons))
    digest = hashlib.sha256(content).hexdigest()[:16]
    return ReviewSet(tasks, annotations.class_names, digest)


def _read_notes(path: Path, content: bytes) -> dict[Id, _ImageNotes]:
    """Read the notes by image id; the rest of the file has been checked."""
    try:
        images = msgspec.json.decode(content, type=_Notes).images
    except msgspec.ValidationError as error:
        raise ValueError(
            f"{path}: an image's 'suspicion' is a list of texts, 'coco_file' a path; {error}"
        ) from error
    return {image.id: image for image in images}


def read_suspicions(path: str | os.PathLike[str]) -> dict[int | str, Sequence[str]]:
    """Read the builder's list of candidates (``prepare_pascal_b.py --candidates``).

    Returns:
        Reasons to look at an image by its id; images without any are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a cell is no number; names the line.
    """
    try:
        table = csv.DictReader(io.StringIO(read_text(path, "the builder's list of candidates")))
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise ValueError(f"no column {' and '.join(map(repr, missing))}")
        found = dict(_reasons(table.line_num, row) for row in table)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not the builder's list of candidates: {error}") from error
    return {image_id: reasons for image_id, reasons in found.items() if reasons}


def _reasons(line: int, row: dict[str, str]) -> tuple[int, tuple[str, ...]]:
    """Image id and reasons of a line."""
    try:
        image_id = int(row["image_id"])
        disagreement, void = float(row["disagreement"]), float(row["void_share"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"line {line}: {error}") from error
    reasons = []
    if disagreement >= SUSPICIOUS_DISAGREEMENT:
        reasons.append(f"LVIS and COCO disagree on {disagreement:.0%} of the labelled pixels")
    if void >= SUSPICIOUS_VOID:
        reasons.append(f"{void:.0%} of the pixels are void")
    if row["message"]:
        reasons.append(row["message"])
    return image_id, tuple(reasons)


def write_review(
    path: str | os.PathLike[str],
    review: ReviewSet,
    *,
    per_sheet: int = 500,
    side: int = 512,
    title: str = "Review of PASCAL-B candidates",
    jobs: int = 1,
    progress: bool = False,
) -> list[Path]:
    """Write the sheets, all or none; returns their files.

    Args:
        path: the HTML file; with several sheets ``-1-of-4`` and so on are put before its suffix.
        review: the images.
        per_sheet: most images of a sheet; 500 are some 25 MB.
        side: longest side of a picture in pixels.
        title: heading of the sheets.
        jobs: number of processes; the sheets do not depend on it.
        progress: show a progress bar on stderr.

    Raises:
        InputError: images are damaged or of another size, or masks malformed; lists all.
        ValueError: a number is out of range.
        OSError: a file cannot be written; older ones stay as they were.
    """
    for name, value, low, high in (("per_sheet", per_sheet, 1, math.inf), ("side", side, 32, 4096)):
        if not low <= value <= high:
            raise ValueError(f"{name} must be in {low}..{high}, got {value}")
    path, sheets = Path(path), math.ceil(len(review.tasks) / per_sheet)
    names = [f"{path.stem}-{n}-of-{sheets}{path.suffix}" for n in range(1, sheets + 1)]
    paths = [path.with_name(name) for name in names] if sheets > 1 else [path]
    drawn = parallel_map(
        functools.partial(draw_review_image, side=side),
        review.tasks,
        jobs=jobs,
        description="review sheets",
        progress=progress,
    )
    pairs = zip(drawn, review.tasks)
    template = template_environment().get_template("review.html.j2")
    script = read_asset("report.js") + read_asset("review.js")
    problems = Problems()
    # The files appear when the block ends well: none of them, if any image is wrong.
    with contextlib.ExitStack() as stack:
        for number, sheet_path in enumerate(paths):
            file = stack.enter_context(atomic_write(sheet_path))
            sheet: dict[str, Any] = {
                "set": review.set_id,
                "classes": review.class_names[1:],
                "sizes": list(COCO_SIZE_BINS),
                "sheets": [each.name for each in paths],
                "number": number,
                "total": len(review.tasks),
                "images": [],
            }
            chunks = template.generate(
                title=title,
                policy=content_policy(script),
                style=Markup(read_asset("report.css") + read_asset("review.css")),
                script=Markup(script),
                pictures=_pictures(itertools.islice(pairs, per_sheet), sheet["images"], problems),
                sheet=sheet,
            )
            file.writelines(chunk.encode("utf-8") for chunk in chunks)
        problems.raise_if_any()
    return paths


def _pictures(
    drawn: Iterable[tuple[dict[str, Any] | str, ReviewTask]],
    entries: list[dict[str, Any]],
    problems: Problems,
) -> Iterator[dict[str, Any]]:
    """Yield each image's data as it comes; adds the sheet's summary of it to ``entries``."""
    for image, task in drawn:
        if isinstance(image, str):
            problems.add("image(s) that cannot be shown", image)
            continue
        cells = Counter((category, size) for category, size, *_ in image["objects"])
        entries.append(
            {
                "id": task.image_id,
                "file": task.file_name,
                "why": task.reasons,
                "cells": [[*cell, count] for cell, count in sorted(cells.items())],
            }
        )
        yield image
