"""Read any COCO-format instance JSON as a data set: a choice of its classes, boxes, image labels.

Its annotations may have masks, boxes, both, or neither: then a category alone says that the image
has an object of it. Legend: C number of object classes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Optional

import msgspec
import numpy as np

from d2_smallobj.annotations.boxes import checked_boxes
from d2_smallobj.annotations.classes import ALL, choose_classes
from d2_smallobj.annotations.coco_file import (
    AnnotationFile,
    Flag,
    Id,
    read_annotation_file,
)
from d2_smallobj.annotations.dataset_files import FileCheck, resolve_inside
from d2_smallobj.annotations.image_lists import choose_listed
from d2_smallobj.annotations.map_cache import MapCache
from d2_smallobj.utils.messages import itemized, listed

# Evaluated in Python 3.9, too, hence no `| None`.
_Numbers = Optional[list[float]]
_Number = Optional[float]
_LONGEST_EMPTY = 16
_NO_MASK = (b"", b"null", b"[]", b"[[]]", b"{}")


class OwnEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``annotations``, of which only the ids are needed; ``area`` in pixels."""

    id: Id
    image_id: Id
    category_id: Id
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    bbox: _Numbers = None
    area: _Number = None
    iscrowd: Flag = 0

    @property
    def has_mask(self) -> bool:
        """Whether there is a segmentation, be it well-formed or not."""
        text = bytes(self.segmentation)
        return len(text) > _LONGEST_EMPTY or b"".join(text.split()) not in _NO_MASK


@dataclasses.dataclass(frozen=True)
class OwnImage:
    """An image: sizes in pixels, what its annotations of classes say.

    Attributes:
        image_id: its id in the file.
        file_name: path below the folder of images, checked to stay in it.
        height: as the file states it.
        width: as the file states it.
        annotated: whether it has an annotation of any category.
        boxes: int32 (B, 5) as from :func:`.boxes.coco_boxes`; ``None``: an annotation has none.
        classes: the classes that it has, ascending, those of crowds included.
    """

    image_id: Id
    file_name: str
    height: int
    width: int
    annotated: bool
    boxes: np.ndarray | None
    classes: tuple[int, ...]

    @property
    def stem(self) -> str:
        """Name of its label maps, without folder and suffix."""
        return PurePosixPath(self.file_name).stem


@dataclasses.dataclass(frozen=True)
class OwnJson:
    """A JSON file with a choice of classes.

    Attributes:
        path: the file.
        class_ids: class 1..C by category id; other categories are background.
        class_names: C + 1 names, background first.
        images: in the order of the file.
        no_masks: why label maps cannot be painted, in a sentence; empty: they can.
    """

    path: Path
    class_ids: dict[Id, int]
    class_names: tuple[str, ...]
    images: tuple[OwnImage, ...]
    no_masks: str


