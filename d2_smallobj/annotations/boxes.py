"""Read bounding boxes from annotation files or masks, and paint them as label maps.

A box table is an array (B, 5), one row a box: class id, left, top, right, bottom. Edges lie between
pixels: a box covers the pixels from column floor(left) up to, not including, column ceil(right),
and rows alike; the top left corner of the image is (0, 0). A negative class id marks a region of
that class whose objects are not separated (COCO's crowds). Legend: H, W height and width of the
image; B number of boxes.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from d2_smallobj.annotations.coco_file import Flag, Id, read_annotation_file
from d2_smallobj.metrics.components import class_components
from d2_smallobj.utils.files import read_bytes
from d2_smallobj.utils.messages import itemized, listed
from d2_smallobj.utils.opencv import cv2

IGNORE_LABEL = 255
_VOC_EDGES = ("xmin", "ymin", "xmax", "ymax")


def checked_boxes(
    boxes: Sequence[Sequence[float]] | np.ndarray, height: int, width: int, where: str
) -> np.ndarray:
    """Check boxes and clip them to their image of H x W pixels.

    A box beyond the image is cut at its edge. A box without area (left = right or top = bottom,
    which COCO's files contain) covers no pixel and is dropped.

    Args:
        boxes: a box table, or rows that make one.
        height: H.
        width: W.
        where: the place of the boxes for messages ("x.json: image 7").

    Returns:
        int32 (B', 5): class id, left, top, right, bottom in whole pixels, in the given order.

    Raises:
        ValueError: boxes are inverted, wholly outside the image or not finite, or a class is no
            integer in 1..254 (crowds: -254..-1).
    """
    try:
        table = np.asarray(boxes, np.float64).reshape(-1, 5)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: a box is (class id, left, top, right, bottom), got {boxes!r:.200}"
        ) from error
    with np.errstate(invalid="ignore"):
        class_id, left, top, right, bottom = table.T
        empty = (right == left) | (bottom == top)
        outside = (left >= width) | (top >= height) | (right <= 0) | (bottom <= 0)
        problems = {
            "is not finite": ~np.isfinite(table).all(axis=1),
            f"has a class that is not an integer in 1..{IGNORE_LABEL - 1}": (
                (class_id == 0) | (np.abs(class_id) >= IGNORE_LABEL) | (class_id % 1 != 0)
            ),
            "is inverted (right < left or bottom < top)": (right < left) | (bottom < top),
            # A box without area has no place to be outside of.
            f"lies outside the image of {width} x {height} (width x height)": outside & ~empty,
        }
    wrong = []
    for row in range(len(table)):
        what = next((text for text, rows in problems.items() if rows[row]), None)
        if what is not None:
            wrong.append(f"box {row} {table[row].tolist()} {what}")
    if wrong:
        raise ValueError(f"{where}: {len(wrong)} bad box(es): {listed(wrong)}")
    table = table[~empty]
    limits = np.array([width, height, width, height], np.float64)
    table[:, 1:] = np.clip(table[:, 1:], 0, limits)
    table[:, 1:3], table[:, 3:] = np.floor(table[:, 1:3]), np.ceil(table[:, 3:])
    return table.astype(np.int32)


def number_boxes(
    boxes: np.ndarray, height: int, width: int, *, interior: bool = False
) -> np.ndarray:
    """Number each pixel by the smallest box on it (docs/method.md#label-uncertainty).

    Of two equally large boxes the later one lies on top; crowds lie beneath all boxes.

    Args:
        boxes: int32 (B, 5) from :func:`checked_boxes`.
        height: of the image, H.
        width: of the image, W.
        interior: number by the box that has the pixel nearest to its middle instead, in units of
            the box's own sides.

    Returns:
        int32 (H, W), 1 for the first box, 0 for no box.
    """
    numbers = np.zeros((height, width), np.int32)
    depth = np.zeros((height, width))
    for row in painting_order(boxes):
        class_id, left, top, right, bottom = boxes[row]
        window = np.s_[top:bottom, left:right]
        if not interior or class_id < 0:
            numbers[window] = row + 1
            continue
        inward = np.minimum(_inward(right - left)[None, :], _inward(bottom - top)[:, None])
        nearer = inward >= depth[window]
        numbers[window][nearer], depth[window][nearer] = row + 1, inward[nearer]
    return numbers


def painting_order(boxes: np.ndarray) -> np.ndarray:
    """Rows of a box table (B, 5) from the lowest to the uppermost: crowds, then by area."""
    area = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    # lexsort is stable; the last key counts first.
    return np.lexsort((-area, boxes[:, 0] > 0))


def _inward(side: int) -> np.ndarray:
    """Distances of the pixels of a side from its ends, 0 at both, 1 in the middle."""
    return 1 - np.abs(2 * np.arange(side) + 1 - side) / side


def classes_on_pixels(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Note all classes whose boxes cover a pixel: int64 (H, W), bit c - 1 for class c.

    Takes int32 (B, 5) from :func:`checked_boxes`; crowds are left out. Raises ValueError for a
    class above 63, which has no bit.
    """
    if boxes[:, 0].max(initial=0) > 63:
        raise ValueError(f"at most 63 classes can be noted on a pixel, got {boxes[:, 0].max()}")
    classes = np.zeros((height, width), np.int64)
    for class_id, left, top, right, bottom in boxes[boxes[:, 0] > 0]:
        classes[top:bottom, left:right] |= np.int64(1) << np.int64(class_id - 1)
    return classes


def classes_of_numbers(boxes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Turn :func:`number_boxes` into a uint8 (H, W) label map: 0 without a box, 255 on crowds."""
    classes = np.where(boxes[:, 0] > 0, boxes[:, 0], IGNORE_LABEL)
    return np.append(0, classes).astype(np.uint8)[numbers]


def only_class(boxes: np.ndarray, class_id: int | None) -> np.ndarray:
    """The boxes and crowds of one class (``None``: of all), which becomes class 1: (B', 5)."""
    chosen = boxes[(np.abs(boxes[:, 0]) == class_id) | (class_id is None)].copy()
    chosen[:, 0] = np.sign(chosen[:, 0])
    return chosen


def instance_boxes(semantic: np.ndarray, instances: np.ndarray | None) -> np.ndarray:
    """Find the boxes around the instances of an image.

    Takes integer maps (H, W): semantic 0 background, 1.. classes, 255 ignored; instances 0 none,
    255 void. Returns a box table, ordered by class and instance. Pixels of a class without an
    instance (or all, if ``instances`` is None) make one box for each 8-connected component. Raises
    ValueError if the maps differ in size.
    """
    semantic = np.asarray(semantic)
    identity = np.zeros(semantic.shape, np.int64)
    if instances is not None:
        if instances.shape != semantic.shape:
            raise ValueError(
                f"instances must have the size of semantic {semantic.shape}, got {instances.shape}"
            )
        identity = np.where(instances == IGNORE_LABEL, 0, instances).astype(np.int64)
    named = (semantic != 0) & (semantic != IGNORE_LABEL)
    rest = np.where(named & (identity == 0), semantic, 0)
    components = class_components(rest, skip=(0,))
    # Components are numbered on from the last instance, so that none is taken for another.
    identity = np.where(rest > 0, identity.max(initial=0) + components.map, identity)
    # One number for class and identity together: an instance of two classes makes two boxes.
    step = np.int64(identity.max(initial=0)) + 1
    numbers = np.where(named, semantic * step + identity, -1)
    table = []
    for number in np.unique(numbers[named]):
        left, top, width, height = cv2.boundingRect((numbers == number).view(np.uint8))
        table.append((number // step, left, top, left + width, top + height))
    return np.asarray(table, np.float64).reshape(-1, 5)


def read_voc_boxes(
    path: str | os.PathLike[str], class_ids: Mapping[str, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read the objects of a VOC annotation (``Annotations/<id>.xml``); parts (heads) are skipped.

    VOC counts pixels from 1 and includes the last one, so ``xmin..xmax`` covers the columns
    ``xmin - 1`` to ``xmax - 1``.

    Returns:
        The checked boxes, int32 (B, 5), and (height, width) of the image as the file gives them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no VOC annotation, has a class outside ``class_ids`` (id by name),
            or a box that :func:`checked_boxes` refuses.
    """
    content = read_bytes(path)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError(f"{path}: a VOC annotation declares no document type or entity")
    try:
        root = ET.fromstring(content)
        height, width = (int(root.findtext(f"size/{side}", "")) for side in ("height", "width"))
    except (ET.ParseError, ValueError, LookupError) as error:  # an encoding may be unknown
        raise ValueError(f"{path}: not a complete VOC annotation ({error})") from error
    rows = []
    for number, element in enumerate(root.iterfind("object")):
        name = (element.findtext("name") or "").strip()
        if name not in class_ids:
            raise ValueError(
                f"{path}: object {number} has class {name!r}; expected one of "
                f"{', '.join(class_ids)}"
            )
        try:
            edges = [float(element.findtext(f"bndbox/{e}", "")) for e in _VOC_EDGES]
        except ValueError as error:
            raise ValueError(f"{path}: object {number} has no complete bndbox ({error})") from error
        rows.append((class_ids[name], edges[0] - 1, edges[1] - 1, edges[2], edges[3]))
    return checked_boxes(rows, height, width, str(path)), (height, width)


class _BoxEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``annotations``: ``bbox`` is left, top, width, height in pixels."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: Flag = 0


def coco_boxes(json_path: str | os.PathLike[str]) -> dict[Id, np.ndarray]:
    """Read the boxes of all images of a COCO file; segmentations are not needed.

    Returns checked boxes, int32 (B, 5), by image id. Class ids are 1, 2, ... in the order of the
    category ids; a crowd has the negative one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, an annotation has an unknown image or category, or boxes
            are refused by :func:`checked_boxes`.
    """
    file = read_annotation_file(json_path, "coco", _BoxEntry)
    class_ids = file.class_ids
    rows: dict[Id, list[tuple[float, ...]]] = {image_id: [] for image_id in file.images}
    for entry in file.annotations:
        left, top, width, height = entry.bbox
        class_id = class_ids[entry.category_id] * (-1 if entry.iscrowd else 1)
        rows[entry.image_id].append((class_id, left, top, left + width, top + height))
    boxes, problems = {}, []
    for image_id, image in file.images.items():
        where = f"image {image_id} ({image.file_name})"
        try:
            boxes[image_id] = checked_boxes(rows[image_id], image.height, image.width, where)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{json_path}: {itemized('image(s) with bad boxes', problems)}")
    return boxes
