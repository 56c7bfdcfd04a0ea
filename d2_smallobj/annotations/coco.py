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
    CategoryEntry,
    Id,
    decode_mask,
    id_order,
    read_annotation_file,
)
from d2_smallobj.utils.options import look_up_option

IGNORE_LABEL = 255
"""Value of ignored pixels in both maps."""
PAINTINGS = ("area", "file")
_VOID = 0


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
        return msgspec.json.decode(self.stored) if text else self.stored


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
        category_map: Mapping[int, int] | None = None,
        class_names: Sequence[str] | None = None,
        painting: str = "area",
        label_maps: bool = True,
        void_categories: Collection[str] = (),
    ) -> None:
        self._path = Path(json_path)
        self._painting = look_up_option("painting", painting, PAINTINGS)
        self._label_maps = label_maps
        self._file = read_annotation_file(json_path, look_up_option("kind", kind, KINDS))
        void = self._void_ids(void_categories)
        self._classes = self._class_ids(category_map, void)
        self.class_names = self._names(class_names)
        self._looked_at = {*self._classes, *void}
        self._annotations: dict[Id, list[Annotation]] = {}
        for entry in self._file.annotations:
            left_out = entry.category_id in void
            class_id = _VOID if left_out else self._classes.get(entry.category_id)
            if class_id is None:
                continue
            crowd = bool(entry.iscrowd) or left_out
            self._annotations.setdefault(entry.image_id, []).append(
                Annotation(entry.id, entry.category_id, class_id, crowd, entry.segmentation)
            )

    @property
    def path(self) -> Path:
        """The annotation file."""
        return self._path

    @property
    def painting(self) -> str:
        """``"area"`` or ``"file"``."""
        return self._painting

    @property
    def categories(self) -> Mapping[Id, CategoryEntry]:
        """The file's categories by id, whether they are classes or not."""
        return self._file.categories

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
            raise ValueError(f"{self._path}: no image with id {image_id!r}")
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
            raise ValueError(f"{self._path}: opened with label_maps=False, so it is not painted")
        height, width = self.image_size(image_id)
        return paint(found, height, width, painting=self._painting, source=str(self._path))

    def _void_ids(self, names: Collection[str]) -> set[Id]:
        """Ids of the void categories."""
        known = {category.name: category.id for category in self._file.categories.values()}
        for name in names:
            look_up_option("void_categories", name, known)
        return {known[name] for name in names}

    def _class_ids(self, category_map: Mapping[int, int] | None, void: set[Id]) -> dict[Id, int]:
        """Class id of every category that has one."""
        categories = self._file.categories
        if category_map is None:
            categories = [category for category in categories if category not in void]
            if self._label_maps and len(categories) >= IGNORE_LABEL:
                raise ValueError(
                    f"{self._path}: {len(categories)} categories do not fit in 8-bit label maps "
                    f"(at most {IGNORE_LABEL - 1}); give category_map"
                )
            return {category: n for n, category in enumerate(sorted(categories, key=id_order), 1)}
        unknown = sorted(set(category_map) - set(categories), key=str)
        if unknown:
            raise ValueError(f"category_map: {self._path} has no category with id {unknown[:10]}")
        for category, class_id in category_map.items():
            if not self._label_maps and isinstance(class_id, int) and class_id >= 0:
                continue
            if not isinstance(class_id, int) or not 1 <= class_id < IGNORE_LABEL:
                raise ValueError(
                    f"category_map: class ids must be integers in 1..{IGNORE_LABEL - 1}, got "
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
        for category, class_id in sorted(self._classes.items(), key=lambda item: id_order(item[0])):
            names.setdefault(class_id, self._file.categories[category].name)
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
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the annotations of an image, in the order of the file, as label maps.

    Args:
        annotations: of the image.
        height: H.
        width: W.
        painting: as for :class:`InstanceAnnotations`.
        source: the file of the annotations, for messages.
        unannotated: label of pixels without annotation.
        ignore_label: label of crowds in the semantic map.

    Returns:
        semantic: (H, W), uint8 if all labels fit: ``unannotated``, classes, ``ignore_label``.
        instances: int32 (H, W), 0 = none, 255 = crowd; the k-th instance of the image has id k, or
            k + 1 from the 255th on. Instances without a visible pixel are in neither map.

    Raises:
        ValueError: a mask is malformed; names its annotation.
    """
    masks = [
        decode_mask(a.segmentation, height, width, f"{source}: annotation {a.annotation_id}")
        for a in annotations
    ]
    return paint_masks(
        annotations,
        masks,
        height,
        width,
        painting=painting,
        unannotated=unannotated,
        ignore_label=ignore_label,
    )


def paint_masks(
    annotations: Sequence[Annotation],
    masks: Sequence[np.ndarray],
    height: int,
    width: int,
    *,
    painting: str = "area",
    unannotated: int = 0,
    ignore_label: int = IGNORE_LABEL,
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`paint`, with the masks of the annotations decoded already: bool (H, W)."""
    largest = max([unannotated, ignore_label, *(a.class_id for a in annotations)])
    kind = np.uint8 if largest < 1 << 8 else np.int32
    semantic = np.full((height, width), unannotated, kind)
    instances = np.zeros((height, width), np.int32)
    layers = []
    for annotation, mask in zip(annotations, masks):
        if not annotation.crowd:
            layers.append((mask, annotation.class_id, instance_id(len(layers) + 1)))
        elif painting == "area":
            semantic[mask] = ignore_label
            instances[mask] = IGNORE_LABEL
    if painting == "area":
        # A stable sort: of two equally large ones, the later in the file lies on top.
        layers.sort(key=lambda layer: -int(np.count_nonzero(layer[0])))
    for mask, class_id, identity in layers:
        semantic[mask] = class_id
        instances[mask] = identity
    return semantic, instances


def instance_id(rank: int) -> int:
    """Id of the rank-th instance of an image, from 1; 255, which means void, is passed over."""
    return rank + (rank >= IGNORE_LABEL)
