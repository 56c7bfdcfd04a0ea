"""Masks in COCO's notations: polygons, and run lengths, uncompressed or compressed.

Run lengths are decoded here and not by pycocotools, whose C code trusts them: counts that do
not fit the image would be written beyond it. Legend: H, W height and width of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

_FARTHEST = 1e5
"""Polygon coordinates beyond this are an error; rasterising them would take all memory."""


def decode_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Decode a mask.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, or a dict of ``size``
            (height, width) and ``counts``: a list of run lengths (column by column, starting
            with background) or COCO's compressed string of them.
        height: H, the image's.
        width: W, the image's.
        where: what the mask belongs to, for messages ("x.json: annotation 7").

    Returns:
        bool (H, W). Polygons of fewer than three points have no area and are passed over.

    Raises:
        ValueError: the mask is malformed or of another size than the image; begins with
            ``where``.
    """
    if isinstance(segmentation, list):
        return _decode_polygons(segmentation, height, width, where)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(
            f"{where}: a segmentation is a list of polygons or a run-length dict with 'size' and "
            f"'counts', got {_shorten(segmentation)}"
        )
    size = segmentation["size"]
    if list(size if isinstance(size, (list, tuple)) else [size]) != [height, width]:
        raise ValueError(
            f"{where}: its run-length mask is for an image of [height, width] = {size}, the image "
            f"has [{height}, {width}]"
        )
    counts = segmentation["counts"]
    runs = parse_runs(counts, where) if isinstance(counts, (str, bytes)) else counts
    return _decode_runs(runs, height, width, where)


def encode_mask(segmentation: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Encode a mask for the functions of ``pycocotools.mask``: polygons without painting them.

    Args and errors as for :func:`decode_mask`.

    Returns:
        Compressed run lengths: ``size`` and ``counts`` (bytes), checked to fit the image.
    """
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, height, width, where)
    mask = decode_mask(segmentation, height, width, where)
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def parse_runs(text: str | bytes, where: str) -> list[int]:
    """Read COCO's compressed run lengths: base-48 digits of 5 bits, least significant first.

    From the third run on, the difference to the run two before is stored.

    Raises:
        ValueError: a character outside the code, or an end within a number.
    """
    data = text.encode("utf-8") if isinstance(text, str) else text
    runs: list[int] = []
    value, shift = 0, 0
    for byte in data:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError(f"{where}: corrupt compressed run lengths, byte {byte}")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:  # the sign, in the last digit
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError(f"{where}: compressed run lengths end within a number")
    return runs


def _decode_runs(runs: Any, height: int, width: int, where: str) -> np.ndarray:
    """Decode run lengths, column by column, the first one of background: bool (H, W)."""
    try:
        lengths = np.asarray(runs)
    except ValueError as error:
        raise ValueError(f"{where}: run lengths are integers, got {_shorten(runs)}") from error
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(f"{where}: run lengths are integers, got {_shorten(runs)}")
    # Each one is bounded before the sum, which could wrap around.
    pixels = height * width
    if (lengths < 0).any() or (lengths > pixels).any() or lengths.sum() != pixels:
        raise ValueError(
            f"{where}: run lengths must be >= 0 and add up to height * width = {pixels}, "
            f"got {_shorten(runs)}"
        )
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T


def _decode_polygons(polygons: list[Any], height: int, width: int, where: str) -> np.ndarray:
    """Rasterise the union of polygons as COCO does: bool (H, W)."""
    runs = _encode_polygons(polygons, height, width, where)
    return coco_mask.decode(runs).astype(bool)


def _encode_polygons(polygons: list[Any], height: int, width: int, where: str) -> dict[str, Any]:
    """Compressed run lengths of the union of polygons."""
    outlines = [_check_polygon(polygon, where) for polygon in polygons]
    outlines = [outline for outline in outlines if len(outline) >= 6]
    if not outlines:
        return coco_mask.frPyObjects(
            {"size": [height, width], "counts": [height * width]}, height, width
        )
    return coco_mask.merge(coco_mask.frPyObjects(outlines, height, width))


def _check_polygon(polygon: Any, where: str) -> list[float]:
    """Check one polygon; returns its coordinates."""
    try:
        coordinates = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: a polygon is a list of numbers, got {_shorten(polygon)}"
        ) from error
    if coordinates.ndim != 1 or len(coordinates) % 2:
        raise ValueError(
            f"{where}: a polygon is a flat list of x, y pairs, got {_shorten(polygon)}"
        )
    if not (np.abs(coordinates) <= _FARTHEST).all():  # NaN fails this as well
        raise ValueError(
            f"{where}: polygon coordinates must be finite and near the image, got "
            f"{_shorten(polygon)}"
        )
    return coordinates.tolist()


def _shorten(value: Any, length: int = 60) -> str:
    """The beginning of a value's repr."""
    text = repr(value[:20] if isinstance(value, Sequence) else value)
    return text if len(text) <= length else f"{text[:length]}..."
