"""Read LVIS and COCO annotation files, and map their categories to the 20 VOC classes by name.

The order of a file's entries leaves no trace. Ids of categories differ between LVIS v0.5 and v1,
names hardly do. Their choice is ours (the authors of PASCAL-B have not published theirs) and
follows the VOC2012 annotation guidelines. Categories that are not named here are background:
trucks, stools, benches, wheelchairs, goats, laptops, desks and so on.

Legend: A number of annotations of the file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.coco_file import AnnotationFile, ImageEntry, read_annotation_file
from d2_smallobj.annotations.dataset_files import resolve_inside
from d2_smallobj.utils.files import file_sha256
from d2_smallobj.utils.messages import itemized, look_up_option

CORE, EXTENSION, PART = "core", "extension", "part"
"""Roles of a category: the class itself; a kind of it; a part of its objects."""
AMBIGUOUS, GENERAL = "ambiguous", "general"
"""Roles of categories that are 255: a kind that may not count as the class, whatever else LVIS
calls the object; a wider notion, of which LVIS may also name the kind."""
UNCERTAIN = (AMBIGUOUS, GENERAL)


class CategoryRule(NamedTuple):
    """VOC class, 1..20 (of an uncertain category, the one that it may be), and role."""

    class_id: int
    role: str


# One of the names of a group must be in an LVIS file; v0.5 calls persons (person.n.01) "baby".
_SAME_NAME = ("bicycle", "bird", "boat", "bottle", "cat", "chair", "cow", "dog", "horse", "sheep")
_CORE: dict[str, tuple[tuple[str, ...], ...]] = {
    **{name: ((name,),) for name in (*_SAME_NAME, "sofa")},
    "aeroplane": (("airplane",),),
    "bus": (("bus_(vehicle)",),),
    "car": (("car_(automobile)",),),
    "diningtable": (("dining_table",),),
    "motorbike": (("motorcycle",),),
    "person": (("person", "baby"),),
    "train": (("train_(railroad_vehicle)",),),
    "tvmonitor": (("television_set",), ("monitor_(computer_equipment) computer_monitor",)),
}
# Other roles; names separated by spaces.
_OTHERS = {
    EXTENSION: {
        "aeroplane": "fighter_jet jet_plane seaplane",
        "bicycle": "tricycle unicycle",
        "bird": "duck duckling eagle falcon flamingo goose gull heron hummingbird mallard ostrich "
        "owl parakeet parrot pelican penguin pigeon puffin seabird vulture crow cock "
        "chicken_(animal) turkey_(bird)",
        "boat": "barge canoe cargo_ship cruise_ship dinghy ferry gondola_(boat) houseboat kayak "
        "passenger_ship river_boat yacht fishing_boat motorboat",
        "bottle": "beer_bottle water_bottle wine_bottle",
        "bus": "school_bus",
        "car": "cab_(taxi) convertible_(automobile) jeep limousine minivan race_car",
        "cat": "kitten",
        "chair": "armchair deck_chair folding_chair rocking_chair recliner highchair wing_chair",
        "cow": "bull calf",
        "diningtable": "kitchen_table",
        "dog": "bulldog dalmatian pug-dog puppy shepherd_dog Chihuahua dachshund",
        "horse": "foal pony domestic_ass",
        "motorbike": "dirt_bike motor_scooter",
        "sheep": "black_sheep lamb_(animal) ram_(animal)",
        "sofa": "loveseat",
        "train": "bullet_train",
    },
    PART: {
        "train": "railcar_(part_of_a_train) passenger_car_(part_of_a_train) freight_car cabin_car"
    },
    GENERAL: {"diningtable": "table"},
    AMBIGUOUS: {
        "bottle": "thermos_bottle",
        "boat": "raft",
        "car": "pickup_truck police_cruiser",
        "sofa": "sofa_bed",
    },
}
# COCO's names where they are not VOC's.
_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}

COCO_CLASS_OPTIONS = ("pottedplant", "diningtable")
"""Classes that can be taken from COCO: LVIS has none of the first and few of the second."""


def class_id(name: str) -> int:
    """Id of a VOC class, 1..20."""
    return VOC_CLASS_NAMES.index(name)


LVIS_RULES = {
    **{
        category: CategoryRule(class_id(name), CORE)
        for name, groups in _CORE.items()
        for group in groups
        for category in group
    },
    **{
        category: CategoryRule(class_id(name), role)
        for role, table in _OTHERS.items()
        for name, text in table.items()
        for category in text.split()
    },
}
"""Rule by LVIS category name; the names of v0.5 and v1 together."""
COCO_RULES = {
    _COCO.get(name, name): CategoryRule(class_id(name), CORE) for name in VOC_CLASS_NAMES[1:]
}
"""Rule by COCO category name."""


def missing_lvis_names(names: Collection[str]) -> list[str]:
    """List the classes' own categories that an LVIS file lacks: ``"person: 'person' or 'baby'"``.

    LVIS has no potted plants, so they are not among them.
    """
    return [
        f"{name}: {' or '.join(repr(category) for category in group)}"
        for name, groups in _CORE.items()
        for group in groups
        if not set(group) & set(names)
    ]


KINDS = ("lvis", "coco")
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
_LARGEST_ID = 1 << 62


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of an annotation file, sizes in pixels."""

    height: int
    width: int
    # Path below the folder of train2017 and val2017, from the URL where there is one (LVIS v0.5
    # names files as COCO 2014 does, v1 not at all).
    file_name: str
    negative: tuple[int, ...] = ()  # ids of categories that LVIS verified to be absent
    not_exhaustive: tuple[int, ...] = ()  # ids of those of which it labelled some instances only


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotationIndex:
    """Contents of a file; annotations in the order of image id and annotation id."""

    path: Path
    kind: str  # of KINDS
    sha256: str  # of its content, hexadecimal
    size: int  # bytes
    images: Mapping[int, Image]  # by id
    categories: Mapping[int, str]  # names by id
    annotation_ids: np.ndarray  # int64 (A,), as the next two
    image_ids: np.ndarray
    category_ids: np.ndarray
    crowd: np.ndarray  # bool (A,)
    segmentations: Mapping[int, bytes]  # JSON text by position, for annotations of the 20 classes

    def rows_of(self, image_id: int) -> range:
        """Positions of an image's annotations."""
        first, last = np.searchsorted(self.image_ids, [image_id, image_id + 1])
        return range(int(first), int(last))


