"""List the images of a registered set with their weak supervision: image labels, boxes.

Image labels are a dict's ``image_classes``, else the classes of its boxes, else those of its
semantic map. True maps, where there are any, serve to measure labels that were made without them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.image_sources import SourceReader
from d2_smallobj.annotations.truth import GroundTruth, TruthImage
from d2_smallobj.data.catalog import canonical_name, registered
from d2_smallobj.data.loaders import dataset_dicts
from d2_smallobj.data.own_specs import split_class
from d2_smallobj.data.supervision import boxes_of, classes_of
from d2_smallobj.pseudo_labels.targets import TargetImage
from d2_smallobj.utils.messages import Problems
from detectron2.data import MetadataCatalog

_MAPS = ("sem_seg_file_name", "ins_seg_file_name")


@dataclasses.dataclass(frozen=True)
class WeakImage:
    """An image with its weak supervision.

    Attributes:
        stem: name of its label map, without suffix.
        file_name: its file.
        size: height and width in pixels.
        classes: the classes that it has, ascending.
        boxes: int32 (B, 5) as from :func:`.boxes.checked_boxes`; empty unless asked for.
    """

    stem: str
    file_name: str
    size: tuple[int, int]
    classes: tuple[int, ...]
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True)
class WeakSet:
    """The images of a training set.

    Attributes:
        class_names: background first.
        images: in the order of the set.
        truth: of the images that have true instances; ``None`` without any.
    """

    class_names: tuple[str, ...]
    images: tuple[WeakImage, ...]
    truth: GroundTruth | None

    @property
    def without_classes(self) -> int:
        """Number of images that have no class, whose label maps are background."""
        return sum(not image.classes for image in self.images)

    def digest(self) -> str:
        """A number for the supervision: other images, labels or boxes, another number."""
        content = hashlib.sha256(repr(self.class_names).encode())
        for image in self.images:
            content.update(repr((image.stem, image.size, image.classes)).encode())
            content.update(image.boxes.tobytes())
        return content.hexdigest()[:16]


def weak_images(name: str, *, boxes: bool = False) -> WeakSet:
    """List a set's images, their labels and, if asked for, their boxes; opens their headers.

    Args:
        name: as :func:`d2_smallobj.data.catalog.canonical_name` takes it, without ``:<class>``.
        boxes: whether every image must have boxes.

    Raises:
        ValueError: there is no such set, or it is a binary task.
        InputError: images cannot be read, have another size than stated, share a name, or have no
            boxes; one error for all.
        FileNotFoundError: files are missing.
    """
    base, category = split_class(name)
    if category:
        raise ValueError(
            f"{name!r} has one class: make labels for all of {base!r}; ':{category}' behind "
            "labels=FOLDER then keeps that class"
        )
    dicts = dataset_dicts([name])
    if registered()[canonical_name(name)].weak:
        raise ValueError(
            f"{name!r} has label maps that are no ground truth: name the data set without them"
        )
    metadata = MetadataCatalog.get(canonical_name(name))
    class_names = tuple(metadata.stuff_classes)
    found: dict[str, WeakImage] = {}
    problems = Problems()
    for record in tqdm(dicts, "images and their labels", unit="image", disable=None):
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        try:
            image = _weak_image(record, stem, boxes)
        except (OSError, ValueError) as error:
            problems.add(f"image(s) of {name!r} that cannot be used", str(error))
            continue
        if found.setdefault(stem, image) is not image:
            pair = f"{found[stem].file_name} and {image.file_name}"
            problems.add("pair(s) of images whose label maps would have one name", pair)
    problems.raise_if_any()
    truth = _true_maps(dicts, class_names, metadata.get("label_rule"))
    return WeakSet(class_names, tuple(found.values()), truth)


def _weak_image(record: Mapping[str, Any], stem: str, boxes: bool) -> WeakImage:
    """Check an image's file and read its supervision; ValueError says what is wrong."""
    size = TargetImage((), record["file_name"]).read_size()
    stated = (record.get("height", size[0]), record.get("width", size[1]))
    if size != stated:
        raise ValueError(
            f"{record['file_name']}: height x width is {size[0]} x {size[1]}, its data set says "
            f"{stated[0]} x {stated[1]}"
        )
    table = np.zeros((0, 5), np.int32)
    if boxes:
        if "boxes" not in record and not all(key in record for key in _MAPS):
            raise ValueError(
                f"{record['file_name']}: it has no boxes (nor instance maps to derive them from)"
            )
        table = boxes_of({**record, "height": size[0], "width": size[1]})
    classes = record.get("image_classes")
    if classes is None:
        classes = classes_of(record)
    return WeakImage(stem, record["file_name"], size, tuple(sorted(map(int, classes))), table)


def _true_maps(
    dicts: Sequence[Mapping[str, Any]], class_names: tuple[str, ...], rule: Any
) -> GroundTruth | None:
    """Open the ground truth of images with semantic and instance maps, VOC's included."""
    check, found = FileCheck("", ""), []
    for record in dicts:
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        semantic, instances = map(record.get, _MAPS)
        if instances is None:
            # Beside VOC's images; the maps of most training sets have no instances.
            root = os.path.dirname(os.path.dirname(record["file_name"]))
            semantic, instances = (
                os.path.join(root, folder, f"{stem}.png")
                for folder in ("SegmentationClass", "SegmentationObject")
            )
            if not (check.exists(semantic) and check.exists(instances)):
                continue
        found.append(TruthImage.of_files(stem, str(semantic), str(instances)))
    return GroundTruth(found, SourceReader(class_names, (0,), rule=rule)) if found else None
