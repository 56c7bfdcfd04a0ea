"""Choose the scored classes: names, stuff, and categories of an annotation file."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import msgspec
import numpy as np

from d2_smallobj.annotations.coco_file import CategoryEntry, Id, id_order
from d2_smallobj.annotations.dataset_files import decode_json
from d2_smallobj.metrics.validation import MOST_CLASSES
from d2_smallobj.utils.files import read_text
from d2_smallobj.utils.messages import listed, look_up_option

VOC_CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""PASCAL VOC, 21 with background."""

COCO_CLASS_NAMES = (
    "background",
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)
"""COCO's 80 thing categories in the order of their ids, contiguous: 81 with background."""

Stuff = Union[Sequence[Union[str, int]], str, None]
DEMO_CLASS_NAMES = ("background", "ball", "crate", "star", "leaf", "ring", "kite")
"""Classes of the demo scenes."""
BUILT_IN = {"voc": VOC_CLASS_NAMES, "coco": COCO_CLASS_NAMES}

# 0 is background, 255 means ignored.
_MOST_LABELS = 254
_LONGEST_NAME = 30


def read_class_names(text: str) -> tuple[str, ...]:
    """Read what ``--classes`` names.

    That is ``voc`` or ``coco``; the number of classes with background, whose names are then
    ``background``, ``1``, ``2``, ...; or a text file with one name a line, position = label.

    Raises:
        FileNotFoundError: it is none of these.
        ValueError: the number is below 1, or the file is no UTF-8 text, is empty, or has an empty
            or repeated name.
    """
    if text in BUILT_IN:
        return BUILT_IN[text]
    if text.isdecimal():
        count = int(text) if len(text) < 10 else MOST_CLASSES + 1
        if not 1 <= count <= MOST_CLASSES:
            raise ValueError(
                f"--classes: the number counts background, so 1..{MOST_CLASSES}; got {text:.20}"
            )
        return ("background", *(str(number) for number in range(1, count)))
    path = Path(text)
    try:
        lines = read_text(path, "a list of class names").rstrip().splitlines()
    except FileNotFoundError as error:
        hint = _closest(text, BUILT_IN)
        raise FileNotFoundError(
            error.errno, f"--classes: neither 'voc', 'coco', a number nor a file{hint}", text
        ) from error
    names = [line.strip() for line in lines]
    if len(names) > MOST_CLASSES:
        raise ValueError(
            f"{path}: {len(names)} lines; at most {MOST_CLASSES} classes can be scored"
        )
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}, line {number}: empty; every line names a class")
        first = names.index(name) + 1
        if first < number:
            raise ValueError(
                f"{path}, line {number}: duplicate class name {name!r}, as in line {first}"
            )
    if not names:
        raise ValueError(f"{path}: no class name in it")
    return tuple(names)


def stuff_ids(stuff: Stuff, names: Sequence[str], argument: str = "stuff") -> tuple[int, ...]:
    """Find the ids of stuff classes, those without instances, that are given by name or id.

    ``argument`` names the option for messages. ValueError for an unknown class names the closest.
    """
    found = set()
    for entry in [stuff] if isinstance(stuff, (str, int)) else stuff or ():
        if isinstance(entry, (int, np.integer)) and not isinstance(entry, bool):
            if not 0 <= entry < len(names):
                raise ValueError(f"{argument}: class ids are 0..{len(names) - 1}, got {entry}")
            found.add(int(entry))
        else:
            found.add(list(names).index(look_up_option(argument, entry, names)))
    return tuple(sorted(found))


def is_background(name: str) -> bool:
    """Return whether a class is called background; synonyms may follow after a comma."""
    return name.split(",")[0].strip().casefold() == "background"


def background_ids(names: Sequence[str]) -> tuple[int, ...]:
    """Ids of the classes that are called background."""
    return tuple(number for number, name in enumerate(names) if is_background(name))


def short_name(name: str) -> str:
    """Shorten a class name for logs and messages: some have hundreds of letters."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def stuff_beside_background(stuff: Sequence[int] | None, names: Sequence[str]) -> tuple[int, ...]:
    """Return the stuff classes (ids; None: none) that are not called background."""
    return tuple(number for number in stuff or () if not is_background(names[number]))


def default_stuff(classes: str | None, names: Sequence[str]) -> tuple[int, ...]:
    """Return the stuff classes of what ``--classes`` named: background.

    Raises:
        ValueError: a file names no class "background"; asks which classes are stuff.
    """
    if classes is None or classes in BUILT_IN or classes.isdecimal():
        return (0,)
    found = background_ids(names)
    if not found:
        raise ValueError(
            f"{classes}: no class is called 'background', so it does not tell which classes are "
            f"objects: name each that is not (sky, road) with --stuff NAME, or give --no-stuff if "
            f"all are; the first class is {names[0]!r}, label 0"
        )
    return found


def choose_categories(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None,
    map_file: str | os.PathLike[str] | None = None,
) -> dict[Id, int] | None:
    """Find the categories of a COCO or LVIS file that stand for the given classes.

    Args:
        path: the annotation file.
        class_names: background first; ``None``: the file's own classes.
        map_file: a JSON file that maps category ids or names to class names or labels; ``None``:
            every class is the category of its name.

    Returns:
        Label (1..C-1) by category id, other categories being background; ``None`` for the file's
        own.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed, there are more classes than an 8-bit map has labels, or the
            map or a class names what does not exist.
    """
    if map_file is not None and class_names is None:
        raise ValueError("--category-map needs --classes: the classes that it maps to")
    entries = decode_json(path, _Categories, _CATEGORIES).categories
    own = class_names is None
    number = len(entries) if class_names is None else len(class_names) - 1
    if number > _MOST_LABELS:
        found = f"its {number} categories" if own else f"the {number} classes beside background"
        raise ValueError(
            f"{path}: {found} are more than the {_MOST_LABELS} labels of an 8-bit map: choose "
            "fewer with --classes (a file of names, background first), or let several categories "
            "be one class with --category-map, too"
        )
    if class_names is None:
        return None
    if map_file is not None:
        return _map_categories(entries, class_names, map_file)
    ids = {entry.name: entry.id for entry in entries}
    for name in class_names[1:]:
        if name not in ids:
            raise ValueError(
                f"--classes: a class of {path} is called by its category's name: no category "
                f"{name!r}{_closest(name, ids)}"
            )
    return {ids[name]: label for label, name in enumerate(class_names[1:], start=1)}


ALL, SUPERCATEGORIES = "all", "supercategories"
"""Choices of a file's classes, in place of names of categories with ``+`` between them."""
_CATEGORIES = "an annotation file has a list 'categories' of 'id' and 'name'"
_Map = Annotated[dict[str, Any], msgspec.Meta(min_length=1)]
_MAP_FORM = 'expected a JSON object such as {"television_set": "tvmonitor"}'


