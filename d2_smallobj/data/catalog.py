"""Registration of the project's data sets with detectron2's catalogs.

Nothing is read when data sets are registered: a data set's files are looked at when it is used,
and what is missing then is one error that names the paths and the way to get them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2_smallobj.annotations.class_names import COCO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.annotations.coco_lists import coco_dicts
from d2_smallobj.annotations.demo import (
    DEMO_CLASS_NAMES,
    PREPARE_COMMAND,
    PSEUDO_LABELS,
    ensure_demo,
)
from d2_smallobj.annotations.label_maps import voc_palette
from d2_smallobj.annotations.voc import voc_dicts
from detectron2.data import DatasetCatalog, MetadataCatalog

IGNORE_LABEL = 255
EVALUATOR_TYPE = "smallobj_sem_seg"
VOC_METHODS = ("irn", "cda", "amn", "rib", "clims", "rca", "edam", "nsrom", "bana", "bbam")
"""Pseudo-label methods on VOC: ``voc_2012_trainaug_<method>``."""
COCO_METHODS = ("irn", "rib")
"""Pseudo-label methods on COCO: ``coco_<year>_train_81_<method>``."""
COCO_YEARS = ("2014", "2017")
DEMO_FOLDER = "smallobj_demo"
"""The demo's folder below the data sets' root."""

_README = "see datasets/README.md, section"


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A registered data set.

    Attributes:
        name: its name in the catalogs.
        load: lists its dicts; reads files.
        folder: the folder that holds it.
        class_names: names of its classes, background first.
        prepare_command: what to do when files are missing, a sentence.
        instances_json: annotation file of its instances, where they are not PNGs.
        json_kind: ``"coco"`` or ``"lvis"``, with ``instances_json``.
    """

    name: str
    load: Callable[[], list[dict[str, Any]]]
    folder: Path
    class_names: tuple[str, ...]
    prepare_command: str
    instances_json: str | None = None
    json_kind: str | None = None

    def metadata(self) -> dict[str, Any]:
        """The entries for ``MetadataCatalog``."""
        palette = voc_palette()[: len(self.class_names)].tolist()
        entries = {
            "stuff_classes": list(self.class_names),
            "stuff_colors": [tuple(colour) for colour in palette],
            "num_classes": len(self.class_names),
            "ignore_label": IGNORE_LABEL,
            "evaluator_type": EVALUATOR_TYPE,
            "dataset_root": os.fspath(self.folder),
            "prepare_command": self.prepare_command,
        }
        if self.instances_json is not None:
            entries.update(instances_json=self.instances_json, json_kind=self.json_kind)
        return entries


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
    root = Path(root if explicit else os.environ.get("DETECTRON2_DATASETS", "datasets"))
    _state["explicit"] = explicit
    if root == _state["root"]:
        return
    for name in list(_registered):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        del _registered[name]
    for spec in _specs(root):
        if spec.name in DatasetCatalog.list():
            raise ValueError(
                f"data set name {spec.name!r} is already registered by other code; d2_smallobj "
                "needs it: rename the other one"
            )
        DatasetCatalog.register(spec.name, spec.load)
        MetadataCatalog.get(spec.name).set(**spec.metadata())
        _registered[spec.name] = spec
    _state["root"] = root


def registered() -> dict[str, DatasetSpec]:
    """The data sets that :func:`register_all` registered, by name."""
    return dict(_registered)


def _specs(root: Path) -> Iterator[DatasetSpec]:
    """All data sets below ``root``."""
    yield from _demo_specs(root)
    yield from _voc_specs(root)
    yield from _coco_specs(root)


def _voc_spec(
    name: str,
    folder: Path,
    class_names: tuple[str, ...],
    prepare: str,
    split: str,
    label_dir: str,
    *,
    instance_dir: str | None = None,
    list_file: str | None = None,
    demo_root: Path | None = None,
) -> DatasetSpec:
    """A data set in the VOC layout; one with ``demo_root`` is made on first use."""
    load = functools.partial(
        _load_voc,
        folder,
        split,
        label_dir=label_dir,
        instance_dir=instance_dir,
        list_file=list_file,
        name=name,
        prepare=prepare,
        demo_root=demo_root,
    )
    return DatasetSpec(name, load, folder, class_names, prepare)


