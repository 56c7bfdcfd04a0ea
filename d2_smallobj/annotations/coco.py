"""Instance annotations in COCO or LVIS JSON files, painted as label maps (SPEC 1).

Legend: H, W height and width of an image; C number of object classes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2_smallobj.annotations.masks import decode_mask
from d2_smallobj.utils.options import look_up_option

IGNORE_LABEL = 255
"""Value of ignored pixels in both maps."""
KINDS = ("coco", "lvis")
PAINTINGS = ("area", "file")


@dataclasses.dataclass(frozen=True)
class _Annotation:
    """One annotation of an image, as far as painting needs it."""

    annotation_id: Any
    class_id: int
    crowd: bool
    segmentation: Any


class InstanceAnnotations:
    """The instance annotations of a data set.

    Class ids are contiguous, 1..C in the order of the file's category ids (81 classes with
    background for COCO), unless ``category_map`` says otherwise.

    Args:
        json_path: the annotation file.
        kind: ``"coco"`` or ``"lvis"`` (no crowds; images may be named by ``coco_url`` alone).
        category_map: class id (1..254) of original category ids; annotations of other
            categories are not painted at all: background, or what lies beneath them.
        class_names: C + 1 names, background first; default: the file's names.
        painting: ``"area"``: larger masks first, so that the smaller object stays visible, and
            crowds beneath them as 255 (SPEC 1); ``"file"``: in the order of the file, crowds as
            background (the semantic maps of WSSS on COCO, SPEC 5).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or malformed, or an option is; names the file and what
            in it.
    """

    def __init__(
        self,
        json_path: str | os.PathLike[str],
        *,
        kind: str = "coco",
        category_map: Mapping[int, int] | None = None,
        class_names: Sequence[str] | None = None,
        painting: str = "area",
    ) -> None:
        self._path = Path(json_path)
        self._kind = look_up_option("kind", kind, KINDS)
        self._painting = look_up_option("painting", painting, PAINTINGS)
        content = _load(self._path, self._kind)
        categories = self._index("categories", content["categories"], ("id", "name"))
        self._classes = self._class_ids(categories, category_map)
        self.class_names = self._names(categories, class_names)
        self._images = self._index("images", content["images"], ("id", "height", "width"))
        self._annotations = self._sort_annotations(content["annotations"], categories)

    @property
    def image_ids(self) -> list[int]:
        """Ids of all images, with or without annotations, in the order of the file."""
        return list(self._images)

    @property
    def num_instances(self) -> int:
        """Number of annotations that are instances of a class: neither crowd nor unmapped."""
        return sum(not a.crowd for found in self._annotations.values() for a in found)

    def is_annotated(self, image_id: int) -> bool:
        """Whether an image has any annotation of a class, crowds included."""
        return bool(self._found(image_id))

    def image_size(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image."""
        self._found(image_id)
        return self._images[image_id]["height"], self._images[image_id]["width"]

    def file_name(self, image_id: int) -> str:
        """File name of an image, as the file gives it.

        For LVIS it is taken from the end of the URL, with the folder (``val2017/x.jpg``): v1
        gives no names, v0.5 those of COCO 2014, and both mix images of train and val.

        Raises:
            ValueError: no such image, or it has neither name nor URL.
        """
        self._found(image_id)
        image = self._images[image_id]
        name = image.get("file_name")
        if self._kind == "lvis" and image.get("coco_url"):
            name = "/".join(str(image["coco_url"]).split("/")[-2:])
        if not name:
            raise ValueError(f"{self._path}: image {image_id} has no file name")
        return str(name)

    def maps(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Paint the annotations of an image.

        Args:
            image_id: id of the image in the file.

        Returns:
            semantic: uint8 (H, W), 0 = background, 1..C, 255 = crowd.
            instances: int32 (H, W), 0 = none, 255 = crowd; the k-th instance of the image in
                the file has id k, or k + 1 from the 255th on. One that others hide completely,
                or without area, is in neither map.

        Raises:
            ValueError: the file has no such image, or one of its masks is malformed.
        """
        found = self._found(image_id)
        height, width = self.image_size(image_id)
        semantic = np.zeros((height, width), np.uint8)
        instances = np.zeros((height, width), np.int32)
        layers = []
        number = 0
        for annotation in found:
            mask = decode_mask(
                annotation.segmentation,
                height,
                width,
                f"{self._path}: annotation {annotation.annotation_id}",
            )
            if not annotation.crowd:
                number += 2 if number + 1 == IGNORE_LABEL else 1
                layers.append((mask, annotation.class_id, number))
            elif self._painting == "area":
                semantic[mask] = IGNORE_LABEL
                instances[mask] = IGNORE_LABEL
        if self._painting == "area":
            # A stable sort: of two equally large ones, the later in the file lies on top.
            layers.sort(key=lambda layer: -int(np.count_nonzero(layer[0])))
        for mask, class_id, identity in layers:
            semantic[mask] = class_id
            instances[mask] = identity
        return semantic, instances

    def _found(self, image_id: int) -> list[_Annotation]:
        """The annotations of an image that take part in painting."""
        if image_id not in self._images:
            raise ValueError(f"{self._path}: no image with id {image_id!r}")
        return self._annotations.get(image_id, [])

    def _index(
        self, section: str, entries: list[Any], keys: tuple[str, ...]
    ) -> dict[int, dict[str, Any]]:
        """Check the entries of a section and index them by id."""
        index: dict[int, dict[str, Any]] = {}
        for entry in entries:
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise ValueError(f"{self._path}: an entry of {section!r} lacks {missing}: {entry}")
            if entry["id"] in index:
                raise ValueError(f"{self._path}: id {entry['id']} occurs twice in {section!r}")
            for key in {"height", "width"} & set(keys):
                if not isinstance(entry[key], int) or entry[key] < 1:
                    raise ValueError(
                        f"{self._path}: image {entry['id']}: {key} must be a positive integer, "
                        f"got {entry[key]!r}"
                    )
            index[entry["id"]] = entry
        return index

    def _class_ids(
        self, categories: Mapping[int, Any], category_map: Mapping[int, int] | None
    ) -> dict[int, int]:
        """Class id of every category that has one."""
        if category_map is None:
            if len(categories) >= IGNORE_LABEL:
                raise ValueError(
                    f"{self._path}: {len(categories)} categories do not fit in 8-bit label maps "
                    f"(at most {IGNORE_LABEL - 1}); give category_map"
                )
            return {category: number for number, category in enumerate(sorted(categories), 1)}
        unknown = sorted(set(category_map) - set(categories))
        if unknown:
            raise ValueError(f"category_map: {self._path} has no category with id {unknown[:10]}")
        for category, class_id in category_map.items():
            if not isinstance(class_id, int) or not 1 <= class_id < IGNORE_LABEL:
                raise ValueError(
                    f"category_map: class ids must be integers in 1..{IGNORE_LABEL - 1}, got "
                    f"{class_id!r} for category {category}"
                )
        return dict(category_map)

    def _names(
        self, categories: Mapping[int, Any], class_names: Sequence[str] | None
    ) -> tuple[str, ...]:
        """Names of the classes, background first."""
        highest = max(self._classes.values(), default=0)
        if class_names is not None:
            if len(class_names) <= highest:
                raise ValueError(
                    f"class_names: {len(class_names)} names (background included) for class ids "
                    f"up to {highest}"
                )
            return tuple(class_names)
        names = {0: "background"}
        for category, class_id in sorted(self._classes.items()):
            names.setdefault(class_id, str(categories[category]["name"]))
        gaps = sorted(set(range(highest + 1)) - set(names))
        if gaps:
            raise ValueError(f"category_map: no category for class ids {gaps}; give class_names")
        return tuple(names[class_id] for class_id in range(highest + 1))

    def _sort_annotations(
        self, entries: list[Any], categories: Mapping[int, Any]
    ) -> dict[int, list[_Annotation]]:
        """Check all annotations and sort those that have a class by image, in file order."""
        keys = ("id", "image_id", "category_id", "segmentation")
        by_image: dict[int, list[_Annotation]] = {}
        for identity, entry in self._index("annotations", entries, keys).items():
            where = f"{self._path}: annotation {identity}"
            image_id, category = entry["image_id"], entry["category_id"]
            if image_id not in self._images:
                raise ValueError(f"{where} belongs to image {image_id!r}, which is not in the file")
            if category not in categories:
                raise ValueError(f"{where} has category {category!r}, which is not in the file")
            class_id = self._classes.get(category)
            if class_id is None:
                continue
            crowd = bool(entry.get("iscrowd", 0))
            by_image.setdefault(image_id, []).append(
                _Annotation(identity, class_id, crowd, _compact(entry["segmentation"]))
            )
        return by_image


def _compact(segmentation: Any) -> Any:
    """Polygons as arrays: a quarter of the memory of Python floats, which COCO is full of."""
    if not isinstance(segmentation, list):
        return segmentation
    try:
        return [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
    except (TypeError, ValueError):
        return segmentation  # malformed: said, with the annotation's id, when it is painted


def _load(path: Path, kind: str) -> dict[str, Any]:
    """Read the JSON file and check that it has the sections of an annotation file."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a complete JSON file ({error})") from error
    for section in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise ValueError(
                f"{path}: an instance annotation file of kind {kind!r} has a list {section!r}; "
                "this one has none"
            )
    return content
