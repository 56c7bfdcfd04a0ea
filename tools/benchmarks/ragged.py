"""Predictions as ragged as a network's, and the same regions as more classes.

A network predicts at an eighth of the size. What is made of it has far more corners than a drawn
outline, and corners are what the metric pays for. The noise is such that this package's matching
took 1.15 times the yardstick on the borders when a real network's predictions took 1.17 times.

Legend: H, W height and width of an image; h, w an eighth of them, rounded up; C classes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.utils.opencv import cv2

from benchmarks.scenes import CLASSES, VOID, Maps

STRIDE = 8
WIDE_VOID = 65535
"""Ignore label where the classes leave 255 no room; the maps are uint16 then."""


def read_voc(folder: str | os.PathLike[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read the annotated images of a ``VOC2012`` folder.

    Args:
        folder: holds ``SegmentationClass`` and ``SegmentationObject``.

    Returns:
        Semantic and instance map of each image, uint8 (H, W), in the order of their names.

    Raises:
        ValueError: if there is no instance map.
        OSError: if a map is missing.
    """
    root = Path(folder)
    files = sorted((root / "SegmentationObject").glob("*.png"))
    if not files:
        raise ValueError(
            f"--voc: expected SegmentationObject/*.png in a VOC2012 folder, got {root}"
        )
    return [(read_label_map(root / "SegmentationClass" / f.name), read_label_map(f)) for f in files]


def predict_blocks(rng: np.random.Generator, semantic: np.ndarray) -> np.ndarray:
    """Predict in whole cells of 8 x 8 pixels, as labels enlarged to the nearest pixel are.

    Cells hold the truth at their centre. One in sixteen is another class of the image or one that
    it has not; and smooth noise cuts holes into objects and makes some up.

    Args:
        rng: source of chance.
        semantic: uint8 (H, W).

    Returns:
        uint8 (H, W).
    """
    cells = _cells(semantic)
    present = np.append(np.unique(cells), rng.integers(0, CLASSES, 2)).astype(np.uint8)
    flipped = rng.random(cells.shape) < 1 / 16
    cells = np.where(flipped, rng.choice(present, cells.shape), cells)
    waves = rng.normal(size=(7, 9)).astype(np.float32)
    waves = cv2.resize(waves, cells.shape[::-1], interpolation=cv2.INTER_CUBIC)
    cells = np.where(waves > 1.1, rng.choice(present), cells)
    height, width = semantic.shape
    return np.ascontiguousarray(cells.repeat(STRIDE, 0).repeat(STRIDE, 1)[:height, :width])


def predict_borders(rng: np.random.Generator, semantic: np.ndarray) -> np.ndarray:
    """Predict the largest of noisy score maps, enlarged bilinearly, as most networks do.

    Args:
        rng: source of chance.
        semantic: uint8 (H, W).

    Returns:
        uint8 (H, W).
    """
    cells = _cells(semantic)
    height, width = semantic.shape
    best = np.full((height, width), -np.inf, np.float32)
    winner = np.zeros((height, width), np.uint8)
    for category in range(CLASSES):
        score = cv2.GaussianBlur((cells == category).astype(np.float32), (0, 0), 1.0)
        score += rng.normal(0, 0.3, cells.shape).astype(np.float32)
        large = (cells.shape[1] * STRIDE, cells.shape[0] * STRIDE)
        score = cv2.resize(score, large, interpolation=cv2.INTER_LINEAR)[:height, :width]
        higher = score > best
        best[higher], winner[higher] = score[higher], category
    return winner


def spread_classes(maps: Maps, rng: np.random.Generator, classes: int, *, spread: bool) -> Maps:
    """Give an image to a data set of more classes, its regions as they are.

    Args:
        maps: an image of 21 classes.
        rng: source of chance.
        classes: number of classes of the other data set, at least 21.
        spread: whether the labels are drawn from all of its classes (0 stays 0), or kept.

    Returns:
        The maps; beyond 255 classes prediction and semantic map are uint16, void
        :data:`WIDE_VOID`.
    """
    dtype = np.uint8 if classes <= VOID else np.uint16
    names = np.arange(256)
    if spread:
        names[1:CLASSES] = rng.choice(np.arange(1, classes), CLASSES - 1, replace=False)
    names[VOID] = void_of(classes)
    prediction, semantic, instances = maps
    return names.astype(dtype)[prediction], names.astype(dtype)[semantic], instances.copy()


def void_of(classes: int) -> int:
    """Ignore label of a data set of that many classes."""
    return VOID if classes <= VOID else WIDE_VOID


def _cells(semantic: np.ndarray) -> np.ndarray:
    """Labels (h, w) of the truth at the centre of each cell, void as background."""
    cells = np.pad(semantic, ((0, -semantic.shape[0] % STRIDE), (0, -semantic.shape[1] % STRIDE)))
    cells = cells[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    return np.where(cells == VOID, 0, cells)
