"""Register the project's data sets with detectron2's catalogs.

Registration reads nothing. A data set's files are looked at when it is used; what is missing then
is one error that names the paths and the way to get them.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from d2_smallobj.annotations.dataset_files import datasets_root
from d2_smallobj.data.own_specs import FORMS, is_own, own_spec, split_class
from d2_smallobj.data.specs import (
    SEPARATOR,
    TRAINING_SETS,
    DatasetSpec,
    all_specs,
    binary_spec,
    with_labels,
)
from d2_smallobj.utils.messages import look_up_option
from detectron2.data import DatasetCatalog, MetadataCatalog

ALIASES = {"voc_2012_val": "voc_2012_seg_val"}
"""Other names of data sets, in configs and commands.

detectron2 registers a detection set as ``voc_2012_val``, which has no label maps. The catalogs keep
that one where it exists; in this package the name means the segmentation set.
"""

_registered: dict[str, DatasetSpec] = {}
_state: dict[str, Any] = {"root": None, "explicit": False}


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Register all data sets; calling it again is harmless.

    Args:
        root: the folder that holds all data sets. Default: the root of an earlier call that
            named one, else ``$DETECTRON2_DATASETS``, else ``datasets``. With another root than
            before, the data sets are registered anew.

    Raises:
        ValueError: other code has registered a data set under one of our names.
    """
    if root is None and _state["explicit"]:
        return
    explicit = root is not None
    root = datasets_root() if root is None else Path(root)
    _state["explicit"] = explicit
    if root == _state["root"]:
        return
    for name in list(_registered):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        del _registered[name]
    specs = all_specs(root)
    for spec in specs.values():
        if spec.name in DatasetCatalog.list():
            raise ValueError(
                f"data set name {spec.name!r} is already registered by other code; d2_smallobj "
                "needs it: rename the other one"
            )
        _register(spec)
    for alias, name in ALIASES.items():
        if alias not in DatasetCatalog.list():
            _register(dataclasses.replace(specs[name], name=alias))
    _state["root"] = root


def registered() -> dict[str, DatasetSpec]:
    """Return the data sets that this module registered, by name."""
    return dict(_registered)


def alias_hint(name: str) -> str:
    """Return the sentence that starts an error about an alias's files; empty for other names."""
    alias = name.partition(SEPARATOR)[0]
    if alias not in ALIASES:
        return ""
    return (
        f"{alias!r} stands for the segmentation set {ALIASES[alias]!r} here, since detectron2's "
        "detection set of that name has no label maps; `python -m d2_smallobj.data "
        f"{ALIASES[alias]}` lists the files that it needs, and reader= takes label maps from "
        "elsewhere. "
    )


def canonical_name(name: str) -> str:
    """Return the name under which the catalogs have a data set, and register it if need be.

    ``<training set>@<folder>``, e.g. ``voc_2012_trainaug@/data/mine``, is the training set with
    the label maps (``<image name>.png``) of any folder: absolute, or relative to the current one.
    ``<data set>:<class>``, e.g. ``coco_2017_val_81:person``, is the binary task of one class.
    Names of a user's own files are those of :mod:`d2_smallobj.data.own_specs`.

    An alias becomes the name of its data set; other names are returned whether they exist or not.

    Raises:
        ValueError: there is no such training set before ``@`` or no folder after it, or no such
            data set before ``:`` or no such class after it, or a user's files have other classes.
        FileNotFoundError: the file with the classes of a user's data set is missing.
    """
    register_all()
    name = ALIASES.get(name, name)
    if name in DatasetCatalog.list():
        return name
    base, at, folder = name.partition("@")
    if is_own(name):
        base, category = split_class(name)
        spec = _registered[base] if base in _registered else own_spec(base)
        if category:
            spec = binary_spec(spec, category)
    elif at:
        look_up_option(f"data set {name!r}, before '@'", base, [*TRAINING_SETS, *FORMS])
        if not folder:
            raise ValueError(f"data set {name!r}: '@' is followed by the folder of the label maps")
        folder = os.path.abspath(os.path.expanduser(folder))
        spec = with_labels(_registered[TRAINING_SETS[base]], name, folder)
    elif SEPARATOR in name:
        base, _, category = name.partition(SEPARATOR)
        base = ALIASES.get(base, base)
        look_up_option(f"data set {name!r}, before '{SEPARATOR}'", base, _registered)
        spec = binary_spec(_registered[base], category)
    else:
        return name
    if spec.name not in DatasetCatalog.list():
        _register(spec)
    return spec.name


def _register(spec: DatasetSpec) -> None:
    DatasetCatalog.register(spec.name, spec.load)
    MetadataCatalog.get(spec.name).set(**spec.metadata())
    _registered[spec.name] = spec