def read_index(path: str | os.PathLike[str], kind: str) -> AnnotationIndex:
    """Read an annotation file of a kind of :data:`KINDS`; masks are kept, but not decoded.

    Raises ValueError if it is malformed (see :func:`read_annotation_file`), ids are no integers,
    LVIS's lists are missing, or a file name leaves its folder.
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
    annotation_ids, image_ids, category_ids = (
        np.fromiter((getattr(entry, name) for entry in file.annotations), np.int64, count)
        for name in ("id", "image_id", "category_id")
    )
    crowd = np.fromiter((bool(entry.iscrowd) for entry in file.annotations), bool, count)
    order = np.lexsort([annotation_ids, image_ids])
    needed = np.isin(category_ids[order], wanted)
    return AnnotationIndex(
        path,
        kind,
        file_sha256(path),
        path.stat().st_size,
        _images(file),
        {int(identity): category.name for identity, category in file.categories.items()},
        annotation_ids[order],
        image_ids[order],
        category_ids[order],
        crowd[order],
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
        images[int(image_id)] = Image(entry.height, entry.width, name, *map(tuple, lists))
    if problems:
        raise ValueError(f"{file.path}: {itemized('file name(s) refused', problems)}")
    return images


def _file_name(entry: ImageEntry) -> str:
    """Path of an image below the folder of ``train2017`` and ``val2017``."""
    if entry.coco_url:
        return "/".join(entry.coco_url.split("/")[-2:])
    return entry.file_name or f"{entry.id:012d}.jpg"
