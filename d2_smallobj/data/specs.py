"""Describe the project's data sets: their files, how they are listed, and what prepares them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from d2_smallobj.annotations.boxes import coco_boxes, only_class, read_voc_boxes
from d2_smallobj.annotations.cityscapes import (
    CITYSCAPES_CLASS_NAMES,
    CITYSCAPES_FOLDER,
    SPLITS,
    cityscapes_dicts,
    cityscapes_rule,
)
from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, DEMO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.annotations.dataset_files import (
    COCO_FOLDER,
    COCO_YEARS,
    DEMO_FOLDER,
    METHODS,
    VOC_FOLDER,
    FileCheck,
    coco_annotations,
    coco_images,
    coco_labels,
    voc_labels,
)
from d2_smallobj.annotations.image_lists import coco_dicts, voc_dicts
from d2_smallobj.annotations.label_maps import voc_palette
from d2_smallobj.annotations.label_rules import LabelRule, identity_rule
from d2_smallobj.demo.dataset import (
    PREPARE_COMMAND,
    PSEUDO_LABELS,
    ensure_demo,
)
from d2_smallobj.pseudo_labels.formats import METHODS as METHOD_FOLDERS
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.options import look_up_option

IGNORE_LABEL = 255
EVALUATOR_TYPE = "smallobj_sem_seg"
SEPARATOR = ":"
"""Between a data set and the one class of it that a binary task keeps."""
ANY_CLASS = "any"
"""In place of the class: objects of all classes against the background."""

_Lister = Callable[..., "list[dict[str, Any]]"]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set that can be registered; making one reads nothing.

    Attributes:
        name: its name in the catalogs.
        lister: lists its dicts, reading files; takes ``check``.
        folder: the folder that holds it.
        class_names: names of its classes, background first.
        command: the command that makes its files; empty if they must be downloaded.
        section: the section of datasets/README.md about it.
        instances_json: COCO file of its instances, where they are not PNGs.
        ensure: makes its files if they are missing; ``None`` if nothing does.
        label_rule: how the values of its label files become classes; ``None``: they are classes.
    """

    name: str
    lister: _Lister
    folder: Path
    class_names: tuple[str, ...]
    command: str
    section: str
    instances_json: str | None = None
    ensure: Callable[[], None] | None = None
    label_rule: LabelRule | None = None

    @property
    def prepare_command(self) -> str:
        """A sentence that says what to do when files are missing."""
        see = f'see datasets/README.md, section "{self.section}"'
        if not self.command:
            return f"How to get these files: {see}."
        return f"Prepare it with: {self.command} ({see})."

    def load(self) -> list[dict[str, Any]]:
        """List the data set's dicts; make missing files if that is possible."""
        if self.ensure is not None:
            self.ensure()
        return self.list_files()

    def list_files(self, check: FileCheck | None = None) -> list[dict[str, Any]]:
        """List the dicts without making files; ``check`` notes what is missing."""
        return self.lister(check=check or FileCheck(self.name, self.prepare_command))

    def metadata(self) -> dict[str, Any]:
        """Return the entries for ``MetadataCatalog``."""
        palette = voc_palette()[: len(self.class_names)].tolist()
        entries = {
            "stuff_classes": list(self.class_names),
            "stuff_colors": [tuple(colour) for colour in palette],
            "num_classes": len(self.class_names),
            "ignore_label": IGNORE_LABEL,
            "evaluator_type": EVALUATOR_TYPE,
            # Its dicts name all instance maps: none is looked for beside the images.
            "instances_listed": True,
            "dataset_root": os.fspath(self.folder),
            "prepare_command": self.prepare_command,
        }
        if self.instances_json is not None:
            entries.update(instances_json=self.instances_json, json_kind="coco")
        if self.label_rule is not None:
            entries["label_rule"] = self.label_rule
        return entries


def all_specs(root: Path) -> dict[str, DatasetSpec]:
    """Return all data sets below a folder, by name."""
    plain = [*_demo_specs(root), *_voc_specs(root), *_coco_specs(root), *_cityscapes_specs(root)]
    specs = {spec.name: spec for spec in plain}
    return specs | {spec.name: spec for spec in _boxed_specs(root, specs)}


