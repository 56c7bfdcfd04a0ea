"""Finding pictures that are also in VOC: COCO and VOC were both collected on Flickr.

The perceptual hash (pHash) of a picture are the signs of its 64 lowest frequencies: rescaling,
recompression and brightness hardly change it, another picture changes half of its bits.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from d2_smallobj.annotations.label_maps import CORRUPT_IMAGE
from d2_smallobj.utils.opencv import cv2

MAX_DISTANCE = 8
"""Bits, of 64, in which near-duplicates may differ; unrelated pictures differ in 32 ± 4."""

_SIDE, _FREQUENCIES = 32, 8
_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


def hash_picture(path: str | os.PathLike[str]) -> tuple[np.ndarray, tuple[int, int]]:
    """Hash a picture.

    Args:
        path: a JPEG, or what else Pillow reads.

    Returns:
        The hash, uint8 (8,), and height and width of the picture in pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or truncated; names it.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # JPEGs are decoded at a fraction of their size, several times as fast.
            image.draft("L", (2 * _SIDE, 2 * _SIDE))
            grey = np.asarray(image.convert("L"), np.float32)
    except FileNotFoundError:
        raise
    except CORRUPT_IMAGE as error:
        raise ValueError(f"{path}: corrupt or truncated picture ({error})") from error
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:_FREQUENCIES, :_FREQUENCIES].ravel()
    # The first is the brightness, many times as large as the others.
    return np.packbits(low > np.median(low[1:])), (height, width)


def nearest(hashes: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar reference of every picture.

    Args:
        hashes: uint8 (M, 8).
        references: uint8 (R, 8), R >= 1.

    Returns:
        index: int64 (M,), position of the reference.
        distance: int64 (M,), number of bits that differ, 0..64.
    """
    index = np.zeros(len(hashes), np.int64)
    distance = np.zeros(len(hashes), np.int64)
    for number, one in enumerate(hashes):
        differing = _BITS[references ^ one].sum(axis=1)
        index[number] = np.argmin(differing)
        distance[number] = differing[index[number]]
    return index, distance


def hash_or_problem(path: str) -> tuple[np.ndarray | None, tuple[int, int], str]:
    """:func:`hash_picture`, its error as text: for many pictures at once."""
    try:
        found, size = hash_picture(path)
    except (OSError, ValueError) as error:
        return None, (0, 0), str(error)
    return found, size, ""
