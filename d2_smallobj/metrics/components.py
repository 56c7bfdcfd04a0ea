"""Connected components of label maps: the objects of the loss's size weights and of boxes.

Shapes: H, W image height and width; K number of components.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from d2_smallobj.metrics.runs import Runs, find_runs, join_trees, run_components, stack_runs
from d2_smallobj.metrics.validation import VOID_INSTANCE, check_label, check_maps
from d2_smallobj.utils.opencv import cv2

# cv2.calcHist returns float32, which counts exactly up to 2**24 pixels.
_EXACT_PIXELS = 1 << 24


@dataclasses.dataclass(frozen=True)
class Components:
    """The components of all classes of one label map.

    Attributes:
        map: int32 (H, W), 0 on skipped labels, otherwise the component's number 1..K. Numbers
            ascend with the class.
        class_of: int64 (K,), class of component k at index k - 1.
        area: int64 (K,), number of pixels of ``map`` that carry the component's number.
    """

    map: np.ndarray
    class_of: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.class_of)


def label_components(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """Number the 8-connected components of a mask, (H, W) bool or uint8, nonzero = inside.

    Returns:
        The number K of components and an int32 (H, W) map: 0 outside, 1..K inside.

    Raises:
        TypeError, ValueError: if ``mask`` is not a two-dimensional bool or uint8 array.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype not in (np.bool_, np.uint8):
        got = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(f"mask must be a bool or uint8 array, got {got}")
    if mask.ndim != 2:
        raise ValueError(f"mask must have shape (H, W), got shape {mask.shape}")
    if mask.size == 0:
        return 0, np.zeros(mask.shape, np.int32)
    mask = np.ascontiguousarray(mask).view(np.uint8)
    count, labels = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    return count - 1, labels


def class_components(
    labels: np.ndarray,
    *,
    skip: Collection[int] = (0, 255),
    only: Collection[int] | None = None,
    filled: bool = False,
) -> Components:
    """Find the 8-connected components of every class of a label map.

    Pixels of different classes never join. Work is confined to each class's bounding box.

    Args:
        labels: (H, W) of any integer dtype.
        skip: label values that form no component (background, ignore).
        only: label values to look at, less those in ``skip``; ``None`` = all.
        filled: take components as filled outer contours, as the authors' code does
            (docs/method.md#official-mode): a component inside another one's hole belongs to
            it. The hole's own pixels carry another label, so they stay out of ``map`` and ``area``.

    Returns:
        The components; see :class:`Components`.

    Raises:
        TypeError: if ``labels`` is not an integer array.
        ValueError: if ``labels`` is not two-dimensional.
    """
    check_maps(labels=labels)
    labels = narrow(labels)
    numbered = np.zeros(labels.shape, np.int32)
    class_of: list[np.ndarray] = []
    areas: list[np.ndarray] = []
    offset = 0
    for label in _present(labels) if only is None else sorted(only):
        if label in skip:
            continue
        mask = (labels == label).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask) if mask.size else (0, 0, 0, 0)
        if width == 0:
            continue
        mask = np.ascontiguousarray(mask[y : y + height, x : x + width])
        part, area = _fill(mask) if filled else _number(mask)
        # Added, not assigned: the boxes of two classes may overlap, their pixels do not.
        window = numbered[y : y + height, x : x + width]
        window += part
        window += np.multiply(mask, np.int32(offset), dtype=np.int32)
        class_of.append(np.full(len(area), label, np.int64))
        areas.append(area)
        offset += len(area)
    return Components(numbered, _join(class_of), _join(areas))


