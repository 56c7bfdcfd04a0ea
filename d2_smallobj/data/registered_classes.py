"""Read the classes of a registered data set from its metadata, and which of them are stuff.

Stuff has no instances: background, sky, road. Every other class is a thing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2_smallobj.annotations.classes import (
    Stuff,
    background_ids,
    is_background,
    short_name,
    stuff_ids,
)
from d2_smallobj.utils.messages import listed
from detectron2.data import DatasetCatalog, MetadataCatalog

BACKGROUND = "background"
_ALL_THINGS = "things"
_THING_IDS = "thing_dataset_id_to_contiguous_id"
_STUFF_IDS = "stuff_dataset_id_to_contiguous_id"
_HOW = "give stuff=[...] (on the command line --stuff NAME for each, or --no-stuff)"
_DETECTION = ("cityscapes_instance",)
"""Types of evaluators of detection sets whose metadata name the classes of label maps as well."""
# Words of a data set's name that tell its task, not its images.
_TASK_WORDS = re.compile(
    r"_(instance|instances|seg|sem|panoptic|with|stuffonly|separated|detection|\d{1,2})(?=_|$)"
)


class DatasetClasses(NamedTuple):
    """The C classes of a data set."""

    names: tuple[str, ...]
    stuff: tuple[int, ...]  # ids of the classes without instances, ascending
    ignore_label: int  # >= C
    unannotated: int | None  # label of unannotated pixels in painted maps; None: none is painted
    decided: str  # a sentence about how stuff was decided; empty if the user named it
    warns: bool  # whether it says that nothing is known about single objects


def dataset_classes(
    name: str,
    metadata: Any,
    *,
    stuff: Stuff = None,
    num_classes: int | None = None,
    unannotated: str | int | None = None,
    own_reader: bool = False,
) -> DatasetClasses:
    """Read the classes of a data set from its metadata.

    The options are those of :func:`d2_smallobj.data.ground_truth.resolve`; ``own_reader`` says
    whether the user has a reader.

    Raises:
        ValueError: the metadata contradict themselves or do not tell, there is no such class, or
            the data set has no semantic ground truth.
    """
    found = _class_names(name, metadata, num_classes, unannotated, own_reader)
    names = tuple(map(str, found))
    given = metadata.get("num_classes")
    where = f"metadata of {name!r}"
    if given not in (None, len(names)):
        raise ValueError(f"{where}: num_classes is {given}, but there are {len(names)} class names")
    ignore_label = _ignore_label(where, metadata, names)
    if stuff is not None:
        ids, text, warns = stuff_ids(stuff, names), "", False
    else:
        ids, reason = _decide(where, metadata, names)
        text, warns = _sentence(name, names, ids, reason), reason == _ALL_THINGS
    label = _unannotated_label(unannotated, metadata, names, ignore_label)
    return DatasetClasses(names, ids, ignore_label, label, text, warns)


def _sentence(name: str, names: Sequence[str], stuff: Sequence[int], reason: str) -> str:
    """Say what was decided, why, and how to change it."""
    if reason == _ALL_THINGS:
        return (
            f"{name}: class 0 of this data set, {names[0]!r}, holds all objects in one, so that "
            "all classes are stuff and nothing can be said about single objects; use the panoptic "
            "data set instead."
        )
    quoted = [repr(short_name(text)) for text in names]
    things = [text for number, text in enumerate(quoted) if number not in stuff]
    return (
        f"{name}: {len(things)} of {len(names)} classes are things ({listed(things) or 'none'}), "
        f"{len(stuff)} stuff ({listed([quoted[number] for number in stuff]) or 'none'}), since "
        f"{reason}. Otherwise {_HOW}."
    )


def _ignore_label(where: str, metadata: Any, names: Sequence[str]) -> int:
    """Return the label of ignored pixels; by default one that no class has."""
    free = 255 if len(names) <= 255 else 65535
    label = metadata.get("ignore_label")
    if label is None:
        return free
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or label < 0:
        raise ValueError(f"{where}: ignore_label must be an integer >= 0, got {label!r}")
    if label < len(names):
        raise ValueError(
            f"{where}: ignore_label is {label}, which is the class {names[int(label)]!r}; "
            f"set it to a label that no class has, e.g. {free}"
        )
    return int(label)


def _decide(where: str, metadata: Any, names: tuple[str, ...]) -> tuple[tuple[int, ...], str]:
    """Return the ids of the stuff classes, and the reason."""

    def others(ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(set(range(len(names))) - set(ids)))

    things = tuple(map(str, metadata.get("thing_classes") or ()))
    ids = _contiguous_ids(where, metadata, things, names)
    if ids and max(ids) < len(names) and _are_class_ids(where, ids, things, names):
        _check_stuff_ids(where, metadata, set(ids), names)
        return others(ids), f"the metadata's {_THING_IDS} says so"
    if things and set(things) < set(names):
        return others([names.index(t) for t in things]), "the metadata's thing_classes says so"
    if names[0].casefold() == _ALL_THINGS:
        return tuple(range(len(names))), _ALL_THINGS
    unknown = [thing for thing in things if thing not in names]
    if unknown:
        raise ValueError(
            f"{where}: thing_classes has {unknown[0]!r}, which stuff_classes lacks"
            f" ({len(unknown)} such name(s)), so that they do not tell which classes are things; "
            f"{_HOW}"
        )
    background = background_ids(names)
    if background:
        return background, "the class called background is stuff"
    return (), "the metadata name no stuff and no background"


def _contiguous_ids(
    where: str, metadata: Any, things: Sequence[str], names: Sequence[str]
) -> list[int]:
    """Return the numbers of the things: ids of classes, or indices into ``thing_classes``."""
    mapping = metadata.get(_THING_IDS) or {}
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where}: {_THING_IDS} must be a dict, got {mapping!r:.80}")
    ids = sorted(set(mapping.values()))
    known = max(len(things), len(names))
    wrong = [n for n in ids if not isinstance(n, (int, np.integer)) or not 0 <= n < known]
    if wrong:
        raise ValueError(
            f"{where}: {_THING_IDS} leads to {wrong[0]!r}, but there are {len(names)} "
            f"stuff_classes and {len(things)} thing_classes; correct the metadata, or {_HOW}"
        )
    return [int(number) for number in ids]


def _are_class_ids(where: str, ids: list[int], things: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether the numbers of things are ids of classes, by the names in both lists."""
    different = [n for n in ids if things and (n >= len(things) or things[n] != names[n])]
    if different and len(things) == len(names):
        n = different[0]
        raise ValueError(
            f"{where}: class {n} is {things[n]!r} in thing_classes and {names[n]!r} in "
            f"stuff_classes; correct the metadata, or {_HOW}"
        )
    return not different