def read_own_json(path: str | os.PathLike[str], choice: str = ALL) -> OwnJson:
    """Read a file with a choice of classes as :func:`.classes.json_classes` takes it.

    The result is kept in memory until the file changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, names images outside their folder, has bad boxes, or an
            annotation belongs to an unknown image or category.
    """
    state = os.stat(path)
    return _read(os.path.abspath(path), choice, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _read(path: str, choice: str, modified: int, size: int) -> OwnJson:
    """See :func:`read_own_json`; time and size only tell one state of the file from another."""
    file = read_annotation_file(path, "coco", OwnEntry)
    class_ids, names = choose_classes(path, file.categories.values(), choice)
    entries: dict[Id, list[OwnEntry]] = {}
    for entry in file.annotations:
        entries.setdefault(entry.image_id, []).append(entry)
    # Without any box in the file, images without annotation have none, either.
    boxed = any(entry.bbox for entry in file.annotations)
    images, problems = [], []
    for number in file.images:
        try:
            images.append(_image(file, number, entries.get(number, ()), class_ids, boxed))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{path}: {itemized('unusable image(s)', problems)}")
    no_masks = _no_masks(path, file.annotations)
    return OwnJson(Path(path), class_ids, names, tuple(images), no_masks)


def _image(
    file: AnnotationFile,
    number: Id,
    entries: Sequence[OwnEntry],
    class_ids: Mapping[Id, int],
    boxed: bool,
) -> OwnImage:
    """Make an image of its annotations; ValueError for a bad name or box."""
    image = file.images[number]
    name = resolve_inside(Path(), file.file_name(number), f"image {number}").as_posix()
    kept = [entry for entry in entries if entry.category_id in class_ids]
    where, boxes = f"image {number} ({name})", None
    if boxed and all(entry.bbox for entry in kept):
        rows = [_box(entry, class_ids) for entry in kept]
        boxes = checked_boxes(rows, image.height, image.width, where)
    classes = tuple(sorted({class_ids[entry.category_id] for entry in kept}))
    size = image.height, image.width
    return OwnImage(number, name, *size, bool(entries), boxes, classes)


def _box(entry: OwnEntry, class_ids: Mapping[Id, int]) -> tuple[float, ...]:
    """A row of a box table."""
    if entry.bbox is None or len(entry.bbox) != 4:
        raise ValueError(f"annotation {entry.id}: bbox is {entry.bbox}, not 4 numbers")
    left, top, width, height = entry.bbox
    label = class_ids[entry.category_id] * (-1 if entry.iscrowd else 1)
    return label, left, top, left + width, top + height


def _no_masks(path: str, entries: Sequence[OwnEntry]) -> str:
    """Say why label maps cannot be painted; empty if they can."""
    without = [entry.id for entry in entries if not entry.has_mask]
    if not without:
        return ""
    if len(without) < len(entries):
        return (
            f"{path}: {len(without)} of {len(entries)} annotations have no mask, e.g. annotation "
            f"{listed(without, 3)}: give them one, or remove them"
        )
    what = "boxes" if any(entry.bbox for entry in entries) else "image labels"
    return (
        f"{path} has {what}, but no masks: labels=FOLDER gives label maps to train on; "
        "to evaluate, a file with masks is needed"
    )


def choose_images(data: OwnJson, list_file: str | os.PathLike[str] | None) -> tuple[OwnImage, ...]:
    """Return the images that a text file lists, one image id, file name or stem a line, or all.

    Raises as :func:`.image_lists.choose_listed`.
    """
    if list_file is None:
        return data.images
    names: dict[str, set[Id]] = {}
    for image in data.images:
        path = PurePosixPath(image.file_name)
        for name in (str(image.image_id), image.file_name, path.name, path.stem):
            names.setdefault(name, set()).add(image.image_id)
    chosen = choose_listed(list_file, names, data.path)
    return tuple(image for image in data.images if image.image_id in chosen)


def own_json_dicts(
    json_path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    choice: str = ALL,
    label_dir: str | os.PathLike[str] | None = None,
    list_file: str | os.PathLike[str] | None = None,
    check: FileCheck | None = None,
) -> list[dict[str, Any]]:
    """List the images of a JSON file and their painted maps; paints none.

    Args:
        json_path: the file.
        image_dir: folder of the images.
        choice: of classes, see :func:`.classes.json_classes`.
        label_dir: folder of label maps ``<image name>.png``, instead of the true masks. Images
            without any annotation may lack one; they are left out then.
        list_file: see :func:`choose_images`.
        check: records missing files, with the data set's name; default: a new one of the file.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width``, ``image_classes``
        (list of classes), ``boxes`` where all its annotations have one; ``sem_seg_file_name`` and
        without ``label_dir`` ``ins_seg_file_name``, or ``no_masks``, the reason why there are none.

    Raises:
        FileNotFoundError: files are missing; one error for all.
        ValueError: a file is malformed, or two images share a label map.
    """
    json_path, image_dir = Path(json_path), Path(image_dir)
    check = check or FileCheck(json_path.stem)
    for path in (json_path, *([] if list_file is None else [list_file])):
        check.require(path, one_of_many=False)
    for folder in (image_dir, *([] if label_dir is None else [label_dir])):
        check.require_folder(folder)
    check.raise_if_missing()
    data = read_own_json(json_path, choice)
    images = choose_images(data, list_file)
    cache = None
    if label_dir is not None:
        _check_names(data.path, images)
    elif not data.no_masks:
        cache = MapCache(data.path, data.class_ids)
    dicts = []
    for image in images:
        record: dict[str, Any] = {
            "file_name": os.path.join(image_dir, image.file_name),
            "image_id": image.image_id,
            "height": image.height,
            "width": image.width,
            "image_classes": list(image.classes),
        }
        if image.boxes is not None:
            record["boxes"] = image.boxes
        if label_dir is not None:
            record["sem_seg_file_name"] = os.path.join(label_dir, f"{image.stem}.png")
            if not (image.annotated or check.exists(record["sem_seg_file_name"])):
                continue
        elif cache is not None:
            semantic, instances = cache.files(image.file_name)
            record.update(sem_seg_file_name=semantic, ins_seg_file_name=instances)
        else:
            record["no_masks"] = data.no_masks
        for key in ("file_name", "sem_seg_file_name", "ins_seg_file_name"):
            if key in record:
                check.require(record[key])
        dicts.append(record)
    check.raise_if_missing()
    return dicts


def paint_own_json(
    json_path: str | os.PathLike[str],
    *,
    choice: str = ALL,
    list_file: str | os.PathLike[str] | None = None,
    jobs: int = 1,
) -> None:
    """Paint the maps of the listed images that are not in the cache yet, with progress.

    Several processes may call it at once: they share the work. Nothing is done for a file without
    masks.

    Raises:
        FileNotFoundError: a file is missing.
        OSError: the cache cannot be written; names its variable.
        ValueError: a file or a mask is malformed; all other images are painted then.
    """
    data = read_own_json(json_path, choice)
    images = choose_images(data, list_file)
    if not data.no_masks:
        cache = MapCache(data.path, data.class_ids)
        cache.paint({image.file_name: image.image_id for image in images}, jobs=jobs)


def _check_names(path: Path, images: Sequence[OwnImage]) -> None:
    """Refuse two images whose label maps have the same name."""
    owner: dict[str, OwnImage] = {}
    twice = [
        f"{owner[image.stem].file_name} and {image.file_name}: {image.stem}.png"
        for image in images
        if owner.setdefault(image.stem, image) is not image
    ]
    if twice:
        raise ValueError(f"{path}: {itemized('label map(s) that two images share', twice)}")
