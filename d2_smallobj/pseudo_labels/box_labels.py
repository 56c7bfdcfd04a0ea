"""Make label maps of bounding boxes: painted, or refined inside every box by GrabCut or a CRF.

Legend: H, W height and width of an image; h, w of a window of it; B number of boxes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from d2_smallobj.annotations.boxes import (
    IGNORE_LABEL,
    classes_of_numbers,
    number_boxes,
    painting_order,
)
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.pseudo_labels.targets import read_picture
from d2_smallobj.utils.messages import look_up_option
from d2_smallobj.utils.opencv import cv2

REFINEMENTS = ("none", "grabcut", "crf")
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From probabilities float32 (K, H, W) and an image uint8 (H, W, 3) to refined probabilities."""

UNSURE = (0.3, 0.7)
"""Between these probabilities of the object, a pixel of a refined box is ignored (255)."""
_MARGIN = 0.25  # what is shown around a box, in sides of it: the colours of the background
_LEAST_MARGIN = 8
_LONGEST = 160  # larger windows are shrunk to this side: the cost grows with the area
_SMALLEST = 16**2  # boxes of fewer pixels are painted: too few colours to tell two models from
_FEWEST = 0.2  # an object that fills less of its box was not found, and the box is painted
_GRABCUT_ITERATIONS = 5
_INSIDE = 0.7  # the CRF's probability of the object inside its box
_SURE = 0.95  # the same in the middle fifth of the box (Papandreou et al., ICCV 2015)


def box_labels(
    boxes: np.ndarray, image: np.ndarray, *, refine: str = "none", crf: Refine | None = None
) -> np.ndarray:
    """Paint the boxes of an image as a label map, the smaller on top.

    A refined box labels the object that GrabCut (Rother et al., SIGGRAPH 2004) or the CRF finds in
    it; its border is ignored where they are not sure, and the rest of the box shows what lies
    beneath. A box of fewer than 256 pixels, or in which the object would fill less than a
    fifth, is painted whole. Crowds are ignored.

    Args:
        boxes: int32 (B, 5) of :func:`d2_smallobj.annotations.boxes.checked_boxes`.
        image: uint8 (H, W, 3).
        refine: one of :data:`REFINEMENTS`.
        crf: the CRF, needed by ``refine="crf"``.

    Returns:
        uint8 (H, W): 0 background, classes, 255 ignored.
    """
    look_up_option("refine", refine, REFINEMENTS)
    height, width = image.shape[:2]
    if refine == "none":
        return classes_of_numbers(boxes, number_boxes(boxes, height, width))
    labels = np.zeros((height, width), np.uint8)
    for row in painting_order(boxes):
        class_id, left, top, right, bottom = boxes[row].tolist()
        inside = labels[top:bottom, left:right]
        if class_id < 0:
            inside[:] = IGNORE_LABEL
            continue
        share = object_share((left, top, right, bottom), image, crf if refine == "crf" else None)
        inside[share >= UNSURE[1]] = class_id
        inside[(share > UNSURE[0]) & (share < UNSURE[1])] = IGNORE_LABEL
    return labels


def object_share(
    box: tuple[int, int, int, int], image: np.ndarray, crf: Refine | None
) -> np.ndarray:
    """Probability that a pixel of a box belongs to its object, float32 (h, w) of the box.

    By GrabCut if ``crf`` is None: its mask, blurred over a thirtieth of the box's side.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    painted = np.ones((height, width), np.float32)
    if width * height < _SMALLEST:
        return painted
    rows, columns = (
        (max(0, low - margin), min(limit, high + margin))
        for low, high, limit, margin in (
            (top, bottom, image.shape[0], max(_LEAST_MARGIN, round(_MARGIN * height))),
            (left, right, image.shape[1], max(_LEAST_MARGIN, round(_MARGIN * width))),
        )
    )
    window = image[slice(*rows), slice(*columns)]
    size = window.shape[:2]
    scale = min(1.0, _LONGEST / max(size))
    small = (max(1, round(size[1] * scale)), max(1, round(size[0] * scale)))
    place = np.zeros(size, np.uint8)
    place[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = 1
    shown = np.asarray(cv2.resize(window, small, interpolation=cv2.INTER_AREA))
    covered = np.asarray(cv2.resize(place, small, interpolation=cv2.INTER_NEAREST))
    share = _by_grabcut(shown, covered) if crf is None else _by_crf(shown, covered, crf)
    if share is None:
        return painted
    share = np.asarray(cv2.resize(share, size[::-1], interpolation=cv2.INTER_LINEAR))
    share = share[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]]
    return share if (share >= UNSURE[1]).mean() >= _FEWEST else painted


def _by_grabcut(window: np.ndarray, place: np.ndarray) -> np.ndarray | None:
    """GrabCut's object, float32; ``None`` where it has no background or no object to learn from."""
    mask = np.where(place, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if not 0 < place.sum() < place.size:
        return None
    models = np.zeros((1, 65)), np.zeros((1, 65))
    # Its clusters are drawn at random: one box, one mask.
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(window, mask, (0, 0, 1, 1), *models, _GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # windows of a single colour
        return None
    found = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    reach = 2 * max(1, round(place.sum() ** 0.5 / 60)) + 1
    return np.asarray(cv2.blur(found, (reach, reach), borderType=cv2.BORDER_REPLICATE))


def _by_crf(window: np.ndarray, place: np.ndarray, crf: Refine) -> np.ndarray:
    """The CRF's probability of the object, float32: likely in the box, most so in its middle."""
    likely = np.where(place, np.float32(_INSIDE), np.float32(0))
    rows, columns = np.flatnonzero(place.any(axis=1)), np.flatnonzero(place.any(axis=0))
    # The middle fifth of the area.
    cut_rows, cut_columns = (round(len(x) * (1 - 0.2**0.5) / 2) for x in (rows, columns))
    middle = np.ix_(
        rows[cut_rows : len(rows) - cut_rows], columns[cut_columns : len(columns) - cut_columns]
    )
    likely[middle] = _SURE
    refined = crf(np.stack([1 - likely, likely]), np.ascontiguousarray(window))
    return np.where(place, refined[1], 0).astype(np.float32)


def write_box_label(
    item: tuple[str, np.ndarray, str], *, refine: str, crf: Refine | None, keep: bool
) -> str | bool:
    """Write the label map of an image: its file, its boxes, the map's path.

    Returns whether it was written, not kept (``keep``: a map that exists stays), or what is wrong.
    """
    picture, boxes, path = item
    if keep and os.path.isfile(path):
        return False
    try:
        write_label_map(path, box_labels(boxes, read_picture(picture), refine=refine, crf=crf))
    except (OSError, ValueError) as error:
        return str(error)
    return True