def _check_stuff_ids(where: str, metadata: Any, things: set[int], names: Sequence[str]) -> None:
    """Refuse a thing class that other categories make stuff; both lists may name a category."""
    thing_map = metadata.get(_THING_IDS)
    for category, number in (metadata.get(_STUFF_IDS) or {}).items():
        own = thing_map.get(category, number)
        found = ""
        if own != number:
            found = f"class {own} in {_THING_IDS} and class {number}"
        elif category not in thing_map and number in things:
            found = f"class {number} ({names[number]!r}), which is a thing in {_THING_IDS}, stuff"
        if found:
            told = f"category {category} is {found} in {_STUFF_IDS}"
            raise ValueError(f"{where}: {told}; correct the metadata, or {_HOW}")


# ---- Names -------------------------------------------------------------------------------------


def _class_names(
    name: str, metadata: Any, num_classes: int | None, unannotated: str | int | None, reader: bool
) -> Sequence[str] | range:
    """Return the names of the classes; their numbers where the metadata have none."""
    names = metadata.get("stuff_classes")
    kind = metadata.get("evaluator_type")
    if names is not None and kind in _DETECTION and not reader:
        if unannotated is None:
            raise ValueError(no_semantics(name, f"its evaluator_type is {kind!r}"))
        if unannotated == BACKGROUND and not any(map(is_background, names)):
            names = None  # Painted maps have the annotated classes and the background.
    if names is not None:
        if num_classes not in (None, len(names)):
            raise ValueError(
                f"num_classes must be {len(names)}, the number of stuff_classes of {name!r},"
                f" got {num_classes}"
            )
        return names
    things = [str(thing) for thing in metadata.get("thing_classes") or ()]
    if unannotated == BACKGROUND and not any(map(is_background, things)):
        things = [BACKGROUND, *things]
    if things and (unannotated is not None or reader):
        return things
    if num_classes is not None:
        return range(num_classes)
    if things:
        raise ValueError(no_semantics(name, "thing_classes in its metadata, but no stuff_classes"))
    raise ValueError(
        f"dataset_name: the metadata of {name!r} has no stuff_classes; register the"
        " data set, set them, or give num_classes"
    )


def _unannotated_label(
    unannotated: str | int | None, metadata: Any, names: Sequence[str], ignore_label: int
) -> int | None:
    """Return the label of pixels without annotation in painted maps; ``None``: none is painted."""
    if unannotated is None:
        # In our own sets of annotation files, pixels without annotation are background.
        own = metadata.get("instances_json") is not None
        return 0 if own and is_background(names[0]) else None
    if unannotated == "void":
        return ignore_label
    (label,) = stuff_ids([unannotated], names, "unannotated, 'void' or a class")
    return label


def no_semantics(name: str, why: str) -> str:
    """Return the error about a detection set, which names data sets of the same images."""
    core = _TASK_WORDS.sub("", name)
    same = [x for x in DatasetCatalog.list() if x != name and _TASK_WORDS.sub("", x) == core]
    classes = {x: MetadataCatalog.get(x).get("stuff_classes") or [_ALL_THINGS] for x in same}
    found = [x for x in same if classes[x][0] != _ALL_THINGS]
    found = sorted(found, key=lambda other: (len(other), other))[:3]
    use = f"evaluate on {' or '.join(map(repr, found))}, or " if found else ""
    return (
        f"data set {name!r} has no semantic ground truth ({why}): {use}let it be painted from the "
        "annotations with unannotated='background' or 'void' (on the command line --unannotated), "
        "which says what pixels without annotation are"
    )
