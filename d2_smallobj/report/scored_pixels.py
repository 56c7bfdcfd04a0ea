"""Images, ground truth and predictions of a scored run, read again for the report's thumbnails.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Union

import numpy as np
from PIL import ImageOps

from d2_smallobj.annotations.image_files import open_picture
from d2_smallobj.annotations.label_maps import read_labels
from d2_smallobj.metrics import component_instances
from d2_smallobj.utils.opencv import cv2

Source = Union[str, "os.PathLike[str]", Callable[[], np.ndarray]]
"""A file (image, label map as PNG or ``.npy``), or a function that returns the array."""

_UNREADABLE = (OSError, ValueError)
_KINDS = {"semantic": "semantic maps", "instances": "instance maps", "prediction": "predictions"}


class SourceError(Exception):
    """The pixels of an image cannot be read; says why."""


class ScoredPixels(NamedTuple):
    """Image and ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB; ``None`` if the picture is not known.
        semantic: (H, W) integers.
        instances: (H, W) integers, 0 none, 255 void.
    """

    image: np.ndarray | None
    semantic: np.ndarray
    instances: np.ndarray


def read_scored_pixels(run: Any, image_id: str) -> ScoredPixels:
    """Read image and ground truth of one image of a run, as its ``sources`` say.

    Without an instance map, the components of the semantic map are the instances, numbered as the
    metric numbers them.

    Raises:
        SourceError: if the semantic map is not known, or a file is missing or does not fit.
    """
    semantic = read_map(run, image_id, "semantic")
    if _source(run, image_id, "instances") is None:
        ignore_label = int(run.options.get("ignore_label", 255))
        instances = component_instances(semantic, ignore_label=ignore_label)
    else:
        instances = read_map(run, image_id, "instances")
    if instances.shape != semantic.shape:
        raise SourceError(
            f"instance map {instances.shape} and semantic map {semantic.shape} differ in size"
        )
    image = _read_image(_source(run, image_id, "image"), semantic.shape)
    return ScoredPixels(image, semantic, instances)


def read_map(run: Any, image_id: str, kind: str) -> np.ndarray:
    """Read a run's ``semantic``, ``instances`` or ``prediction`` map: integers (H, W).

    Raises:
        SourceError: if it is not known, missing or no label map.
    """
    source = _source(run, image_id, kind)
    if source is None:
        raise SourceError(f"the run does not say where its {_KINDS[kind]} are")
    try:
        labels = np.asarray(source()) if callable(source) else read_labels(source)
    except _UNREADABLE as error:
        raise SourceError(f"{_KINDS[kind]} cannot be read: {error}") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise SourceError(
            f"{_KINDS[kind]} must be integers (H, W), got {labels.dtype} {labels.shape}"
        )
    return labels


def _source(run: Any, image_id: str, kind: str) -> Source | None:
    """The source of one image's file; ``None`` if the run does not tell."""
    try:
        return run.sources[image_id].get(kind)
    except KeyError:
        return None
    except _UNREADABLE as error:
        # Annotations and run lengths are opened anew for the report, and may be gone by now.
        raise SourceError(f"what was scored cannot be opened again: {error}") from error


def _read_image(source: Source | None, shape: tuple[int, int]) -> np.ndarray | None:
    """The picture as RGB in the size of its label maps; ``None`` if it cannot be read."""
    if source is None:
        return None
    try:
        if callable(source):
            pixels = np.asarray(source())
        else:
            with open_picture(source) as image:
                turned = ImageOps.exif_transpose(image)
                # Turned as EXIF says where the label maps are turned so, too.
                stored = image.size[::-1] == shape and turned.size[::-1] != shape
                pixels = np.asarray((image if stored else turned).convert("RGB"))
    except _UNREADABLE:
        return None
    if pixels.shape[:2] != shape:
        pixels = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)
    return pixels
