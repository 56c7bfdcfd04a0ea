"""Checks of the metric's input; every error carries the values that caused it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Border and crowd pixels of an instance map, whatever its dtype.
VOID_INSTANCE = 255

_SHOWN = 10


def check_classes(num_classes: int, ignore_label: int) -> None:
    """Check the number of classes and that the ignore label is none of them.

    Raises:
        TypeError: if ``num_classes`` is not an int.
        ValueError: if it is below 1, or if ``ignore_label`` is negative or a class.
    """
    if not isinstance(num_classes, (int, np.integer)):
        raise TypeError(f"num_classes must be an int, got {num_classes!r}")
    if num_classes < 1:
        raise ValueError(
            f"num_classes must be at least 1 (it counts background), got {num_classes}"
        )
    if ignore_label < num_classes:
        raise ValueError(
            f"ignore_label must lie above the classes 0..{num_classes - 1}, got {ignore_label}"
        )


def check_maps(**maps: np.ndarray | None) -> None:
    """Check that the maps given (``None`` = not given) are integers, 2-D and of one shape.

    Raises:
        TypeError: if one is not an integer array.
        ValueError: if one is not two-dimensional, or the shapes differ.
    """
    given = {name: value for name, value in maps.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            got = getattr(value, "dtype", type(value).__name__)
            raise TypeError(f"{name} must be an integer array of labels, got {got}")
        if value.ndim != 2:
            raise ValueError(f"{name} must have shape (H, W), got shape {value.shape}")
    shapes = {name: value.shape for name, value in given.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the maps must have one shape, got {listed}")


def raise_for_values(name: str, values: np.ndarray, limit: int) -> None:
    """Refuse labels outside 0..limit-1.

    Args:
        name: what the map is called.
        values: integers of any shape, ignored pixels already left out.
        limit: number of legal labels.

    Raises:
        ValueError: if there is one; the message lists the first ten values with their counts.
    """
    wrong, counts = np.unique(values[(values < 0) | (values >= limit)], return_counts=True)
    if len(wrong) == 0:
        return
    pairs = list(zip(wrong.tolist(), counts.tolist()))
    listed = ", ".join(f"{value} ({count} px)" for value, count in pairs[:_SHOWN])
    more = f" and {len(pairs) - _SHOWN} more values" if len(pairs) > _SHOWN else ""
    rule = f"0..{limit - 1} on pixels that are not ignored" if name != "instances" else ">= 0"
    raise ValueError(f"{name} must hold {rule}, got {listed}{more}")


def raise_for_classes(ids: np.ndarray, category: np.ndarray, pixels: np.ndarray) -> None:
    """Name the instances that do not lie on one foreground class.

    Args:
        ids: int64 (R,), instance on each piece of the image.
        category: int64 (R,), class there.
        pixels: int64 (R,), number of pixels of the piece.

    Raises:
        ValueError: always.
    """
    pairs, piece = np.unique(np.stack([ids, category]), axis=1, return_inverse=True)
    ids, category = pairs
    pixels = np.bincount(piece.ravel(), pixels).astype(np.int64)
    wrong = [
        identity
        for identity in np.unique(ids).tolist()
        if np.count_nonzero(ids == identity) > 1 or category[ids == identity][0] == 0
    ]
    listed = "; ".join(
        f"instance {identity} lies on "
        + ", ".join(
            f"class {label} ({count} px)"
            for label, count in zip(
                category[ids == identity].tolist(), pixels[ids == identity].tolist()
            )
        )
        for identity in wrong[:_SHOWN]
    )
    raise ValueError(
        f"every instance must lie on one class other than background (0): {listed}"
        " (do the instance map and the semantic map belong to the same image?)"
    )


def first_ten(names: Sequence[str] | np.ndarray) -> str:
    """List names in a message: the first ten and the number of the others."""
    listed = ", ".join(str(name) for name in names[:_SHOWN])
    return listed + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
