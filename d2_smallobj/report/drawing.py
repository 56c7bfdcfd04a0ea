"""Label maps and weight maps as colours.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import numpy as np

from d2_smallobj.annotations.label_maps import voc_palette
from d2_smallobj.utils.opencv import cv2


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """The VOC colours of a label map: integers >= 0 (H, W) to uint8 (H, W, 3), RGB.

    There are 256 colours; larger labels share them.
    """
    return voc_palette()[labels.astype(np.uint8)]


def blend_labels(image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.6) -> np.ndarray:
    """Lay a label map's colours over an image; background stays as it is.

    Args:
        image: uint8 (H, W, 3), RGB.
        labels: integers >= 0 (H, W), 0 = background.
        opacity: share of the label's colour, in [0, 1].

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: if the sizes differ.
    """
    if image.shape != (*labels.shape, 3):
        raise ValueError(
            f"image and labels must have one size, got {image.shape} and {labels.shape}"
        )
    mixed = cv2.addWeighted(image, 1 - opacity, colour_labels(labels), opacity, 0)
    return np.where((labels != 0)[..., None], mixed, image)


def colour_weights(weights: np.ndarray, largest: float) -> np.ndarray:
    """A size-weight map as a heat map: black 0, then dark to light up to ``largest``.

    Args:
        weights: float (H, W), >= 0.
        largest: the weight that gets the lightest colour, > 0.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    grey = np.clip(weights / largest * 255, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
