"""Objects of made-up annotation files, and their text: polygons and run lengths.

Legend: A number of annotations.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

OUTLINES = 512
"""How many different outlines there are."""
_LARGEST_SIDE = 640
_CHUNK = 1 << 15


@dataclasses.dataclass(frozen=True)
class Objects:
    """Objects to be written as annotations, sorted by image.

    Attributes:
        image: int64 (A,), position of the image.
        category: int64 (A,), id of the category in the file.
        crowd: bool (A,).
        shape: int64 (A,), number of the outline.
        centre: float64 (A, 2), x and y in pixels.
        radius: float64 (A,), pixels.
    """

    image: np.ndarray
    category: np.ndarray
    crowd: np.ndarray
    shape: np.ndarray
    centre: np.ndarray
    radius: np.ndarray

    def __getitem__(self, chosen: np.ndarray | slice) -> Objects:
        return Objects(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))


def draw_outlines(rng: np.random.Generator) -> list[np.ndarray]:
    """Wavy closed curves of radius 1 around the origin: float64 (corners, 2) each."""
    shapes = []
    for corners in rng.integers(10, 59, OUTLINES):
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        waves = [rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in (1, 2, 3)]
        distance = np.clip(1 + sum(waves), 0.5, 1.0)
        stretch = rng.uniform(0.6, 1.0)
        shapes.append(np.stack([np.cos(angle) * distance, np.sin(angle) * distance * stretch], 1))
    return shapes


def write_objects(
    file: BinaryIO,
    objects: Objects,
    shapes: Sequence[np.ndarray],
    ids: np.ndarray,
    size: np.ndarray,
    name: str | None,
) -> None:
    """Write the entries of ``annotations``.

    Args:
        file: where to.
        objects: what to write; ids are counted from 1.
        shapes: outlines that the objects refer to.
        ids: int64 (images,), ids of the images.
        size: int64 (images, 2), their heights and widths.
        name: the file's, for the progress bar on stderr; None: no bar.
    """
    total = len(objects.image)
    # Hundredths of a pixel as text, made once.
    texts = np.array([f"{n / 100:.2f}" for n in range(100 * _LARGEST_SIDE + 1)], object)
    for first in tqdm(range(0, total, _CHUNK), desc=name, unit="chunk", disable=name is None):
        part = objects[slice(first, first + _CHUNK)]
        lines = _lines(part, first, shapes, texts, ids, size)
        end = ",\n" if first + _CHUNK < total else "\n"
        file.write((",\n".join(lines) + end).encode())


def _lines(
    objects: Objects,
    first: int,
    shapes: Sequence[np.ndarray],
    texts: np.ndarray,
    ids: np.ndarray,
    size: np.ndarray,
) -> Iterator[str]:
    """The text of some annotations; ids go on from ``first``."""
    corners = [shapes[n] for n in objects.shape.tolist()]
    length = np.array([len(shape) for shape in corners])
    at = np.repeat(np.arange(len(length)), length)
    points = np.concatenate(corners) * objects.radius[at, None] + objects.centre[at]
    points = np.clip(points, 0, size[objects.image[at]][:, ::-1])
    numbers = texts[np.round(points * 100).astype(np.int64)].reshape(-1).tolist()
    ends = (2 * np.cumsum(length)).tolist()
    for n, (end, count) in enumerate(zip(ends, length.tolist())):
        image, radius = int(objects.image[n]), float(objects.radius[n])
        segmentation = f"[[{', '.join(numbers[end - 2 * count : end])}]]"
        if objects.crowd[n]:
            height, width = size[image].tolist()
            segmentation = json.dumps(_crowd(height, width, int(radius), objects.centre[n]))
        x, y = (objects.centre[n] - radius).tolist()
        yield (
            f'{{"id": {first + n + 1}, "image_id": {ids[image]}, "category_id": '
            f'{objects.category[n]}, "iscrowd": {int(objects.crowd[n])}, "area": '
            f'{3.14 * radius * radius:.2f}, "bbox": [{x:.2f}, {y:.2f}, {2 * radius:.2f}, '
            f'{2 * radius:.2f}], "segmentation": {segmentation}}}'
        )


def _crowd(height: int, width: int, radius: int, centre: np.ndarray) -> dict[str, Any]:
    """Run lengths of a square."""
    mask = np.zeros((width, height), bool)
    x, y = (int(value) for value in centre)
    mask[max(0, x - radius) : x + radius, max(0, y - radius) : y + radius] = True
    edges = np.flatnonzero(np.diff(mask.ravel()))
    runs = np.diff(np.concatenate([[0], edges + 1, [mask.size]])).tolist()
    # The first run is one of background.
    return {"size": [height, width], "counts": [0, *runs] if mask[0, 0] else runs}
