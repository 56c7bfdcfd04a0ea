"""Writing the demo scenes: JPEG pictures, PNG maps, image lists, COCO annotation files.

Every encoder option is given and no time is written, so that the bytes follow from the options.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from d2_smallobj.annotations.label_maps import encode_label_map
from d2_smallobj.demo.flawed_labels import draw_pseudo_label
from d2_smallobj.demo.scenes import Scene, draw_scene
from d2_smallobj.demo.shapes import OBJECT_CLASSES

DEMO_CLASS_NAMES = ("background", *(kind.name for kind in OBJECT_CLASSES))
"""Class names of the demo, background first."""
PSEUDO_LABELS = "PseudoLabels/demo"
"""Folder of the pseudo labels within VOC2012."""
_IGNORE = 255


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """What the files of a demo folder follow from.

    Attributes:
        seed: seed of all scenes, >= 0.
        num_train: number of training scenes, 1..99999.
        num_val: number of validation scenes, 1..99999.
        size: side of the scenes in pixels, 64..1024. Objects reach at most 140 pixels (root
            of the area) and 0.73 of the side, so below 132 there are none of size L.
    """

    seed: int = 0
    num_train: int = 300
    num_val: int = 100
    size: int = 192

    def __post_init__(self) -> None:
        bounds = {
            "seed": (0, 2**32 - 1),
            "num_train": (1, 99999),
            "num_val": (1, 99999),
            "size": (64, 1024),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name}: must be in {low}..{high}, got {value}")


def write_demo(root: Path, options: DemoOptions) -> None:
    """Draw the scenes and write them below ``root``, which must not exist yet."""
    voc = root / "VOCdevkit" / "VOC2012"
    folders = ("JPEGImages", "SegmentationClass", "SegmentationObject", PSEUDO_LABELS)
    for folder in (*folders, "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (root / "annotations").mkdir()

    total = options.num_train + options.num_val
    # disable=None: no bar where nobody sees it (logs, tests, workers).
    with tqdm(total=total, desc="demo scenes", unit="scene", disable=None) as bar:
        for number, (split, count) in enumerate(
            (("train", options.num_train), ("val", options.num_val))
        ):
            coco = _CocoWriter(options)
            names = []
            for index in range(count):
                stream = np.random.PCG64(np.random.SeedSequence([options.seed, number, index]))
                rng = np.random.Generator(stream)
                scene = draw_scene(rng, options.size)
                name = f"{split}_{index:05d}"
                _write_scene(voc, name, scene, draw_pseudo_label(rng, scene))
                coco.add((number + 1) * 100000 + index, f"{name}.jpg", scene)
                names.append(name)
                bar.update()
            lists = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
            lists.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            coco.write(root / "annotations" / f"instances_{split}.json")


def _write_scene(voc: Path, name: str, scene: Scene, pseudo: np.ndarray) -> None:
    """Write the picture and the three label maps of a scene."""
    border = scene.border
    picture = Image.fromarray(scene.image)
    # Every encoder option is given: another default must not change the bytes.
    picture.save(
        voc / "JPEGImages" / f"{name}.jpg", quality=90, subsampling="4:2:0", optimize=False
    )
    for folder, labels in (
        ("SegmentationClass", np.where(border, _IGNORE, scene.semantic)),
        ("SegmentationObject", np.where(border, _IGNORE, scene.instances)),
        (PSEUDO_LABELS, pseudo),
    ):
        (voc / folder / f"{name}.png").write_bytes(encode_label_map(labels.astype(np.uint8)))


class _CocoWriter:
    """Collects the COCO instance annotations of a split."""

    def __init__(self, options: DemoOptions) -> None:
        self._size = options.size
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, image_id: int, file_name: str, scene: Scene) -> None:
        """Add a scene: its visible instances, unbordered, in the order of their ids."""
        self._images.append(
            {"id": image_id, "file_name": file_name, "height": self._size, "width": self._size}
        )
        for identity in range(1, len(scene.classes)):
            mask = np.asfortranarray(scene.instances == identity, dtype=np.uint8)
            code = coco_mask.encode(mask)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(scene.classes[identity]),
                    "segmentation": {
                        "size": [int(side) for side in code["size"]],
                        "counts": code["counts"].decode("ascii"),
                    },
                    "area": int(np.count_nonzero(mask)),
                    "bbox": [float(value) for value in coco_mask.toBbox(code)],
                    "iscrowd": 0,
                }
            )

    def write(self, path: Path) -> None:
        """Write the annotation file."""
        categories = [
            {"id": identity, "name": kind.name, "supercategory": "demo"}
            for identity, kind in enumerate(OBJECT_CLASSES, start=1)
        ]
        content = {
            "info": {"description": "d2_smallobj demo scenes"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }
        path.write_text(json.dumps(content), encoding="utf-8")
