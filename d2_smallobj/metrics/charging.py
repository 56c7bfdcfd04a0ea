"""Charging predicted components to the instances that they overlap.

Shapes: K number of predicted components; E number of overlaps of a component with an instance of
its class; T number of records.
"""

from __future__ import annotations

import math

import numpy as np

from d2_smallobj.metrics.overlaps import Components, sum_by


def charge_pairs(
    size: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    components: Components,
    records: dict[str, np.ndarray],
    *,
    cut: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Charge components to the instances of their class that they overlap.

    Args:
        size: int64 (K,), counted pixels of each component.
        pairs: component, record and number of pixels of each overlap, int64 (E,), ascending by
            component.
        components: the predicted components.
        records: columns of the records.
        cut: truncate the share beyond the overlap.

    Returns:
        Columns of the records and of the blobs.
    """
    component, index, count = pairs
    total = len(records["pixels"])
    overlap = sum_by(component, count, len(size))
    surplus, overlapped = (size - overlap).take(component), overlap.take(component)
    whole, rest = np.divmod(surplus * count, overlapped)
    if cut:
        # The authors cut a floating-point product, which may be just short of a whole number.
        whole = (count / overlapped * surplus).astype(np.int64)
    intersection = sum_by(index, count, total)
    charged = (intersection + sum_by(index, whole, total)).astype(np.float64)
    if not cut:
        _add_fractions(charged, index, rest, overlapped)
    unmatched = (overlap == 0) & (size > 0)
    unmatched[: components.first_thing] = False
    unmatched = unmatched.nonzero()[0]
    return {
        **records,
        "intersection": intersection,
        "charged": charged,
        "components": np.bincount(index, minlength=total),
        "shared": _sharing(component, index, total),
    }, {
        "image": components.image.take(unmatched),
        "category_id": components.category.take(unmatched),
        "area": size.take(unmatched),
    }


def _sharing(component: np.ndarray, index: np.ndarray, length: int) -> np.ndarray:
    """Count the other instances that each instance (T,) shares a component with.

    Args:
        component: int64 (E,), ascending, component of each overlap with its own class.
        index: int64 (E,), instance of each.
        length: T.
    """
    shared = np.zeros(length, np.int64)
    size = np.bincount(component, minlength=1)
    joint = (size[component] > 1).nonzero()[0]
    if len(joint) == 0:
        return shared
    component, index = component[joint], index[joint]
    shared[index] = size[component] - 1
    # Through several shared components, two instances may share more than once.
    groups: dict[int, set[int]] = {}
    for pair in np.flatnonzero(np.bincount(index, minlength=length)[index] > 1).tolist():
        start, end = np.searchsorted(component, [component[pair], component[pair] + 1]).tolist()
        groups.setdefault(int(index[pair]), set()).update(index[start:end].tolist())
    for one, group in groups.items():
        shared[one] = len(group) - 1
    return shared


def _add_fractions(
    charged: np.ndarray, index: np.ndarray, rest: np.ndarray, overlap: np.ndarray
) -> None:
    """Add Σ rest / overlap to ``charged``, in place and rounded once.

    Whole numbers make the sum independent of the order of components, so that a mirrored image
    gets the same bits; only components shared by several instances come here.
    """
    where = rest.nonzero()[0]
    sums: dict[int, tuple[int, int]] = {}
    for one, above, below in zip(*(x[where].tolist() for x in (index, rest, overlap))):
        other, common = sums.get(one, (0, 1))
        whole = math.lcm(common, below)
        sums[one] = other * (whole // common) + above * (whole // below), whole
    for one, (above, below) in sums.items():
        # A quotient of Python's integers is rounded once.
        charged[one] = (int(charged[one]) * below + above) / below