def _number(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the components of a 0/1 mask: int32 map and areas."""
    # Counting afterwards is several times faster than connectedComponentsWithStats.
    count, part = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    return part, label_histogram(part, count)[1:]


def _fill(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the filled outer contours of a 0/1 mask: int32 map and areas."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    part = np.zeros(mask.shape, np.int32)
    for number, contour in enumerate(contours, start=1):
        cv2.drawContours(part, [contour], -1, float(number), thickness=cv2.FILLED)
    part *= mask
    return part, label_histogram(part, len(contours) + 1)[1:]


def _present(labels: np.ndarray) -> list[int]:
    """Label values that occur, ascending."""
    if labels.dtype == np.uint8:
        return np.flatnonzero(label_histogram(labels, 256)).tolist()
    return np.unique(labels).tolist()


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def narrow(labels: np.ndarray) -> np.ndarray:
    """Bring an integer map (H, W) to uint8 where its values allow it, to int64 otherwise.

    The result is C-contiguous; ``labels`` itself where it is so already.
    """
    if labels.dtype != np.uint8 and labels.size:
        small = labels.min() >= 0 and labels.max() <= 255
        labels = labels.astype(np.uint8 if small else np.int64, copy=False)
    return np.ascontiguousarray(labels)


def label_histogram(labels: np.ndarray, length: int) -> np.ndarray:
    """Count the pixels of every label of a map with values 0..length-1: int64 (length,)."""
    if 0 < labels.size < _EXACT_PIXELS and length <= 256:
        narrowed = labels.astype(np.uint8, copy=False)
        # The shape of a 1-D histogram differs between OpenCV 4 and 5.
        counts = cv2.calcHist([narrowed], [0], None, [256], [0, 256]).ravel()
        return counts[:length].astype(np.int64)
    return np.bincount(labels.ravel(), minlength=length)


def component_instances(
    semantic: np.ndarray,
    *,
    stuff: Collection[int] = (0,),
    ignore_label: int = 255,
    void_instance: int | None = VOID_INSTANCE,
) -> np.ndarray:
    """Number the components that stand in for missing instance annotation (paper, Sec. 2.2).

    Args:
        semantic: (H, W) integers.
        stuff: ids of the classes that have no instances.
        ignore_label: semantic value that is left out.
        void_instance: number that no component gets; ``None``: none is passed over.

    Returns:
        int64 (H, W), 0 on stuff and ignored pixels, elsewhere the ids that
        :func:`.matching.match_image` gives records without an instance map: from 1, ascending
        with the class, then with the first pixel in raster order.

    Raises:
        TypeError: if ``semantic`` is not an integer array, or ``ignore_label`` no int.
        ValueError: if it is not two-dimensional, or a label is too large.
    """
    check_maps(semantic=semantic)
    check_label(ignore_label)
    runs = find_runs(semantic)
    ids = component_ids(runs, runs.sample(semantic), (*stuff, ignore_label), void_instance)
    return np.repeat(ids, runs.length).reshape(semantic.shape)


def component_ids(
    runs: Runs, label: np.ndarray, skipped: Collection[int], void_instance: int | None
) -> np.ndarray:
    """Take the components of the semantic map for instances: their ids at the runs (R,)."""
    chosen = (~np.isin(label, list(skipped))).nonzero()[0]
    start, end, width = stack_runs([(runs, chosen)])
    label = label[chosen]
    tree, first = run_components(start, end, label, width)
    class_of = label[first]
    number = np.zeros(len(runs), np.int64)
    number[chosen] = tree + 1
    # The first run of a component holds its first pixel. Of several values the last one written
    # stays, so they are written backwards.
    first = np.zeros(len(class_of) + 1, np.int64)
    first[number[::-1]] = np.arange(len(number))[::-1]
    rank = np.zeros(len(class_of) + 1, np.int64)
    rank[np.lexsort((first[1:], class_of)) + 1] = np.arange(1, len(class_of) + 1)
    ids = rank[number]
    return ids if void_instance is None else ids + (ids >= void_instance)


def pixel_components(labels: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected components of wanted pixels, bool (H, W), in labels (H, W).

    Faster than :func:`run_components` where most runs are short, as few of them touch then. Equal
    labels are wanted or unwanted together.

    Returns:
        int64 (H, W), number 1..K of each pixel's component, 0 where not wanted; and int64 (K,), the
        label of each component. Numbers are in no particular order, and not every one is used.
    """
    runs, width = find_runs(labels), labels.shape[1]
    flat, inside = labels.ravel(), wanted.ravel()
    run_of = np.arange(len(runs)).repeat(runs.length)
    upper, lower = [], []
    # Below, to the lower right and to the lower left; at the edges there is no such pixel.
    for step, edge in ((width, None), (width + 1, width - 1), (width - 1, 0)):
        if edge is not None and width == 1:
            continue
        same = flat[: max(flat.size - step, 0)] == flat[step:]
        same &= inside[step:]
        if edge is not None:
            same[edge::width] = False
        above = same.nonzero()[0]
        upper.append(run_of[above])
        lower.append(run_of[above + step])
    one, two = np.concatenate(upper), np.concatenate(lower)
    # Only the runs that touch another one take part.
    touched = np.zeros(len(runs), bool)
    touched[one] = touched[two] = True
    touched = touched.nonzero()[0]
    number = np.empty(len(runs), np.int64)
    number[touched] = np.arange(len(touched))
    joined = join_trees(len(touched), number[one], number[two])
    number = np.arange(1, len(runs) + 1)
    if joined is not None:
        number[touched] = touched[joined] + 1
    number = number[run_of]
    number *= inside
    return number.reshape(labels.shape), runs.sample(labels)
