"""Seeded label maps as VOC has them, with predictions: what is timed must look like the real thing.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from d2_smallobj.annotations.label_maps import encode_label_map
from d2_smallobj.utils.opencv import cv2

CLASSES, VOID = 21, 255
VOC_SIZE = (500, 375)
"""Width and height of a typical VOC picture."""
MOST_INSTANCES = 8
FOLDERS = ("predictions", "semantic", "instances")

Maps = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Prediction, semantic map and instance map, uint8 (H, W)."""


def draw_maps(
    rng: np.random.Generator, width: int, height: int, instances: int, kinds: int = 3
) -> Maps:
    """Draw an image as VOC annotates it, and a prediction with the usual faults.

    Rounded shapes of log-uniform size, each on those before it and within a void border as wide
    as VOC's; at most ``kinds`` classes. Predicted shapes are displaced, too large or too small;
    one in ten is missed and one in ten mistaken for another class; up to three blobs are made up.
    """
    prediction, semantic, owner = np.zeros((3, height, width), np.uint8)
    side = min(width, height)
    classes = rng.integers(1, CLASSES, kinds)
    largest = 0.4 * side if instances < 20 else 0.15 * side
    radii = np.sort(np.exp(rng.uniform(np.log(8 * side / 375), np.log(largest), instances)))[::-1]
    border = np.ones((5, 5), np.uint8)
    for number, radius in enumerate(radii, start=1):
        kind, centre = int(rng.choice(classes)), rng.uniform(0, 1, 2) * (width, height)
        outline = _outline(rng, radius)
        mask = cv2.fillPoly(np.zeros_like(owner), [_rounded(outline + centre)], 1)
        ring = cv2.dilate(mask, border) > 0
        semantic[ring], owner[ring] = VOID, VOID
        semantic[mask > 0], owner[mask > 0] = kind, number
        guess = outline * rng.uniform(0.8, 1.2) + centre + rng.normal(0, 0.05 * radius + 2, 2)
        fate = rng.random()
        if fate > 0.1:
            label = int(rng.integers(1, CLASSES)) if fate < 0.2 else kind
            cv2.fillPoly(prediction, [_rounded(guess)], label)
    for _ in range(rng.integers(0, 4)):
        centre = _rounded(rng.uniform(0, 1, 2) * (width, height)).tolist()
        cv2.circle(prediction, centre, int(rng.integers(2, 15)), int(rng.choice(classes)), -1)
    return prediction, semantic, owner


def draw_folders(
    folder: str | os.PathLike[str],
    *,
    images: int,
    size: tuple[int, int] = VOC_SIZE,
    seed: int = 0,
) -> list[str]:
    """Draw images with 1 to 8 instances as PNGs, ``<number>.png`` in each of :data:`FOLDERS`.

    Args:
        folder: gets the folders.
        images: number of images.
        size: (W, H).
        seed: the maps follow from it.

    Returns:
        The names of the images, without suffix.
    """
    for kind in FOLDERS:
        Path(folder, kind).mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}" for number in range(images)]
    for number, name in enumerate(names):
        rng = np.random.default_rng([seed, number])
        maps = draw_maps(rng, *size, int(rng.integers(1, MOST_INSTANCES + 1)))
        for kind, labels in zip(FOLDERS, maps):
            Path(folder, kind, f"{name}.png").write_bytes(encode_label_map(labels))
    return names


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Corners (32, 2) of a wavy closed curve around the origin."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    distance = np.ones_like(angle)
    for wave in range(1, 5):
        phase = rng.uniform(0, 2 * np.pi)
        distance += rng.normal(0, 0.25 / wave) * np.cos(wave * angle + phase)
    distance = np.maximum(distance, 0.3) * radius
    stretch = rng.uniform(0.6, 1.5)
    return np.stack([np.cos(angle) * distance, np.sin(angle) * distance * stretch], axis=1)


def _rounded(points: np.ndarray) -> np.ndarray:
    """Points as OpenCV draws them."""
    return np.round(points).astype(np.int32)
