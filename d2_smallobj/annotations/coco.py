"""Paint the instance annotations of COCO or LVIS JSON files as label maps.

Legend: H, W height and width of an image; C number of object classes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from d2_smallobj.annotations.coco_file import (
    KINDS,
    AnnotationEntry,
    Id,
    decode_segmentation,
    encode_mask,
    fill_mask,
    mask_area,
    read_annotation_file,
)
from d2_smallobj.utils.messages import look_up_option

IGNORE_LABEL = 255
"""Value of ignored pixels in both maps."""
PAINTINGS = ("area", "file")


class Annotation(msgspec.Struct, frozen=True, gc=False):
    """One annotation of an image, as far as painting needs it; picklable.

    Attributes:
        annotation_id: its id in the file.
        category_id: its category's id in the file.
        class_id: 1..C; 0: of a void category.
        crowd: whether its pixels are ignored: a crowd region, or of a void category.
        stored: the segmentation, as a value or as the bytes of the file.
    """

    annotation_id: Id
    category_id: Id
    class_id: int
    crowd: bool
    stored: Any

    @property
    def segmentation(self) -> Any:
        """Polygons or run lengths; see :mod:`d2_smallobj.annotations.coco_file`."""
        text = isinstance(self.stored, msgspec.Raw)
        return decode_segmentation(self.stored) if text else self.stored


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
            crowds beneath them as 255; ``"file"``: in the order of the file, crowds as
            background (the semantic maps of WSSS on COCO); see docs/method.md#data-sets.
        label_maps: whether the classes must fit 8-bit label maps with background; if not, the
            annotations of all of LVIS's categories can be read, ``category_map`` may name class
            0 and more than 254 classes, but :meth:`maps` cannot paint them.
        void_categories: names of categories that are no class, but ignored as crowds are.

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
        category_map: Mapping[Id, int] | None = None,
        class_names: Sequence[str] | None = None,
        painting: str = "area",
        label_maps: bool = True,
        void_categories: Collection[str] = (),
    ) -> None:
        self.path = Path(json_path)
        self.painting = look_up_option("painting", painting, PAINTINGS)
        self._label_maps = label_maps
        self._file = read_annotation_file(json_path, look_up_option("kind", kind, KINDS))
        self.categories = self._file.categories
        known = {category.name: category.id for category in self.categories.values()}
        void = {known[look_up_option("void_categories", n, known)] for n in void_categories}
        self._classes = self._class_ids(category_map, void)
        self.class_names = self._names(class_names)
        self._looked_at = {**self._classes, **dict.fromkeys(void, 0)}
        self._annotations: dict[Id, list[Annotation]] = {}
        for entry in self._file.annotations:
            class_id = self._looked_at.get(entry.category_id)
            if class_id is None:
                continue
            crowd = bool(entry.iscrowd) or entry.category_id in void
            self._annotations.setdefault(entry.image_id, []).append(
                Annotation(entry.id, entry.category_id, class_id, crowd, entry.segmentation)
            )

    @property
    def image_ids(self) -> list[Id]:
        """Ids of all images, with or without annotations, in the order of the file."""
        return list(self._file.images)

    @property
    def num_instances(self) -> int:
        """Number of annotations that are instances of a class: neither crowd nor unmapped."""
        return sum(not a.crowd for found in self._annotations.values() for a in found)

    def annotations(self, image_id: Id) -> list[Annotation]:
        """An image's annotations of classes, crowds included, in file order.

        Raises:
            ValueError: the file has no such image.
        """
        if image_id not in self._file.images:
            raise ValueError(f"{self.path}: no image with id {image_id!r}")
        return self._annotations.get(image_id, [])

    def unmapped(self) -> list[AnnotationEntry]:
        """The annotations of categories that are background, in file order."""
        return [e for e in self._file.annotations if e.category_id not in self._looked_at]

    def image_size(self, image_id: Id) -> tuple[int, int]:
        """Height and width of an image."""
        self.annotations(image_id)  # Raises for an unknown image.
        image = self._file.images[image_id]
        return image.height, image.width

    def file_name(self, image_id: Id) -> str:
        """File name of an image; ValueError if it is unknown or has neither name nor URL."""
        self.annotations(image_id)  # Raises for an unknown image.
        return self._file.file_name(image_id)

    def maps(self, image_id: Id) -> tuple[np.ndarray, np.ndarray]:
        """Paint the annotations of an image: the two maps of :func:`paint`.

        Raises:
            ValueError: the file has no such image, or one of its masks is malformed.
        """
        found = self.annotations(image_id)
        if not self._label_maps:
            raise ValueError(f"{self.path}: opened with label_maps=False, so it is not painted")
        height, width = self.image_size(image_id)
        return paint(found, height, width, painting=self.painting, source=str(self.path))

    def _class_ids(self, category_map: Mapping[Id, int] | None, void: set[Id]) -> dict[Id, int]:
        """Class id of every category that has one."""
        lowest, highest = (1, IGNORE_LABEL - 1) if self._label_maps else (0, float("inf"))
        if category_map is None:
            kept = [category for category in self._file.class_ids if category not in void]
            if len(kept) > highest:
                raise ValueError(
                    f"{self.path}: {len(kept)} categories do not fit in 8-bit label maps (at most "
                    f"{highest}); give category_map"
                )
            return {category: number for number, category in enumerate(kept, start=1)}
        unknown = sorted(set(category_map) - set(self.categories), key=str)
        if unknown:
            raise ValueError(f"category_map: {self.path} has no category with id {unknown[:10]}")
        for category, class_id in category_map.items():
            if not isinstance(class_id, int) or not lowest <= class_id <= highest:
                raise ValueError(
                    f"category_map: class ids must be integers in {lowest}..{highest}, got "
                    f"{class_id!r} for category {category}"
                )
        return dict(category_map)

    def _names(self, class_names: Sequence[str] | None) -> tuple[str, ...]:
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
        for category in self._file.class_ids:
            if category in self._classes:
                names.setdefault(self._classes[category], self.categories[category].name)
        gaps = sorted(set(range(highest + 1)) - set(names))
        if gaps:
            raise ValueError(f"category_map: no category for class ids {gaps}; give class_names")
        return tuple(names[class_id] for class_id in range(highest + 1))


def paint(
    annotations: Sequence[Annotation],
    height: int,
    width: int,
    *,
    painting: str = "area",
    source: str = "",
    unannotated: int = 0,
    ignore_label: int = IGNORE_LABEL,
    masks: Sequence[dict[str, Any]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the annotations of an image of H x W pixels, in the order of the file, as label maps.

    Args:
        annotations: of the image.
        height: H.
        width: W.
        painting: as for :class:`InstanceAnnotations`.
        source: the file of the annotations, for messages.
        unannotated: label of pixels without annotation.
        ignore_label: label of crowds in the semantic map.
        masks: :func:`.coco_file.encode_mask` of the annotations, if it was called already.

    Returns:
        semantic: (H, W), uint8 if all labels fit: ``unannotated``, classes, ``ignore_label``.
        instances: int32 (H, W), 0 = none, 255 = crowd; the k-th instance of the image has id k, or
            k + 1 from the 255th on. Instances without a visible pixel are in neither map.

    Raises:
        ValueError: a mask is malformed; names its annotation.
    """
    if masks is None:
        masks = [
            encode_mask(a.segmentation, height, width, f"{source}: annotation {a.annotation_id}")
            for a in annotations
        ]
    things = [(a.class_id, mask) for a, mask in zip(annotations, masks) if not a.crowd]
    order = list(range(len(things)))
    # Every pixel gets the number of what lies on top of it; the number after the last means crowd.
    columns = np.zeros(width * height, np.int32)
    if painting == "area":
        # A stable sort: of two equally large ones, the later in the file lies on top.
        order.sort(key=lambda place: -mask_area(things[place][1]))
        for annotation, mask in zip(annotations, masks):
            if annotation.crowd:
                fill_mask(columns, mask, len(things) + 1)
    for place in order:
        fill_mask(columns, things[place][1], place + 1)
    numbers = np.ascontiguousarray(columns.reshape(width, height).T)
    labels = [unannotated, *(class_id for class_id, _ in things), ignore_label]
    ids = [0, *(instance_id(place + 1) for place in range(len(things))), IGNORE_LABEL]
    kind = np.uint8 if max(labels) < 1 << 8 else np.int32
    return np.array(labels, kind)[numbers], np.array(ids, np.int32)[numbers]


def instance_id(rank: int) -> int:
    """Id of the rank-th instance of an image, from 1; 255, which means void, is passed over."""
    return rank + (rank >= IGNORE_LABEL)
