"""Read LVIS and COCO annotation files; the order of a file's entries leaves no trace.

Legend: A number of annotations of the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from d2_smallobj.annotations.coco_file import AnnotationFile, ImageEntry, read_annotation_file
from d2_smallobj.annotations.dataset_files import resolve_inside
from d2_smallobj.pascal_b.categories import COCO_RULES, LVIS_RULES
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.options import look_up_option

KINDS = ("lvis", "coco")
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
_LARGEST_ID = 1 << 62


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of an annotation file.

    Attributes:
        height, width: pixels.
        file_name: path below the folder of ``train2017`` and ``val2017``, from the URL where
            there is one (LVIS v0.5 names files as COCO 2014 does, v1 not at all).
        negative: ids of categories that LVIS verified to be absent; none in COCO.
        not_exhaustive: ids of categories of which LVIS labelled some instances only.
    """

    height: int
    width: int
    file_name: str
    negative: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotationIndex:
    """Contents of a file; annotations in the order of image id and annotation id.

    Attributes:
        path: the file.
        kind: ``"lvis"`` or ``"coco"``.
        sha256, size: of its content; hexadecimal, bytes.
        images: image by id.
        categories: category name by id.
        annotation_ids, image_ids, category_ids: int64 (A,).
        crowd: bool (A,).
        segmentations: JSON text by position, for annotations of the 20 classes.
    """

    path: Path
    kind: str
    sha256: str
    size: int
    images: Mapping[int, Image]
    categories: Mapping[int, str]
    annotation_ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    crowd: np.ndarray
    segmentations: Mapping[int, bytes]

    def rows_of(self, image_id: int) -> range:
        """Positions of an image's annotations."""
        first, last = np.searchsorted(self.image_ids, [image_id, image_id + 1])
        return range(int(first), int(last))


def read_index(path: str | os.PathLike[str], kind: str) -> AnnotationIndex:
    """Read an annotation file of a kind of :data:`KINDS`; masks are kept, but not decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or malformed (see :func:`read_annotation_file`), ids are no
            integers, LVIS's lists are missing, or an image's file name leaves its folder. Names
            the file, the first ten offenders and how many there are.
    """
    path = Path(path)
    file = read_annotation_file(path, look_up_option("kind", kind, KINDS))
    for section, ids in (
        ("images", file.images),
        ("categories", file.categories),
        ("annotations", [entry.id for entry in file.annotations]),
    ):
        wrong = _not_integers(ids)
        if wrong:
            raise ValueError(f"{path}: {itemized(f'id(s) in {section!r} no integers', wrong)}")
    rules = LVIS_RULES if kind == "lvis" else COCO_RULES
    wanted = [c for c, category in file.categories.items() if category.name in rules]
    count = len(file.annotations)
    columns = [
        np.fromiter((getattr(entry, name) for entry in file.annotations), np.int64, count)
        for name in ("id", "image_id", "category_id")
    ]
    crowd = np.fromiter((bool(entry.iscrowd) for entry in file.annotations), bool, count)
    order = np.lexsort(columns[:2])
    needed = np.isin(columns[2][order], wanted)
    return AnnotationIndex(
        path,
        kind,
        *_hash(path),
        _images(file),
        {identity: category.name for identity, category in file.categories.items()},
        *(column[order] for column in (*columns, crowd)),
        # Copied: a view would keep the whole file in memory.
        {
            row: bytes(file.annotations[order[row]].segmentation)
            for row in np.flatnonzero(needed).tolist()
        },
    )


def _not_integers(values: Iterable[object]) -> list[str]:
    """Values that are no integers below 2**62."""
    return [repr(value) for value in values if type(value) is not int or abs(value) >= _LARGEST_ID]


def _images(file: AnnotationFile) -> dict[int, Image]:
    """The images by id, ascending."""
    images, problems = {}, []
    for image_id, entry in sorted(file.images.items()):
        where = f"image {image_id}"
        lists = [getattr(entry, name) for name in _LISTS] if file.kind == "lvis" else []
        if None in lists or any(_not_integers(values) for values in lists):
            raise ValueError(
                f"{file.path}: {where}: expected lists {_LISTS} of category ids, got {lists}; is "
                "this an LVIS file?"
            )
        try:
            name = resolve_inside(Path(), _file_name(entry), where).as_posix()
        except ValueError as error:
            problems.append(str(error))
            continue
        images[image_id] = Image(entry.height, entry.width, name, *map(tuple, lists))
    if problems:
        raise ValueError(f"{file.path}: {itemized('file name(s) refused', problems)}")
    return images


def _file_name(entry: ImageEntry) -> str:
    """Path of an image below the folder of ``train2017`` and ``val2017``."""
    if entry.coco_url:
        return "/".join(entry.coco_url.split("/")[-2:])
    return entry.file_name or f"{entry.id:012d}.jpg"


def _hash(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