def training_sets(specs: Mapping[str, DatasetSpec]) -> dict[str, DatasetSpec]:
    """Return the training sets that take label maps from any folder, by name without method."""
    return {
        "voc_2012_trainaug": specs["voc_2012_trainaug_gt"],
        "smallobj_demo_train": specs["smallobj_demo_train"],
        **{f"coco_{year}_train_81": specs[f"coco_{year}_train_81_gt"] for year in COCO_YEARS},
    }


def with_labels(spec: DatasetSpec, name: str, folder: str) -> DatasetSpec:
    """Return a training set of this name with the label maps of another folder."""
    lister = functools.partial(spec.lister, label_dir=folder)
    command = spec.command if spec.ensure is not None else ""
    return dataclasses.replace(spec, name=name, lister=lister, command=command)


def binary_spec(spec: DatasetSpec, category: str) -> DatasetSpec:
    """Make the binary task of one class of a data set, or of :data:`ANY_CLASS`.

    That class becomes class 1, all others background.
    """
    objects = spec.class_names[1:]
    class_id = None
    if category != ANY_CLASS:
        class_id = 1 + objects.index(look_up_option(f"class of {spec.name!r}", category, objects))
    rule = (spec.label_rule or identity_rule(len(spec.class_names))).only(class_id)
    return dataclasses.replace(
        spec,
        name=f"{spec.name}{SEPARATOR}{category}",
        class_names=("background", "object" if class_id is None else category),
        lister=functools.partial(_one_class, spec.lister, class_id, rule),
        label_rule=rule,
    )


def _one_class(
    lister: _Lister, class_id: int | None, rule: LabelRule, *, check: FileCheck
) -> list[dict[str, Any]]:
    """List a data set's dicts with one class only."""
    dicts = []
    for record in lister(check=check):
        boxes = {"boxes": only_class(record["boxes"], class_id)} if "boxes" in record else {}
        dicts.append({**record, **boxes, "label_rule": rule})
    return dicts


# ---- Data sets with label maps ------------------------------------------------------------------


def _demo_specs(root: Path) -> Iterator[DatasetSpec]:
    """The synthetic scenes; the first process that needs them makes them."""
    demo = root / DEMO_FOLDER
    folder = demo / VOC_FOLDER
    for name, split, labels, instances in (
        ("smallobj_demo_train", "train", PSEUDO_LABELS, None),
        ("smallobj_demo_train_gt", "train", "SegmentationClass", "SegmentationObject"),
        ("smallobj_demo_val", "val", "SegmentationClass", "SegmentationObject"),
    ):
        yield DatasetSpec(
            name,
            functools.partial(voc_dicts, folder, split, label_dir=labels, instance_dir=instances),
            folder,
            DEMO_CLASS_NAMES,
            f"{PREPARE_COMMAND} --force --root {demo}",
            "Demo",
            ensure=functools.partial(ensure_demo, demo),
        )


def _voc_specs(root: Path) -> Iterator[DatasetSpec]:
    """VOC-aug with pseudo labels or ground truth, VOC val, PASCAL-B."""

    def spec(
        name: str, folder: Path, split: str, labels: str, command: str = "", **more: Any
    ) -> DatasetSpec:
        lister = functools.partial(voc_dicts, folder, split, label_dir=labels, **more)
        section = "PASCAL-B" if name == "pascal_b_val" else "VOC-aug and pseudo labels"
        return DatasetSpec(name, lister, folder, VOC_CLASS_NAMES, command, section)

    voc, objects = root / VOC_FOLDER, {"instance_dir": "SegmentationObject"}
    for method in METHODS:
        command = _labels_command(method, root)
        name = f"voc_2012_trainaug_{method}"
        yield spec(name, voc, "trainaug", voc_labels(method), command, instance_dir=None)
    yield spec("voc_2012_trainaug_gt", voc, "trainaug", "SegmentationClassAug", instance_dir=None)
    yield spec("voc_2012_seg_val", voc, "val", "SegmentationClass", **objects)
    command = "python datasets/prepare_pascal_b.py"
    more = {**objects, "list_file": "val.txt"}
    yield spec("pascal_b_val", root / "pascal_b", "val", "SegmentationClass", command, **more)


