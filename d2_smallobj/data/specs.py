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
from d2_smallobj.demo.dataset import PREPARE_COMMAND, PSEUDO_LABELS, ensure_demo
from d2_smallobj.pseudo_labels.formats import METHODS as METHOD_FOLDERS
from d2_smallobj.utils.messages import itemized, look_up_option

IGNORE_LABEL = 255
EVALUATOR_TYPE = "smallobj_sem_seg"
SEPARATOR = ":"
"""Between a data set and the one class of it that a binary task keeps."""
ANY_CLASS = "any"
"""In place of the class: objects of all classes against the background."""
TRAINING_SETS = {
    "voc_2012_trainaug": "voc_2012_trainaug_gt",
    "smallobj_demo_train": "smallobj_demo_train",
    **{f"coco_{year}_train_81": f"coco_{year}_train_81_gt" for year in COCO_YEARS},
}
"""Sets that take label maps from any folder: the registered one by the name before ``@``."""

# Images of the published sets by the beginning of the name; of COCO's training sets those that have
# annotations (methods write labels for no others).
_PUBLISHED = {
    "voc_2012_trainaug": 10_582,
    "voc_2012_seg_val": 1_449,
    "coco_2014_train_81": 82_081,
    "coco_2014_val_81": 40_504,
    "coco_2017_train_81": 117_266,
    "coco_2017_val_81": 5_000,
    "cityscapes_vehicles_persons_train": 2_975,
    "cityscapes_vehicles_persons_val": 500,
}