class _Categories(msgspec.Struct, frozen=True):
    """The part of an annotation file that names its categories."""

    categories: list[CategoryEntry]


def json_classes(
    path: str | os.PathLike[str], choice: str = ALL
) -> tuple[dict[Id, int], tuple[str, ...]]:
    """Choose classes among the categories of a file; reads nothing else of it.

    Args:
        path: the JSON file.
        choice: ``"all"`` categories in the order of their ids, their ``"supercategories"`` in the
            order of the first id, or names of categories with ``+`` between them, in that order.

    Returns:
        Class by category id, and the names, background first. A category called background is
        none of the classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is malformed, names a category twice or gives one no supercategory, has no
            category of that name, or the choice has more than 254 classes.
    """
    return choose_classes(path, decode_json(path, _Categories, _CATEGORIES).categories, choice)


def choose_classes(
    path: str | os.PathLike[str], categories: Iterable[CategoryEntry], choice: str
) -> tuple[dict[Id, int], tuple[str, ...]]:
    """Choose classes among the categories that were read from a file, as :func:`json_classes`."""
    in_order = sorted(categories, key=lambda e: id_order(e.id))
    entries = [e for e in in_order if not is_background(e.name)]
    twice = [name for name, count in Counter(e.name for e in entries).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: several categories have the name {listed(twice)}; rename them")
    if choice == ALL:
        groups = {e.name: [e] for e in entries}
    elif choice == SUPERCATEGORIES:
        groups = _supercategories(path, entries)
    else:
        groups = _named(path, entries, choice)
    if not groups:
        raise ValueError(f"{path}: its list 'categories' is empty, so that it has no classes")
    if len(groups) > _MOST_LABELS:
        raise ValueError(
            f"{path}: {len(groups)} classes are more than the {_MOST_LABELS} labels of an 8-bit "
            "map: choose fewer with classes=supercategories or classes=NAME+NAME+..."
        )
    found = {e.id: n for n, members in enumerate(groups.values(), 1) for e in members}
    return found, ("background", *groups)


def _supercategories(
    path: str | os.PathLike[str], entries: Sequence[CategoryEntry]
) -> dict[str, list[CategoryEntry]]:
    groups: dict[str, list[CategoryEntry]] = {}
    lacking = [entry.name for entry in entries if not entry.supercategory]
    if lacking:
        raise ValueError(
            f"{path}: {len(lacking)} categories have no 'supercategory' ({listed(lacking, 3)}): "
            "give classes=all or names"
        )
    for entry in entries:
        groups.setdefault(str(entry.supercategory), []).append(entry)
    if "background" in groups:
        raise ValueError(
            f"{path}: a supercategory is called 'background', as class 0 is; rename it"
        )
    return groups


def _named(
    path: str | os.PathLike[str], entries: Sequence[CategoryEntry], choice: str
) -> dict[str, list[CategoryEntry]]:
    by_name = {entry.name: entry for entry in entries}
    names = [choice] if choice in by_name else choice.split("+")
    legal = [*by_name] if len(names) > 1 else [ALL, SUPERCATEGORIES, *by_name]
    for name in names:
        look_up_option(f"classes= of {path}", name, legal)
        if names.count(name) > 1:
            raise ValueError(f"classes= of {path}: {name!r} is named twice")
    return {name: [by_name[name]] for name in names}


def _map_categories(
    entries: Sequence[CategoryEntry],
    class_names: Sequence[str],
    map_file: str | os.PathLike[str],
) -> dict[Id, int]:
    """Label by category id, as a file maps ids or names of categories."""
    labels = {name: label for label, name in enumerate(class_names)}
    ids = {entry.name: entry.id for entry in entries}
    numbers = {str(entry.id): entry.id for entry in entries}
    found: dict[Id, int] = {}
    for key, value in decode_json(map_file, _Map, _MAP_FORM).items():
        category = ids.get(key, numbers.get(key))
        if category is None:
            raise ValueError(f"{map_file}: no category {key!r}{_closest(key, ids)}")
        label = labels.get(value) if isinstance(value, str) else value
        if isinstance(label, bool) or not isinstance(label, int) or not 0 < label < len(labels):
            raise ValueError(
                f"{map_file}: category {key!r} maps to {value!r}, which is neither the name nor "
                f"the label (1..{len(labels) - 1}) of a class{_closest(str(value), labels)}"
            )
        found[category] = label
    return found


def _closest(name: str, names: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
