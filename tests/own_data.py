"""A user's own data: a COCO-format JSON of rectangles and a folder of JPEGs."""

from __future__ import annotations

import json
import types

import numpy as np
from PIL import Image

CATEGORIES = [
    (7, "cat", "animal"),
    (3, "car", "vehicle"),
    (9, "dog", "animal"),
    (12, "bus", "vehicle"),
]
# Image, category, left, top, right, bottom, crowd.
RECTANGLES = [
    (1, 7, 4, 4, 40, 40, 0),
    (1, 3, 10, 10, 18, 20, 0),
    (1, 9, 44, 2, 60, 30, 1),
    (2, 12, 0, 0, 30, 24, 0),
    (2, 9, 20, 12, 50, 44, 0),
    (3, 7, 8, 8, 20, 20, 0),
    (3, 7, 30, 30, 44, 44, 0),
]
SIZE = (48, 64)
NAMES = {1: "a 1.jpg", 2: "b.jpg", 3: "c.jpeg", 4: "empty.jpg"}


def rectangle(number, image, category, left, top, right, bottom, crowd):
    """An annotation with mask and box."""
    outline = [left, top, right, top, right, bottom, left, bottom]
    mask = [outline]
    if crowd:
        pixels = np.zeros(SIZE, np.uint8)
        pixels[top:bottom, left:right] = 1
        flat = pixels.T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        mask = {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}
    box = [left, top, right - left, bottom - top]
    entry = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd}
    return {**entry, "segmentation": mask, "bbox": box, "area": box[2] * box[3]}


def content():
    """The JSON's content."""
    images = [
        {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for number, name in NAMES.items()
    ]
    categories = [{"id": i, "name": n, "supercategory": s} for i, n, s in CATEGORIES]
    annotations = [rectangle(n, *values) for n, values in enumerate(RECTANGLES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_own_data(folder, change=None):
    """Write JSON and JPEGs; ``change`` alters the content. Returns paths and the name's start."""
    data = content()
    if change is not None:
        change(data)
    images, path = folder / "my images", folder / "mine.json"
    images.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    rng = np.random.default_rng(0)
    for name in NAMES.values():
        pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(images / name, format="JPEG")
    return types.SimpleNamespace(path=path, images=images, name=f"coco_json@{path}@{images}")


def without(*keys):
    """A change that removes keys of all annotations."""

    def change(data):
        for entry in data["annotations"]:
            for key in keys:
                entry.pop(key)

    return change
