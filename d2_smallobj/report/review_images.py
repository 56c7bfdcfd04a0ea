"""One image of a review sheet: a small JPEG, and outlines of its instances.

Legend: H, W height and width of an image; h, w of its picture in the sheet.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from d2_smallobj.annotations.coco import IGNORE_LABEL, Annotation, paint
from d2_smallobj.annotations.label_maps import CORRUPT_IMAGE
from d2_smallobj.metrics.records import COCO_SIZE_BINS
from d2_smallobj.utils.opencv import cv2

_TOLERANCE = 0.3
"""Largest distance of an outline from the mask's, in pixels of the picture."""


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


@dataclasses.dataclass(frozen=True)
class ReviewObject:
    """A visible instance.

    Attributes:
        class_id: 1..C.
        size: position of its size bin, 0 = S, 1 = M, 2 = L.
        area: visible pixels at full resolution.
        outline: SVG path in pixels of the picture.
        box: left, top, width, height in pixels of the picture.
    """

    class_id: int
    size: int
    area: int
    outline: str
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class ReviewImage:
    """An image as the sheet shows it.

    Attributes:
        task: the image and its annotations.
        picture: data URI of a JPEG.
        view: w and h of the picture.
        objects: the visible instances, smallest first.
        void: SVG path of the ignored pixels; empty if there are none.
    """

    task: ReviewTask
    picture: str
    view: tuple[int, int]
    objects: tuple[ReviewObject, ...]
    void: str


def draw_review_image(task: ReviewTask, *, side: int, quality: int) -> ReviewImage | str:
    """Draw an image for the sheet.

    Smaller images than ``side`` pixels stay as they are.

    Returns:
        The image, or a sentence that says what is wrong with its files.
    """
    height, width = task.size
    try:
        picture, view = _shrink(task, side, quality)
        semantic, instances = paint(task.annotations, height, width, source=task.source)
    except (OSError, ValueError) as error:
        return str(error)
    scale = view[0] / width
    objects = [
        _object(semantic, instances, int(number), scale)
        for number in np.unique(instances)
        if number not in (0, IGNORE_LABEL)
    ]
    objects.sort(key=lambda each: each.area)
    void = outline(semantic == IGNORE_LABEL, scale)
    return ReviewImage(task, picture, view, tuple(objects), void)


def outline(mask: np.ndarray, scale: float, origin: tuple[int, int] = (0, 0)) -> str:
    """The border of a mask as an SVG path, holes included (fill rule ``evenodd``).

    Args:
        mask: bool (H, W).
        scale: pixels of the picture per pixel of the mask.
        origin: left and top of the mask in its image.

    Returns:
        Closed polygons through the centres of border pixels; empty for an empty mask.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in found:
        points = cv2.approxPolyDP(contour, _TOLERANCE / scale, closed=True)[:, 0]
        corners = (points + np.asarray(origin) + 0.5) * scale
        parts.append("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in corners.tolist()) + "z")
    return "".join(parts)


def _object(semantic: np.ndarray, instances: np.ndarray, number: int, scale: float) -> ReviewObject:
    """One instance of the maps (H, W)."""
    mask = instances == number
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    crop = mask[top : top + height, left : left + width]
    area = int(np.count_nonzero(crop))
    row, column = np.argwhere(crop)[0]
    return ReviewObject(
        class_id=int(semantic[top + row, left + column]),
        size=int(COCO_SIZE_BINS.positions(np.array([area]), mask.size)[0]),
        area=area,
        outline=outline(crop, scale, (left, top)),
        box=tuple(round(value * scale, 1) for value in (left, top, width, height)),
    )


def _shrink(task: ReviewTask, side: int, quality: int) -> tuple[str, tuple[int, int]]:
    """Data URI of the picture, and its width and height; ValueError if the image is unusable."""
    height, width = task.size
    scale = min(1.0, side / max(height, width))
    view = max(round(width * scale), 1), max(round(height * scale), 1)
    try:
        with Image.open(task.path) as image:
            found = image.size
            # JPEGs are decoded at a fraction of their size where that is enough.
            image.draft("RGB", view)
            small = image.convert("RGB").resize(view, Image.Resampling.BILINEAR)
    except FileNotFoundError as error:
        raise ValueError(f"{task.path}: no such image") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{task.path}: {error}") from error
    except CORRUPT_IMAGE as error:
        raise ValueError(f"{task.path}: corrupt or unreadable image ({error})") from error
    if found != (width, height):
        raise ValueError(
            f"{task.path}: {found[0]} x {found[1]} pixels, but {width} x {height} in {task.source}"
        )
    content = io.BytesIO()
    small.save(content, "JPEG", quality=quality, optimize=True)
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return f"data:image/jpeg;base64,{encoded}", view
