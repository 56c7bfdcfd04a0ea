"""Charging predicted components to the instances that they overlap (SPEC 1.2 to 1.4).

Shapes: K number of predicted components, background as number 0 included; E number of distinct
meetings of a component with an instance and a label; T number of instances, background included.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np

from d2_smallobj.metrics.records import BACKGROUND
from d2_smallobj.metrics.validation import VOID_INSTANCE


@dataclasses.dataclass(frozen=True)
class Cells:
    """What meets on the image, all int64 (E,).

    Attributes:
        component: number of the predicted component.
        owner: value of the instance map.
        label: value of the semantic map.
        count: number of pixels.
    """

    component: np.ndarray
    owner: np.ndarray
    label: np.ndarray
    count: np.ndarray


def pixel_sums(index: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """int64 sums of pixel counts by ``index``, exact: bincount adds float64, up to 2**53."""
    return np.bincount(index, values, length).astype(np.int64)


def charge(
    cells: Cells,
    valid: np.ndarray,
    class_of: np.ndarray,
    truth: dict[str, np.ndarray],
    slot: np.ndarray,
    *,
    cut: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Charge the predicted components to the instances that they overlap.

    Args:
        cells: what meets on the image.
        valid: bool (E,), cells that the semantic map does not ignore.
        class_of: int64 (K,), class of each component.
        truth: columns of the instances.
        slot: int64 (E,), instance of each cell.
        cut: truncate the share beyond the overlap.

    Returns:
        Columns of the instances and of the blobs; image_id and image_area are still missing.
    """
    total, number = len(truth["pixels"]), len(class_of)
    seen = (valid & (cells.owner != VOID_INSTANCE)).nonzero()[0]
    component, slot, count = cells.component[seen], slot[seen], cells.count[seen]
    size = pixel_sums(component, count, number)
    # An instance of another class is only more of the component's surplus. What is left is one
    # cell for each component and instance, as an instance has one label.
    met = (np.append(truth["category_id"], -1)[slot] == class_of[component]).nonzero()[0]
    component, slot, count = component[met], slot[met], count[met]
    overlap = pixel_sums(component, count, number)
    beyond, overlapped = (size - overlap)[component], overlap[component]
    whole, rest = np.divmod(beyond * count, overlapped)
    if cut:
        # The authors cut a floating-point product, which may be just short of a whole number.
        whole = (count / overlapped * beyond).astype(np.int64)
    intersection = pixel_sums(slot, count, total)
    charged = (intersection + pixel_sums(slot, whole, total)).astype(np.float64)
    if not cut:
        _add_fractions(charged, slot, rest, overlapped)
    lone = ((overlap == 0) & (size > 0) & (class_of != BACKGROUND)).nonzero()[0]
    return {
        **truth,
        "intersection": intersection,
        "charged": charged,
        "components": np.bincount(slot, minlength=total),
        "shared": _neighbours(component, slot, total),
    }, {"category_id": class_of[lone], "area": size[lone]}


def _neighbours(component: np.ndarray, slot: np.ndarray, length: int) -> np.ndarray:
    """Number of other instances that each instance (T,) shares a component with.

    Args:
        component: int64 (E,), ascending, component of each pair that meets.
        slot: int64 (E,), instance of each pair.
        length: T.
    """
    shared = np.zeros(length, np.int64)
    size = np.bincount(component, minlength=1)
    joint = (size[component] > 1).nonzero()[0]
    if len(joint) == 0:
        return shared
    component, slot = component[joint], slot[joint]
    shared[slot] = size[component] - 1
    # In several shared components the same instance may be met again.
    groups: dict[int, set[int]] = {}
    for pair in np.flatnonzero(np.bincount(slot, minlength=length)[slot] > 1).tolist():
        start, end = np.searchsorted(component, [component[pair], component[pair] + 1]).tolist()
        groups.setdefault(int(slot[pair]), set()).update(slot[start:end].tolist())
    for one, group in groups.items():
        shared[one] = len(group) - 1
    return shared


def _add_fractions(
    charged: np.ndarray, slot: np.ndarray, rest: np.ndarray, overlap: np.ndarray
) -> None:
    """Add Σ rest / overlap to ``charged``, in place and rounded once.

    Rational arithmetic makes the sum independent of the order of components, so that a mirrored
    image gets the same bits; only components shared by several instances come here.
    """
    shared: dict[int, Fraction] = {}
    for where in rest.nonzero()[0].tolist():
        part = Fraction(int(rest[where]), int(overlap[where]))
        shared[int(slot[where])] = shared.get(int(slot[where]), Fraction(0)) + part
    for where, part in shared.items():
        charged[where] = float(int(charged[where]) + part)