def _coco_specs(root: Path) -> Iterator[DatasetSpec]:
    """COCO with 81 classes: training on label maps, evaluation on the annotation file."""
    folder = root / COCO_FOLDER

    def spec(
        name: str, split: str, year: str, labels: Path | str | None, command: str = ""
    ) -> DatasetSpec:
        annotations, images = coco_annotations(root, split, year), coco_images(root, split, year)
        lister = functools.partial(
            coco_dicts, annotations, images, class_names=COCO_CLASS_NAMES, label_dir=labels
        )
        json = os.fspath(annotations) if labels is None else None
        return DatasetSpec(name, lister, folder, COCO_CLASS_NAMES, command, "COCO", json)

    for year in COCO_YEARS:
        name = f"coco_{year}_train_81"
        for method in METHODS:
            command = f"{_labels_command(method, root)} --dataset coco_{year}"
            labels = folder / coco_labels(method, year)
            yield spec(f"{name}_{method}", "train", year, labels, command)
        command = f"python datasets/prepare_coco.py train{year} --root {folder}"
        labels = folder / "SegmentationClass81" / f"train{year}"
        yield spec(f"{name}_gt", "train", year, labels, command)
        yield spec(f"coco_{year}_val_81", "val", year, None)


def _labels_command(method: str, root: Path) -> str:
    """Return the command that prepares a method's labels."""
    folders = " ".join(f"{name.upper()}_FOLDER" for name in METHOD_FOLDERS[method].folders)
    return f"python datasets/prepare_pseudo_labels.py {method} {folders} --root {root}"


def _cityscapes_specs(root: Path) -> Iterator[DatasetSpec]:
    folder = root / CITYSCAPES_FOLDER
    for split in SPLITS:
        yield DatasetSpec(
            f"cityscapes_vehicles_persons_{split}",
            functools.partial(cityscapes_dicts, folder, split),
            folder,
            CITYSCAPES_CLASS_NAMES,
            command="",
            section="Cityscapes",
            label_rule=cityscapes_rule(),
        )


# ---- Data sets with boxes beside their masks, for mixed supervision -----------------------------


def _boxed_specs(root: Path, specs: Mapping[str, DatasetSpec]) -> Iterator[DatasetSpec]:
    """The training sets with true masks, whose dicts get the boxes of the annotations."""
    masks = specs["voc_2012_trainaug_gt"]
    annotations = root / VOC_FOLDER / "Annotations"
    boxed = functools.partial(_with_voc_boxes, masks.lister, annotations)
    yield dataclasses.replace(masks, name="voc_2012_trainaug_mixed", lister=boxed)
    for year in COCO_YEARS:
        masks = specs[f"coco_{year}_train_81_gt"]
        annotations = coco_annotations(root, "train", year)
        boxed = functools.partial(_with_coco_boxes, masks.lister, annotations)
        yield dataclasses.replace(masks, name=f"coco_{year}_train_81_mixed", lister=boxed)


def _with_voc_boxes(lister: _Lister, folder: Path, *, check: FileCheck) -> list[dict[str, Any]]:
    """List VOC's dicts with the boxes of ``Annotations/<id>.xml``."""
    dicts = lister(check=check)
    paths = [os.path.join(folder, f"{record['image_id']}.xml") for record in dicts]
    for path in paths:
        check.require(path)
    check.raise_if_missing()
    class_ids = {name: number for number, name in enumerate(VOC_CLASS_NAMES) if number}
    boxed, problems = [], []
    for record, path in zip(dicts, paths):
        try:
            boxed.append({**record, "boxes": read_voc_boxes(path, class_ids)[0]})
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{check.data_set}: {itemized('bad annotation(s)', problems)}")
    return boxed


def _with_coco_boxes(
    lister: _Lister, annotations: Path, *, check: FileCheck
) -> list[dict[str, Any]]:
    """List COCO's dicts with the boxes of the annotation file."""
    dicts = lister(check=check)
    boxes = coco_boxes(annotations)
    return [{**record, "boxes": boxes[record["image_id"]]} for record in dicts]