def _load_voc(
    folder: Path, split: str, *, demo_root: Path | None, **options: Any
) -> list[dict[str, Any]]:
    """Make the demo if this is it, then list the data set."""
    if demo_root is not None:
        ensure_demo(demo_root)
    return voc_dicts(folder, split, **options)


def _demo_specs(root: Path) -> Iterator[DatasetSpec]:
    """The synthetic scenes: made on first use by whichever process comes first."""
    demo_root = root / DEMO_FOLDER
    folder = demo_root / "VOCdevkit" / "VOC2012"
    prepare = f"Prepare it with: {PREPARE_COMMAND} --force --root {demo_root}"
    for name, split, labels, instances in (
        ("smallobj_demo_train", "train", PSEUDO_LABELS, None),
        ("smallobj_demo_train_gt", "train", "SegmentationClass", "SegmentationObject"),
        ("smallobj_demo_val", "val", "SegmentationClass", "SegmentationObject"),
    ):
        yield _voc_spec(
            name,
            folder,
            DEMO_CLASS_NAMES,
            prepare,
            split,
            labels,
            instance_dir=instances,
            demo_root=demo_root,
        )


def _voc_specs(root: Path) -> Iterator[DatasetSpec]:
    """VOC-aug with pseudo labels or ground truth, VOC val, PASCAL-B."""
    folder = root / "VOCdevkit" / "VOC2012"
    prepare = f'How to get these files: {_README} "VOC-aug and pseudo labels".'
    for method in VOC_METHODS:
        yield _voc_spec(
            f"voc_2012_trainaug_{method}",
            folder,
            VOC_CLASS_NAMES,
            prepare,
            "trainaug",
            f"PseudoLabels/{method}",
        )
    yield _voc_spec(
        "voc_2012_trainaug_gt",
        folder,
        VOC_CLASS_NAMES,
        prepare,
        "trainaug",
        "SegmentationClassAug",
    )
    # Not "voc_2012_val": detectron2 registers its detection set under that name.
    yield _voc_spec(
        "voc_2012_seg_val",
        folder,
        VOC_CLASS_NAMES,
        prepare,
        "val",
        "SegmentationClass",
        instance_dir="SegmentationObject",
    )
    yield _voc_spec(
        "pascal_b_val",
        root / "pascal_b",
        VOC_CLASS_NAMES,
        f'How to get these files: {_README} "PASCAL-B".',
        "val",
        "SegmentationClass",
        instance_dir="SegmentationObject",
        list_file="val.txt",
    )


def _coco_specs(root: Path) -> Iterator[DatasetSpec]:
    """COCO with 81 classes: training on label maps, evaluation on the annotation file."""
    folder = root / "coco"
    prepare = f'How to get these files: {_README} "COCO".'
    for year in COCO_YEARS:
        sets = [
            (f"coco_{year}_train_81_{method}", "train", f"PseudoLabels/{method}_{year}")
            for method in COCO_METHODS
        ]
        sets += [
            (f"coco_{year}_train_81_gt", "train", f"SegmentationClass81/train{year}"),
            (f"coco_{year}_val_81", "val", None),
        ]
        for name, split, labels in sets:
            annotations = folder / "annotations" / f"instances_{split}{year}.json"
            evaluated = labels is None
            load = functools.partial(
                coco_dicts,
                annotations,
                folder / f"{split}{year}",
                class_names=COCO_CLASS_NAMES,
                label_dir=None if evaluated else folder / labels,
                name=name,
                prepare=prepare,
            )
            yield DatasetSpec(
                name,
                load,
                folder,
                COCO_CLASS_NAMES,
                prepare,
                os.fspath(annotations) if evaluated else None,
                "coco" if evaluated else None,
            )
