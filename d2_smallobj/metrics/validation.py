"""Settings of matching, and checks of the metric's input; every error names the values found."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable

import numpy as np
from numpy import ma  # numpy loads it late, which threads at once do not survive

from d2_smallobj.utils.messages import look_up_option

MODES = ("exact", "official")

# Border and crowd pixels of VOC's instance maps.
VOID_INSTANCE = 255

MOST_CLASSES = 10_000
"""Largest number of classes: the confusion matrix has the square of it."""

_SHOWN = 10
_LARGEST = 1 << 62  # Above all ids and labels; sums with it still fit int64.


def check_classes(num_classes: int, ignore_label: int) -> None:
    """Check the number of classes and that the ignore label is none of them.

    Raises:
        TypeError: if one is not an int.
        ValueError: if ``num_classes`` is not in 1..10,000, or if ``ignore_label`` is negative, a
            class, or 2**62 or more.
    """
    _check_int("num_classes", num_classes)
    check_label(ignore_label)
    if num_classes < 1:
        raise ValueError(
            f"num_classes must be at least 1 (it counts every class), got {num_classes}"
        )
    if num_classes > MOST_CLASSES:
        raise ValueError(f"num_classes must be at most {MOST_CLASSES}, got {num_classes}")
    if ignore_label < num_classes:
        raise ValueError(
            f"ignore_label must lie above the classes 0..{num_classes - 1}, got {ignore_label}"
        )


def check_label(ignore_label: int) -> None:
    """Check a label that is left out: a TypeError if it is no int, a ValueError from 2**62 on."""
    _check_int("ignore_label", ignore_label)
    if ignore_label >= _LARGEST:
        raise ValueError(f"ignore_label must lie below 2**62, got {ignore_label}")


def _check_int(name: str, value: object) -> None:
    """Raise TypeError for what is no integer; bool is none, nor is 255.0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {value!r}")


def check_stuff(stuff: Collection[int], num_classes: int) -> tuple[int, ...]:
    """Check the ids of the stuff classes, in any order, and return them ascending.

    Raises:
        TypeError: if ``stuff`` is no collection of ints.
        ValueError: if an id is no class, or is there twice.
    """
    whole = not isinstance(stuff, str) and isinstance(stuff, Iterable)
    ids = list(stuff) if whole else []
    if not whole or not all(isinstance(x, (int, np.integer)) for x in ids):
        raise TypeError(f"stuff must be class ids such as (0,), or () for none, got {stuff!r}")
    wrong = sorted(int(one) for one in ids if not 0 <= one < num_classes)
    if wrong:
        raise ValueError(f"stuff: class ids must be in 0..{num_classes - 1}, got {wrong}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"stuff: duplicate class ids in {ids}")
    return tuple(sorted(int(one) for one in ids))


def check_void_instance(void_instance: int | None) -> int | None:
    """Check the value of void pixels in instance maps; ``None``: there are none.

    Raises:
        TypeError: if it is no int.
        ValueError: if it is below 1: 0 means no instance.
    """
    if void_instance is None:
        return None
    _check_int("void_instance", void_instance)
    if not 1 <= void_instance < _LARGEST:
        raise ValueError(
            f"void_instance must be at least 1 and below 2**62, or None, got {void_instance}"
        )
    return int(void_instance)


def check_maps(**maps: np.ndarray | None) -> None:
    """Check that the maps given (``None`` = not given) are integers, 2-D and of one shape.

    Raises:
        TypeError: if one is not an integer array, or one that behaves otherwise (``numpy.matrix``,
            a masked array).
        ValueError: if one is not two-dimensional, holds 2**63 or more, or the shapes differ.
    """
    given = {name: value for name, value in maps.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            got = getattr(value, "dtype", type(value).__name__)
            raise TypeError(f"{name} must be an integer array of labels, got {got}")
        if isinstance(value, (np.matrix, ma.MaskedArray)):
            kind = type(value).__name__
            raise TypeError(f"{name} must be a plain array, got a {kind}; give numpy.asarray of it")
        if value.ndim != 2:
            raise ValueError(f"{name} must have shape (H, W), got shape {value.shape}")
        if value.dtype == np.uint64 and value.max(initial=0) >= 1 << 63:
            raise ValueError(f"{name} must hold values below 2**63, got {value.max()}")
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


def raise_for_classes(
    ids: np.ndarray, category: np.ndarray, pixels: np.ndarray, stuff: Collection[int]
) -> None:
    """Name the instances that do not lie on one thing class.

    Args:
        ids: int64 (R,), instance on each piece of the image.
        category: int64 (R,), class there.
        pixels: int64 (R,), number of pixels of the piece.
        stuff: ids of the stuff classes.

    Raises:
        ValueError: always.
    """
    pairs, piece = np.unique(np.stack([ids, category]), axis=1, return_inverse=True)
    ids, category = pairs
    pixels = np.bincount(piece.ravel(), pixels).astype(np.int64)
    wrong = [
        identity
        for identity in np.unique(ids).tolist()
        if np.count_nonzero(ids == identity) > 1 or category[ids == identity][0] in stuff
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
    rule = "one class"
    if stuff:
        rule += f" that is not stuff ({', '.join(map(str, sorted(stuff)[:_SHOWN]))})"
    raise ValueError(
        f"every instance must lie on {rule}: {listed}"
        " (do the instance map and the semantic map belong to the same image?)"
    )


@dataclasses.dataclass(frozen=True)
class MatchSettings:
    """Settings of matching; checked when they are made.

    Attributes:
        num_classes: C.
        stuff: ids of the classes whose pixels are no objects, ascending.
        ignore_label: semantic value that is left out.
        void_instance: value of instance pixels that are left out; ``None``: there are none.
        mode: ``"exact"`` or ``"official"``.

    Raises:
        TypeError, ValueError: a value is of the wrong kind or out of range.
    """

    num_classes: int
    stuff: Collection[int] = (0,)
    ignore_label: int = 255
    void_instance: int | None = VOID_INSTANCE
    mode: str = "exact"

    def __post_init__(self) -> None:
        """Check the values and bring them to plain ints."""
        check_classes(self.num_classes, self.ignore_label)
        checked = {
            "num_classes": int(self.num_classes),
            "stuff": check_stuff(self.stuff, self.num_classes),
            "ignore_label": int(self.ignore_label),
            "void_instance": check_void_instance(self.void_instance),
            "mode": look_up_option("mode", self.mode, MODES),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @functools.cached_property
    def is_thing(self) -> np.ndarray:
        """Mark the classes of objects, bool (C + 1,); index -1, no class, is none."""
        things = np.ones(self.num_classes + 1, bool)
        things[[*self.stuff, -1]] = False
        return things

    @functools.cached_property
    def stuff_number(self) -> np.ndarray:
        """Number the stuff classes from 1, int64 (C + 1,); 0 for things and no class (-1)."""
        number = np.zeros(self.num_classes + 1, np.int64)
        number[list(self.stuff)] = np.arange(1, len(self.stuff) + 1)
        return number


match_settings = functools.lru_cache(maxsize=8, typed=True)(MatchSettings)
"""Make settings, or take those that were made with the same arguments before."""
