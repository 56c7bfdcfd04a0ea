"""Describe data sets of a user's own files by their names alone (datasets/README.md#your-own-data).

::

    coco_json@INSTANCES.json@IMAGE_FOLDER[,classes=...][,labels=FOLDER][,ids=FILE]
    label_maps@IMAGE_FOLDER@SEMANTIC_FOLDER[@INSTANCE_FOLDER],classes=...[,ids=FILE]
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2_smallobj.annotations.classes import ALL, is_background, json_classes, read_class_names
from d2_smallobj.annotations.dataset_files import datasets_root
from d2_smallobj.annotations.map_cache import cache_folder
from d2_smallobj.annotations.map_pairs import MapPairs
from d2_smallobj.annotations.own_json import own_json_dicts, paint_own_json
from d2_smallobj.data.specs import DatasetSpec
from d2_smallobj.utils.messages import look_up_option

COCO_JSON, LABEL_MAPS = "coco_json", "label_maps"
FORMS = {
    COCO_JSON: "coco_json@INSTANCES.json@IMAGE_FOLDER[,classes=...][,labels=FOLDER][,ids=FILE]",
    LABEL_MAPS: "label_maps@IMAGE_FOLDER@SEMANTIC_FOLDER[@INSTANCE_FOLDER],classes=...[,ids=FILE]",
}
"""How a name is formed, by what stands before its first ``@``."""
SECTION = "Your own data"
_OPTIONS = {COCO_JSON: ("classes", "labels", "ids"), LABEL_MAPS: ("classes", "ids")}
_PLACES = {COCO_JSON: (2, 2), LABEL_MAPS: (2, 3)}
# A comma that no `word=` follows belongs to a path.
_COMMA = re.compile(r",(?=\s*\w+\s*=)")


def own_spec(name: str) -> DatasetSpec:
    """Make the data set of a name as in :data:`FORMS`; reads the classes, and nothing else.

    Raises:
        FileNotFoundError: the file that has the classes is missing.
        ValueError: the name has another form or an unknown option, or the classes are unusable.
    """
    kind, places, options = _parse(name)
    paths = [_absolute(place) for place in places]
    files = {key: _absolute(options[key]) for key in ("labels", "ids") if key in options}
    images: dict[str, Any] = {"list_file": files.get("ids")}
    lister: Callable[..., list[dict[str, Any]]]
    paint: Callable[..., None]
    if kind == COCO_JSON:
        folder, images["choice"] = paths[1], options.get("classes", ALL)
        if not os.path.isfile(paths[0]):
            raise FileNotFoundError(f"data set {name!r}: there is no file {paths[0]}")
        _, class_names = json_classes(paths[0], images["choice"])
        paint = functools.partial(paint_own_json, paths[0], **images)
        lister = functools.partial(own_json_dicts, *paths, label_dir=files.get("labels"), **images)
    else:
        folder = paths[0]
        if "classes" not in options:
            raise ValueError(f"data set {name!r}: it needs classes=voc, coco, a file, or a number")
        class_names = read_class_names(os.path.expanduser(options["classes"]))
        if len(class_names) < 2 or not is_background(class_names[0]):
            raise ValueError(
                f"data set {name!r}: class 0 must be 'background', and others follow; classes= "
                f"begins with {class_names[0]!r}"
            )
        pairs = MapPairs(*paths, num_classes=len(class_names), **images)
        paint, lister = pairs.look, pairs.dicts
    return DatasetSpec(
        name,
        lister,
        Path(folder),
        class_names,
        "",
        SECTION,
        ensure=None if "labels" in files else paint,
        makes=cache_folder(),
        weak="labels" in files,
    )


def is_own(name: str) -> bool:
    """Return whether a name is meant as one of :data:`FORMS`."""
    return name.partition("@")[0] in FORMS and "@" in name


def split_class(name: str) -> tuple[str, str]:
    """Split a name into that of the data set and the class of a binary task, which may be empty.

    The class follows the last colon, unless a path goes on behind it.
    """
    base, _, category = name.rpartition(":")
    return (base, category) if base and not set(category) & set("/\\@,") else (name, "")


def _parse(name: str) -> tuple[str, list[str], dict[str, str]]:
    """Split a name into its kind, its paths and its options."""
    head, *rest = _COMMA.split(name)
    kind, *places = head.split("@")
    least, most = _PLACES[kind]
    form = f"data set {name!r}: expected {FORMS[kind]}"
    if not least <= len(places) <= most or not all(map(str.strip, places)):
        raise ValueError(f"{form}; got {len(places)} path(s) between '@'")
    options: dict[str, str] = {}
    for text in rest:
        key, _, value = (part.strip() for part in text.partition("="))
        look_up_option(f"data set {name!r}, option", key, _OPTIONS[kind])
        if key in options or not value:
            raise ValueError(f"{form}; {key}= {'is given twice' if value else 'has no value'}")
        options[key] = value
    return kind, places, options


def _absolute(path: str) -> str:
    """Take a path as it is, or below the folder of all data sets where it exists only there."""
    path = os.path.expanduser(path.strip())
    below = datasets_root() / path
    return os.path.abspath(below if not os.path.exists(path) and below.exists() else path)
