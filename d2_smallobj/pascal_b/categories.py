"""Map the categories of LVIS and COCO to the 20 PASCAL VOC classes, by name.

Ids differ between LVIS v0.5 and v1, names hardly do. The choice is ours (the authors of PASCAL-B
have not published theirs); it follows the VOC2012 annotation guidelines. Categories that are not
named here are background: trucks, stools, benches, wheelchairs, goats, laptops, desks and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.utils.options import look_up_option

CORE, EXTENSION, PART = "core", "extension", "part"
"""Roles of a category: the class itself; a kind of it; a part of its objects."""
AMBIGUOUS, GENERAL = "ambiguous", "general"
"""Roles of categories that are 255: a kind that may not count as the class, whatever else LVIS
calls the object; a wider notion, of which LVIS may also name the kind."""
UNCERTAIN = (AMBIGUOUS, GENERAL)


@dataclasses.dataclass(frozen=True)
class CategoryRule:
    """The class and role of a category.

    Attributes:
        class_id: 1..20, the VOC class; for an uncertain category the class that it may be.
        role: one of the roles above.
    """

    class_id: int
    role: str


# One of the names of a group must be in an LVIS file; v0.5 calls persons (person.n.01) "baby".
_CORE: dict[str, tuple[tuple[str, ...], ...]] = {
    "aeroplane": (("airplane",),),
    "bicycle": (("bicycle",),),
    "bird": (("bird",),),
    "boat": (("boat",),),
    "bottle": (("bottle",),),
    "bus": (("bus_(vehicle)",),),
    "car": (("car_(automobile)",),),
    "cat": (("cat",),),
    "chair": (("chair",),),
    "cow": (("cow",),),
    "diningtable": (("dining_table",),),
    "dog": (("dog",),),
    "horse": (("horse",),),
    "motorbike": (("motorcycle",),),
    "person": (("person", "baby"),),
    "sheep": (("sheep",),),
    "sofa": (("sofa",),),
    "train": (("train_(railroad_vehicle)",),),
    "tvmonitor": (("television_set",), ("monitor_(computer_equipment) computer_monitor",)),
}
# Names separated by spaces.
_EXTENSIONS = {
    "aeroplane": "fighter_jet jet_plane seaplane",
    "bicycle": "tricycle unicycle",
    "bird": "duck duckling eagle falcon flamingo goose gull heron hummingbird mallard ostrich owl "
    "parakeet parrot pelican penguin pigeon puffin seabird vulture crow cock chicken_(animal) "
    "turkey_(bird)",
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
}
_PARTS = {
    "train": "railcar_(part_of_a_train) passenger_car_(part_of_a_train) freight_car cabin_car"
}
_GENERAL = {"diningtable": "table"}
_AMBIGUOUS = {
    "bottle": "thermos_bottle",
    "boat": "raft",
    "car": "pickup_truck police_cruiser",
    "sofa": "sofa_bed",
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
    """Id of a VOC class, 1..20.

    Raises:
        ValueError: there is no such class.
    """
    return VOC_CLASS_NAMES.index(look_up_option("class", name, VOC_CLASS_NAMES[1:]))


def _lvis_rules() -> dict[str, CategoryRule]:
    """Rule of every LVIS category that is not background, by name."""
    names = {
        CORE: {name: [c for group in groups for c in group] for name, groups in _CORE.items()},
        **{
            role: {name: text.split() for name, text in table.items()}
            for role, table in (
                (EXTENSION, _EXTENSIONS),
                (AMBIGUOUS, _AMBIGUOUS),
                (GENERAL, _GENERAL),
                (PART, _PARTS),
            )
        },
    }
    return {
        category: CategoryRule(class_id(name), role)
        for role, table in names.items()
        for name, categories in table.items()
        for category in categories
    }


LVIS_RULES = _lvis_rules()
"""Rule by LVIS category name; the names of v0.5 and v1 together."""
COCO_RULES = {
    _COCO.get(name, name): CategoryRule(class_id(name), CORE) for name in VOC_CLASS_NAMES[1:]
}
"""Rule by COCO category name."""


def missing_lvis_names(names: Collection[str]) -> list[str]:
    """List the classes' own categories that are not among an LVIS file's category names.

    Returns:
        Sentences such as ``"person: 'person' or 'baby'"``; potted plants, which LVIS does not
        have, are not among them.
    """
    return [
        f"{name}: {' or '.join(repr(category) for category in group)}"
        for name, groups in _CORE.items()
        for group in groups
        if not set(group) & set(names)
    ]


def missing_coco_names(names: Iterable[str]) -> list[str]:
    """List the categories of the 20 classes that are not among a COCO file's category names."""
    return sorted(set(COCO_RULES) - set(names))
