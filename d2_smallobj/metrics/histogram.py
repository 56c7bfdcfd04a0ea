"""Counting pixels by label.

Shapes: H, W image height and width.
"""

from __future__ import annotations

import numpy as np

from d2_smallobj.utils.opencv import cv2

# cv2.calcHist returns float32, which counts exactly up to 2**24 pixels.
_EXACT_PIXELS = 1 << 24


def narrow(labels: np.ndarray) -> np.ndarray:
    """Bring an integer map to uint8 where its values allow it, to int64 otherwise.

    Args:
        labels: (H, W) of any integer dtype.

    Returns:
        A C-contiguous uint8 or int64 map of equal values; ``labels`` itself where it already is.
    """
    if labels.dtype != np.uint8 and labels.size:
        small = labels.min() >= 0 and labels.max() <= 255
        labels = labels.astype(np.uint8 if small else np.int64, copy=False)
    return np.ascontiguousarray(labels)


def label_histogram(labels: np.ndarray, length: int) -> np.ndarray:
    """Count the pixels of every label.

    Args:
        labels: (H, W) integer map with values in ``0..length - 1``.
        length: number of labels.

    Returns:
        int64 (length,).
    """
    if 0 < labels.size < _EXACT_PIXELS and length <= 256:
        narrowed = labels.astype(np.uint8, copy=False)
        # The shape of a 1-D histogram differs between OpenCV 4 and 5.
        counts = cv2.calcHist([narrowed], [0], None, [256], [0, 256]).ravel()
        return counts[:length].astype(np.int64)
    return np.bincount(labels.ravel(), minlength=length)
