"""The masks of an image's annotations, as pycocotools' run lengths, and what is wrong with them.

Painting a mask costs twenty times what its run lengths cost, so images are judged by these and
only those that are chosen are painted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.masks import encode_mask
from d2_smallobj.pascal_b.candidates import Candidate

Mask = dict[str, Any]
"""Compressed run lengths: ``size`` (height, width) and ``counts`` (bytes)."""

_LEAST_FILL = 0.5


class MaskError(ValueError):
    """A mask that cannot be read."""


class DegeneratePolygonError(ValueError):
    """A polygon that encloses something else than its outline's area."""


def read_masks(candidate: Candidate, paths: Sequence[str]) -> list[Mask]:
    """Decode the masks of an image.

    Args:
        candidate: the image.
        paths: the annotation files, in the order of :attr:`Sources.files`, for messages.

    Returns:
        The masks of ``candidate.lvis``, then those of ``candidate.coco``.

    Raises:
        MaskError: a mask is malformed or of another size than the image.
        DegeneratePolygonError: a polygon crosses itself, or much of it lies outside the image.
    """
    masks = []
    for piece in (*candidate.lvis, *candidate.coco):
        where = f"{paths[piece.source]}: annotation {piece.annotation_id}"
        segmentation = msgspec.json.decode(piece.segmentation)
        try:
            mask = encode_mask(segmentation, candidate.height, candidate.width, where)
        except ValueError as error:
            raise MaskError(str(error)) from error
        if isinstance(segmentation, list) and _is_degenerate(segmentation, area_of(mask)):
            raise DegeneratePolygonError(
                f"{where}: its polygons cross themselves, overlap or leave the image: they cover "
                f"{area_of(mask)} pixels"
            )
        masks.append(mask)
    return masks


def area_of(mask: Mask) -> int:
    """Number of pixels of a mask."""
    return int(coco_mask.area(mask))


def union(masks: Sequence[Mask]) -> Mask:
    """Union of one mask or more."""
    return masks[0] if len(masks) == 1 else coco_mask.merge(list(masks))


def common_area(one: Mask, other: Mask) -> int:
    """Number of pixels that two masks share."""
    return area_of(coco_mask.merge([one, other], intersect=True))


def boxes_meet(masks: Sequence[Mask]) -> np.ndarray:
    """Which pairs of masks have bounding boxes with common pixels: bool (masks, masks)."""
    x, y, w, h = coco_mask.toBbox(list(masks)).T if masks else np.zeros((4, 0))
    apart = (x[:, None] + w[:, None] <= x) | (y[:, None] + h[:, None] <= y)
    return ~(apart | apart.T)


def overlaps(rows: Sequence[Mask], columns: Sequence[Mask]) -> np.ndarray:
    """Intersection over union of masks: float64 (rows, columns)."""
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    return np.asarray(coco_mask.iou(list(rows), list(columns), [0] * len(columns)))


def _is_degenerate(polygons: list[Any], area: int) -> bool:
    """Whether polygons cover much less or more pixels than their outlines enclose.

    Lobes of a crossed outline are of opposite sign and cancel in the shoelace formula, but not
    in the mask; an outline walked twice, one within another, or one outside the image leaves no
    pixels. Pixels on the outline belong to the mask, hence the tolerance of its length.
    """
    enclosed = length = 0.0
    for polygon in polygons:
        if len(polygon) < 6:
            continue
        closed = np.array([*polygon, *polygon[:2]], np.float64)
        x, y = closed[0::2], closed[1::2]
        enclosed += 0.5 * abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:]))
        length += float(np.abs(np.diff(x)).sum() + np.abs(np.diff(y)).sum())
    return abs(area - enclosed) > _LEAST_FILL * max(area, enclosed) + length
