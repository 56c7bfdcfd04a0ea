"""Pixel weights inversely proportional to object size (paper, Eq. 3).

Readings of the equation: docs/method.md#size-weights.

Shapes: H, W height and width of a label map; K number of its foreground components.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from d2_smallobj.metrics.components import Components, class_components
from d2_smallobj.utils.messages import look_up_option
from d2_smallobj.utils.opencv import cv2

TOTALS = ("foreground", "class")
COMPATS = ("exact", "contour")


@dataclasses.dataclass(frozen=True)
class SizeWeights:
    """The rule from a label map to pixel weights; picklable, for loader workers.

    Component k weighs ``min(tau, S_fg / S_k)`` on each of its pixels, background weighs 1 and
    ignored pixels 0 (paper, Eq. 3).

    Attributes:
        tau: cap of the weights, >= 1; the paper's is 5.
        total: S_fg is ``"foreground"``: all foreground pixels of the map, all classes together
            (the authors' code); ``"class"``: the pixels of the component's own class.
        compat: S_k is ``"exact"``: the component's pixels; ``"contour"``: the pixels inside its
            outer contour, holes and what lies in them included. In either mode the weight goes to
            the component's own pixels, and it falls below 1 where holes are larger than the rest
            of the foreground. (The authors' code also paints the weight on the hole's background,
            and the hole's inverse area on its rim; here background always weighs 1.)
        ignore_label: label of the pixels to leave out; not 0, which is the background.

    Raises:
        ValueError: if an option is out of its range.
    """

    tau: float = 5.0
    total: str = "foreground"
    compat: str = "exact"
    ignore_label: int = 255

    def __post_init__(self) -> None:
        tau = self.tau
        if isinstance(tau, bool) or not isinstance(tau, (int, float, np.number)):
            raise ValueError(f"tau must be a number >= 1, got {tau!r}")
        if not (math.isfinite(tau) and tau >= 1):
            raise ValueError(
                f"tau must be finite and >= 1 (1 switches the weights off), got {tau!r}"
            )
        look_up_option("total", self.total, TOTALS)
        look_up_option("compat", self.compat, COMPATS)
        check_ignore_label(self.ignore_label)

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Weigh every pixel of a label map.

        Args:
            labels: (H, W) of any integer dtype; 0 background, ``ignore_label`` left out, every
                other non-negative value a class.

        Returns:
            float32 (H, W): 0 on ignored pixels, 1 on background, otherwise positive and at most
            ``tau`` (at least 1 with ``compat="exact"``).

        Raises:
            ValueError: if ``labels`` is not a two-dimensional integer array, or holds a negative
                value other than ``ignore_label``.
        """
        _check_labels(labels, self.ignore_label)
        components = class_components(labels, skip=(0, self.ignore_label))
        # Index 0 of the table is "no component": background, and ignored pixels until below.
        table = np.ones(len(components) + 1, np.float32)
        table[1:] = self._component_weights(components)
        weights = table[components.map]
        weights[labels == self.ignore_label] = 0
        return weights

    def _component_weights(self, components: Components) -> np.ndarray:
        """min(tau, S_fg / S_k) as float64 (K,)."""
        area = components.area
        if self.total == "foreground":
            total = area.sum()
        else:
            _, row = np.unique(components.class_of, return_inverse=True)
            total = np.bincount(row, weights=area)[row] if len(row) else 0
        size = _filled_areas(components) if self.compat == "contour" else area
        return np.minimum(self.tau, total / size)


def size_weights(
    labels: np.ndarray,
    *,
    tau: float = 5.0,
    total: str = "foreground",
    compat: str = "exact",
    ignore_label: int = 255,
) -> np.ndarray:
    """Weigh every pixel of a label map by the inverse size of its component (paper, Eq. 3).

    Args:
        labels: (H, W) of any integer dtype; 0 background, ``ignore_label`` left out.
        tau: cap of the weights, >= 1.
        total: ``"foreground"`` or ``"class"``; see :class:`SizeWeights`.
        compat: ``"exact"`` or ``"contour"``; see :class:`SizeWeights`.
        ignore_label: label of the pixels to leave out.

    Returns:
        float32 (H, W); see :meth:`SizeWeights.__call__`.

    Raises:
        ValueError: if an option or ``labels`` is out of its range.

    Example:
        >>> import numpy as np
        >>> labels = np.array([[1, 0, 2, 2, 2, 255]])
        >>> size_weights(labels)[0].round(3).tolist()
        [4.0, 1.0, 1.3329999446868896, 1.3329999446868896, 1.3329999446868896, 0.0]
    """
    return SizeWeights(tau=tau, total=total, compat=compat, ignore_label=ignore_label)(labels)


def check_ignore_label(ignore_label: int) -> None:
    """Raise ValueError if an ignore label is no integer, or is 0, the background."""
    if isinstance(ignore_label, bool) or not isinstance(ignore_label, (int, np.integer)):
        raise ValueError(f"ignore_label must be an integer, got {ignore_label!r}")
    if ignore_label == 0:
        raise ValueError("ignore_label must not be 0, which is the background; usual is 255")


def _check_labels(labels: np.ndarray, ignore_label: int) -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        got = getattr(labels, "dtype", type(labels).__name__)
        raise ValueError(f"labels must be an integer array of shape (H, W), got {got}")
    if labels.ndim != 2:
        raise ValueError(f"labels must have shape (H, W), got shape {labels.shape}")
    # The minimum alone answers for almost every map; only a negative one needs a second look.
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        wrong = labels[(labels < 0) & (labels != ignore_label)]
        if wrong.size:
            raise ValueError(
                f"labels must be >= 0 or the ignore label {ignore_label}, got {wrong[0]}"
            )


def _filled_areas(components: Components) -> np.ndarray:
    """Pixels inside the outer contour of every component, float64 (K,)."""
    filled = components.area.astype(np.float64)
    for label in np.unique(components.class_of):
        # Components are numbered class by class, so a class is a range of numbers.
        numbers = np.flatnonzero(components.class_of == label) + 1
        mask = cv2.inRange(components.map, float(numbers[0]), float(numbers[-1]))
        # RETR_CCOMP lists the outer contour of every component, islands in holes included, and
        # hole contours, which are told by having a parent.
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for contour, (_, _, _, parent) in zip(contours, hierarchy[0]):
            if parent < 0:
                x, y = contour[0, 0]
                filled[components.map[y, x] - 1] = _pixels_inside(contour)
    return filled


def _pixels_inside(contour: np.ndarray) -> float:
    """Pixels on and inside a closed contour of 8-neighbour steps, as cv2.drawContours fills it.

    Pick's theorem: points = area + steps / 2 + 1. It holds for outlines that run back over
    themselves too (lines one pixel wide), and needs no scratch image to draw on.
    """
    steps = len(contour) if len(contour) > 1 else 0
    return cv2.contourArea(contour) + steps / 2 + 1
