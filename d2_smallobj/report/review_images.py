"""One image of a review sheet: a small JPEG, and outlines of its instances.

Legend: H, W height and width of an image; h, w of its picture in the sheet.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2_smallobj.annotations.coco import IGNORE_LABEL, Annotation, paint
from d2_smallobj.annotations.image_files import open_picture
from d2_smallobj.metrics.records import COCO_SIZE_BINS
from d2_smallobj.report.page import jpeg_uri
from d2_smallobj.utils.opencv import cv2

_TOLERANCE = 0.3
"""Largest distance of an outline from the mask's, in pixels of the picture."""
_QUALITY = 75
"""Of the JPEGs."""


@dataclasses.dataclass(frozen=True)
class ReviewTask:
    """An image to draw; picklable.

    Attributes:
        image_id: its id in the annotation file.
        file_name: its name there.
        path: the image.
        size: H and W, as the annotation file gives them.
        annotations: its annotations, in the order of the file.
        reasons: reasons to look at it; may be empty.
        source: the annotation file, for messages.
    """

    image_id: int | str
    file_name: str
    path: Path
    size: tuple[int, int]
    annotations: tuple[Annotation, ...]
    reasons: tuple[str, ...]
    source: str


def draw_review_image(task: ReviewTask, *, side: int) -> dict[str, Any] | str:
    """Draw an image for the sheet, with a longest side of at most ``side`` pixels.

    Returns:
        ``picture``: data URI of a JPEG; ``view``: w and h; ``size``: W and H; ``objects``: the
        visible instances, smallest first, each with its class (1..C), position of its size bin,
        visible pixels at full resolution, outline (SVG path) and box (left, top, width, height),
        both in pixels of the picture; ``void``: outline of the ignored pixels, or empty.
        Instead a sentence that says what is wrong with the files.
    """
    height, width = task.size
    try:
        picture = _shrink(task, side)
        semantic, instances = paint(task.annotations, height, width, source=task.source)
    except (OSError, ValueError) as error:
        return str(error)
    scale = picture.width / width
    objects = [
        _object(semantic, instances, int(number), scale)
        for number in np.unique(instances)
        if number not in (0, IGNORE_LABEL)
    ]
    objects.sort(key=lambda each: each[2])
    return {
        "picture": jpeg_uri(picture, _QUALITY),
        "view": picture.size,
        "size": [width, height],
        "objects": objects,
        "void": outline(semantic == IGNORE_LABEL, scale),
    }


def outline(mask: np.ndarray, scale: float, origin: tuple[int, int] = (0, 0)) -> str:
    """The border of a mask (H, W) as an SVG path, holes included (fill rule ``evenodd``).

    Runs through the centres of border pixels; ``scale`` is pixels of the picture per pixel of the
    mask, ``origin`` left and top of the mask in its image.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in found:
        points = cv2.approxPolyDP(contour, _TOLERANCE / scale, closed=True)[:, 0]
        corners = (points + np.asarray(origin) + 0.5) * scale
        parts.append("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in corners.tolist()) + "z")
    return "".join(parts)


def _object(
    semantic: np.ndarray, instances: np.ndarray, number: int, scale: float
) -> tuple[int, int, int, str, list[float]]:
    """One instance of the maps (H, W), as :func:`draw_review_image` says."""
    mask = instances == number
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    crop = mask[top : top + height, left : left + width]
    area = int(np.count_nonzero(crop))
    row, column = np.argwhere(crop)[0]
    size = int(COCO_SIZE_BINS.positions(np.array([area]), mask.size)[0])
    box = [round(value * scale, 1) for value in (left, top, width, height)]
    return (
        int(semantic[top + row, left + column]),
        size,
        area,
        outline(crop, scale, (left, top)),
        box,
    )


def _shrink(task: ReviewTask, side: int) -> Image.Image:
    """The picture, RGB; ValueError if the image is unusable."""
    height, width = task.size
    scale = min(1.0, side / max(height, width))
    view = max(round(width * scale), 1), max(round(height * scale), 1)
    try:
        with open_picture(task.path) as image:
            found = image.size
            # JPEGs are decoded at a fraction of their size where that is enough.
            image.draft("RGB", view)
            small = image.convert("RGB").resize(view, Image.Resampling.BILINEAR)
    except FileNotFoundError as error:
        raise ValueError(f"{task.path}: no such image") from error
    if found != (width, height):
        raise ValueError(
            f"{task.path}: {found[0]} x {found[1]} pixels, but {width} x {height} in {task.source}"
        )
    return small