_Lister = Callable[..., "list[dict[str, Any]]"]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set that can be registered; making one reads nothing."""

    name: str
    lister: _Lister  # lists its dicts, reading files; takes check
    folder: Path
    class_names: tuple[str, ...]  # background first
    command: str  # makes its files; empty if they must be downloaded
    section: str  # of datasets/README.md
    instances_json: str | None = None  # COCO file of its instances, where they are not PNGs
    ensure: Callable[..., None] | None = None  # makes its files if they are missing
    label_rule: LabelRule | None = None  # makes classes of the values of its label files
    makes: Path | None = None  # of a user's set: folder in which ``ensure`` makes files
    weak: bool = False  # whether its name gives label maps, which are no ground truth

    @property
    def published(self) -> int | None:
        """Number of images of the published set; ``None``: there is no such number."""
        found = (n for start, n in _PUBLISHED.items() if self.name.startswith(start))
        return next(found, None)

    @property
    def see(self) -> str:
        """Where its files come from."""
        return f'see datasets/README.md, section "{self.section}"'

    @property
    def prepare_command(self) -> str:
        """A sentence that says what to do when files are missing."""
        if not self.command:
            return f"How to get these files: {self.see}."
        return f"Prepare it with: {self.command} ({self.see})."

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


def with_labels(spec: DatasetSpec, name: str, folder: str) -> DatasetSpec:
    """Return a training set of this name with the label maps of another folder."""
    lister = functools.partial(spec.lister, label_dir=folder)
    command = spec.command if spec.ensure is not None else ""
    return dataclasses.replace(spec, name=name, lister=lister, command=command, weak=True)


def binary_spec(spec: DatasetSpec, category: str) -> DatasetSpec:
    """Make the binary task of one class of a data set, or of :data:`ANY_CLASS`.

    That class becomes class 1, all others background.
    """
    objects = spec.class_names[1:]
    class_id = None
    if category != ANY_CLASS:
        class_id = 1 + objects.index(look_up_option(f"class of {spec.name!r}", category, objects))
    rule = (spec.label_rule or identity_rule(len(spec.class_names))).only(class_id)

    def one_class(*, check: FileCheck) -> list[dict[str, Any]]:
        dicts = [{**record, "label_rule": rule} for record in spec.lister(check=check)]
        for record in dicts:
            if "boxes" in record:
                record["boxes"] = only_class(record["boxes"], class_id)
            if "image_classes" in record:
                found = record["image_classes"]
                record["image_classes"] = [1] * bool(class_id in found or (not class_id and found))
        return dicts

    return dataclasses.replace(
        spec,
        name=f"{spec.name}{SEPARATOR}{category}",
        class_names=("background", "object" if class_id is None else category),
        lister=one_class,
        label_rule=rule,
    )


# ---- Data sets with label maps ------------------------------------------------------------------


_MASKS: dict[str, Any] = {"label_dir": "SegmentationClass", "instance_dir": "SegmentationObject"}


def _demo_specs(root: Path) -> Iterator[DatasetSpec]:
    """The synthetic scenes; the first process that needs them makes them."""
    demo = root / DEMO_FOLDER
    folder, command = demo / VOC_FOLDER, f"{PREPARE_COMMAND} --force --root {demo}"
    for name, split, labels in (
        ("smallobj_demo_train", "train", {"label_dir": PSEUDO_LABELS}),
        ("smallobj_demo_train_gt", "train", _MASKS),
        ("smallobj_demo_val", "val", _MASKS),
    ):
        lister = functools.partial(voc_dicts, folder, split, **labels)
        ensure = functools.partial(ensure_demo, demo)
        yield DatasetSpec(name, lister, folder, DEMO_CLASS_NAMES, command, "Demo", ensure=ensure)


def _voc_specs(root: Path) -> Iterator[DatasetSpec]:
    """VOC-aug with pseudo labels or ground truth, VOC val, PASCAL-B."""
    voc, section = root / VOC_FOLDER, "VOC-aug and pseudo labels"

    def spec(name: str, split: str, command: str = "", **labels: Any) -> DatasetSpec:
        lister = functools.partial(voc_dicts, voc, split, **labels)
        return DatasetSpec(name, lister, voc, VOC_CLASS_NAMES, command, section)

    for method in METHODS:
        name, command = f"voc_2012_trainaug_{method}", _labels_command(method, root)
        yield spec(name, "trainaug", command, label_dir=voc_labels(method))
    yield spec("voc_2012_trainaug_gt", "trainaug", label_dir="SegmentationClassAug")
    yield spec("voc_2012_seg_val", "val", **_MASKS)
    command, folder = "python datasets/prepare_pascal_b.py", root / "pascal_b"
    lister = functools.partial(voc_dicts, folder, "val", list_file="val.txt", **_MASKS)
    yield DatasetSpec("pascal_b_val", lister, folder, VOC_CLASS_NAMES, command, "PASCAL-B")


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
        name = f"cityscapes_vehicles_persons_{split}"
        lister, rule = functools.partial(cityscapes_dicts, folder, split), cityscapes_rule()
        classes, section = CITYSCAPES_CLASS_NAMES, "Cityscapes"
        yield DatasetSpec(name, lister, folder, classes, "", section, label_rule=rule)


# ---- Data sets with boxes beside their masks, for mixed supervision -----------------------------


def _boxed_specs(root: Path, specs: Mapping[str, DatasetSpec]) -> Iterator[DatasetSpec]:
    """The training sets with true masks, whose dicts get the boxes of the annotations."""
    annotations = root / VOC_FOLDER / "Annotations"
    sets: dict[str, tuple[_Lister, Path]] = {"voc_2012_trainaug": (_with_voc_boxes, annotations)}
    for year in COCO_YEARS:
        sets[f"coco_{year}_train_81"] = _with_coco_boxes, coco_annotations(root, "train", year)
    for name, (with_boxes, path) in sets.items():
        masks = specs[f"{name}_gt"]
        boxed = functools.partial(with_boxes, masks.lister, path)
        yield dataclasses.replace(masks, name=f"{name}_mixed", lister=boxed)


def _with_voc_boxes(lister: _Lister, folder: Path, *, check: FileCheck) -> list[dict[str, Any]]:
    """List VOC's dicts with the boxes of ``Annotations/<id>.xml``."""
    dicts = lister(check=check)
    paths = [os.path.join(folder, f"{record['image_id']}.xml") for record in dicts]
    for path in paths:
        check.require(path)
    check.raise_if_missing()
    class_ids = {name: number for number, name in enumerate(VOC_CLASS_NAMES) if number}
    problems = []
    for record, path in zip(dicts, paths):
        try:
            record["boxes"], _ = read_voc_boxes(path, class_ids)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{check.data_set}: {itemized('bad annotation(s)', problems)}")
    return dicts


def _with_coco_boxes(lister: _Lister, path: Path, *, check: FileCheck) -> list[dict[str, Any]]:
    """List COCO's dicts with the boxes of the annotation file."""
    dicts = lister(check=check)
    boxes = coco_boxes(path)
    return [{**record, "boxes": boxes[record["image_id"]]} for record in dicts]
