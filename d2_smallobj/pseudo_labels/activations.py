"""Make label maps of class activation maps, and store the maps without pickles.

A folder of activation maps holds ``<image name>.npy``, a plain float16 array (K, h, w) in 0..1,
usually at a quarter of the image's size, and ``classes.json``: the K class numbers of every image,
counted from 1. K may be 0. Legend: H, W height and width of an image.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.pseudo_labels.box_labels import Refine
from d2_smallobj.pseudo_labels.targets import read_picture
from d2_smallobj.utils.files import atomic_write, atomic_write_text, read_json
from d2_smallobj.utils.npy_files import read_npy
from d2_smallobj.utils.opencv import cv2

CLASSES_FILE = "classes.json"
CRF_SIDE = 320
"""Longest side, in pixels, of the image that a CRF refines a label map on."""
_CERTAINTY = 0.7
"""Probability that the CRF gives the label it starts from, as IRN's does (Ahn et al., 2019)."""

_LEAST, _EPOCHS = 200, 10


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
    """How the classifier is trained: SGD with momentum, poly schedule.

    Attributes:
        iterations: steps; 0: ten passes over the images, at least 200 steps.
        batch_size: images a step.
        learning_rate: of the backbone; thirty times as much for the classifier.
        crop: side of the square crops in pixels.
        seed: of the new layer, of the order of images and of their crops.
    """

    iterations: int = 0
    batch_size: int = 8
    learning_rate: float = 0.001
    crop: int = 192
    seed: int = 0

    def steps(self, images: int) -> int:
        """Number of steps for so many images."""
        return self.iterations or max(_LEAST, math.ceil(_EPOCHS * images / self.batch_size))


def normalized(maps: np.ndarray) -> np.ndarray:
    """Divide every map of float (K, h, w) >= 0 by its maximum; maps of zeros stay."""
    most = maps.max(axis=(1, 2), keepdims=True) if maps.size else np.ones((len(maps), 1, 1))
    return (maps / np.maximum(most, 1e-12)).astype(np.float32)


def activation_labels(
    maps: np.ndarray,
    classes: Sequence[int],
    size: tuple[int, int],
    threshold: float,
    *,
    image: np.ndarray | None = None,
    crf: Refine | None = None,
) -> np.ndarray:
    """Label every pixel with the class of the largest activation, if it exceeds a threshold.

    Args:
        maps: float (K, h, w) in 0..1, of any size; resized bilinearly.
        classes: their K class numbers.
        size: H and W of the label map.
        threshold: what no activation must exceed for background.
        image: uint8 (H, W, 3), with ``crf``.
        crf: refines the labels on the image at :data:`CRF_SIDE`; ``None``: they stay.

    Returns:
        uint8 (H, W): 0 background, else one of ``classes``.
    """
    if not len(maps):
        return np.zeros(size, np.uint8)
    numbers = np.array([0, *classes], np.uint8)
    if crf is None:
        return numbers[_with_background(maps, size, threshold).argmax(axis=0)]
    assert image is not None
    scale = min(1.0, CRF_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    start = _with_background(maps, (height, width), threshold).argmax(axis=0)
    if not start.any():
        return np.zeros(size, np.uint8)
    rest = (1 - _CERTAINTY) / (len(numbers) - 1)
    places = np.arange(len(numbers))[:, None, None]
    likely = np.where(places == start, np.float32(_CERTAINTY), np.float32(rest))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return numbers[resized_maps(crf(likely, small), size).argmax(axis=0)]


def _with_background(maps: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Scores of background and classes at a size, float32 (K + 1, H, W)."""
    background = np.full((1, *size), threshold, np.float32)
    return np.concatenate([background, resized_maps(maps, size)])


def resized_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (K, h, w) at another size, float32, bilinear."""
    # One by one: OpenCV takes four channels at most in some of its functions.
    planes = [cv2.resize(m.astype(np.float32), size[::-1]) for m in maps]
    return np.stack(planes) if planes else np.zeros((0, *size), np.float32)


def write_activation_label(
    item: tuple[str, tuple[int, ...], str, str],
    *,
    threshold: float,
    crf: Refine | None,
    keep: bool,
) -> str | bool:
    """Write the label map of an image: its file, its classes, its activations, the map's path.

    Returns whether it was written, not kept (``keep``: a map that exists stays), or what is wrong.
    """
    picture, classes, activations, path = item
    if keep and os.path.isfile(path):
        return False
    try:
        image, maps = read_picture(picture), read_maps(activations)
        size = image.shape[:2]
        labels = activation_labels(maps, classes, size, threshold, image=image, crf=crf)
        write_label_map(path, labels)
    except (OSError, ValueError) as error:
        return str(error)
    return True


# ---- Files -------------------------------------------------------------------------------------


def write_maps(path: str | os.PathLike[str], maps: np.ndarray) -> None:
    """Write activation maps as a plain ``.npy`` array of float16, atomically."""
    with atomic_write(path) as file:
        np.save(file, maps.astype(np.float16), allow_pickle=False)


def write_classes(folder: Path, classes: Mapping[str, Sequence[int]]) -> None:
    """Write the class numbers of every image's maps, by image name."""
    text = json.dumps({name: list(map(int, numbers)) for name, numbers in classes.items()})
    atomic_write_text(folder / CLASSES_FILE, text.replace("], ", "],\n ") + "\n")


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Return whether a ``.npy`` file holds numbers alone, hence no pickle; damaged ones do not."""
    try:
        read_npy(path, header_only=True)
    except ValueError:
        return False
    return True


def read_maps(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a plain ``.npy`` array; nothing in it is run.

    Raises:
        ValueError: the file is damaged, or holds no float array (K, h, w) of finite numbers.
        FileNotFoundError: there is no such file.
    """
    maps = read_npy(path)
    if maps.ndim != 3 or maps.dtype.kind != "f" or not np.isfinite(maps).all():
        raise ValueError(
            f"{path}: expected activation maps, finite floats (classes, h, w), got shape "
            f"{maps.shape} of {maps.dtype}"
        )
    return maps


def read_classes(path: str | os.PathLike[str]) -> list[int]:
    """Read the class numbers of an image's maps from the ``classes.json`` beside them.

    Raises:
        ValueError: there is no such file, or nothing about the image in it.
    """
    listing = Path(path).with_name(CLASSES_FILE)
    try:
        found = read_json(listing)[Path(path).stem]
        return [int(number) for number in found]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path}: an array of activation maps needs its class numbers in {listing}, "
            f'{{"{Path(path).stem}": [1, ...]}} ({type(error).__name__}: {error})'
        ) from error
