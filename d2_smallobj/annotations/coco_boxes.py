"""The boxes of a COCO annotation file, without its masks, which need not be there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Union

import msgspec
import numpy as np

from d2_smallobj.annotations.boxes import checked_boxes
from d2_smallobj.annotations.coco_file import CategoryEntry, Id, ImageEntry, id_order
from d2_smallobj.utils.messages import itemized

# The fields' types are evaluated, in Python 3.9, too.
_Flag = Union[int, bool, None]


class _BoxEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``annotations``: ``bbox`` is left, top, width, height in pixels."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: _Flag = 0


class _Content(msgspec.Struct, frozen=True, gc=False):
    images: list[ImageEntry]
    annotations: list[_BoxEntry]
    categories: list[CategoryEntry]


def coco_boxes(json_path: str | os.PathLike[str]) -> dict[Id, np.ndarray]:
    """Read the boxes of all images.

    Args:
        json_path: a COCO annotation file; segmentations are not looked at.

    Returns:
        By image id, checked boxes, int32 (B, 5): class id, left, top, right, bottom. Class ids are
        1, 2, ... in the order of the category ids; a crowd has its class's negative.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, an annotation belongs to an image or category that is
            not there, or boxes are refused by :func:`.boxes.checked_boxes`. Names the file and up
            to ten of the images.
    """
    path = Path(json_path)
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a COCO annotation file with boxes: {error}") from error
    ids = sorted((category.id for category in content.categories), key=id_order)
    class_ids = {identity: number for number, identity in enumerate(ids, start=1)}
    rows: dict[Id, list[tuple[float, ...]]] = {image.id: [] for image in content.images}
    strays = []
    for entry in content.annotations:
        if entry.image_id not in rows or entry.category_id not in class_ids:
            strays.append(
                f"annotation {entry.id} of image {entry.image_id!r}, category {entry.category_id!r}"
            )
            continue
        left, top, width, height = entry.bbox
        class_id = class_ids[entry.category_id] * (-1 if entry.iscrowd else 1)
        rows[entry.image_id].append((class_id, left, top, left + width, top + height))
    if strays:
        what = "annotation(s) whose image or category is not in the file"
        raise ValueError(f"{path}: {itemized(what, strays)}")
    return _checked(path, content.images, rows)


def _checked(
    path: Path, images: list[ImageEntry], rows: dict[Id, list[tuple[float, ...]]]
) -> dict[Id, np.ndarray]:
    """The boxes of all images, clipped to them."""
    boxes, problems = {}, []
    for image in images:
        where = f"image {image.id} ({image.file_name})"
        try:
            boxes[image.id] = checked_boxes(rows[image.id], image.height, image.width, where)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{path}: {itemized('image(s) with bad boxes', problems)}")
    return boxes
