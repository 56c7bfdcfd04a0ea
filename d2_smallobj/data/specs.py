"""The project's data sets: where their files are, how they are listed, what prepares them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, VOC_CLASS_NAMES
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
from d2_smallobj.demo.dataset import DEMO_CLASS_NAMES, PREPARE_COMMAND, PSEUDO_LABELS, ensure_demo
from d2_smallobj.pseudo_labels.formats import METHODS as METHOD_FOLDERS

IGNORE_LABEL = 255
EVALUATOR_TYPE = "smallobj_sem_seg"

_Lister = Callable[..., "list[dict[str, Any]]"]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set that can be registered; making one reads nothing.

    Attributes:
        name: its name in the catalogs.
        lister: lists its dicts, reading files; takes ``name``, ``prepare`` and ``check``.
        folder: the folder that holds it.
        class_names: names of its classes, background first.
        command: what makes its files; empty if they must be got elsewhere.
        section: of datasets/README.md, where the rest is told.
        instances_json: annotation file of its instances, where they are not PNGs.
        json_kind: ``"coco"`` or ``"lvis"``, with ``instances_json``.
        ensure: makes its files if they are missing; ``None`` if nothing does.
    """

    name: str
    lister: _Lister
    folder: Path
    class_names: tuple[str, ...]
    command: str
    section: str
    instances_json: str | None = None
    json_kind: str | None = None
    ensure: Callable[[], None] | None = None

    @property
    def prepare_command(self) -> str:
        """What to do when files are missing, a sentence."""
        see = f'see datasets/README.md, section "{self.section}"'
        if not self.command:
            return f"How to get these files: {see}."
        return f"Prepare it with: {self.command} ({see})."

    def load(self) -> list[dict[str, Any]]:
        """List the data set's dicts; what is missing is made if that is possible.

        Raises:
            FileNotFoundError: files are missing; names them and what to do.
            ValueError: a list or an annotation file is malformed.
        """
        if self.ensure is not None:
            self.ensure()
        return self.list_files()

    def list_files(self, check: FileCheck | None = None) -> list[dict[str, Any]]:
        """As :meth:`load`, without making anything; ``check`` notes what is missing."""
        return self.lister(name=self.name, prepare=self.prepare_command, check=check)

    def metadata(self) -> dict[str, Any]:
        """The entries for ``MetadataCatalog``."""
        palette = voc_palette()[: len(self.class_names)].tolist()
        entries = {
            "stuff_classes": list(self.class_names),
            "stuff_colors": [tuple(colour) for colour in palette],
            "num_classes": len(self.class_names),
            "ignore_label": IGNORE_LABEL,
            "evaluator_type": EVALUATOR_TYPE,
            # Its dicts name all instance maps; what else lies beside the images is none.
            "instances_listed": True,
            "dataset_root": os.fspath(self.folder),
            "prepare_command": self.prepare_command,
        }
        if self.instances_json is not None:
            entries.update(instances_json=self.instances_json, json_kind=self.json_kind)
        return entries


def all_specs(root: Path) -> Iterator[DatasetSpec]:
    """All data sets below ``root``."""
    yield from _demo_specs(root)
    yield from _voc_specs(root)
    yield from _coco_specs(root)


def training_sets(root: Path) -> dict[str, Callable[[str, str], DatasetSpec]]:
    """Training sets that take labels from any folder.

    Returns:
        By name of the set, a function that makes the data set of a name and a folder of labels.
    """
    makers: dict[str, Callable[[str, str], DatasetSpec]] = {
        "voc_2012_trainaug": functools.partial(_voc_training_set, root),
        "smallobj_demo_train": functools.partial(_demo_training_set, root),
    }
    for year in COCO_YEARS:
        makers[f"coco_{year}_train_81"] = functools.partial(_coco_training_set, root, year)
    return makers


_VOC, _COCO = "VOC-aug and pseudo labels", "COCO"


def _demo_specs(root: Path) -> Iterator[DatasetSpec]:
    """The synthetic scenes: made on first use by whichever process comes first."""
    for name, split, labels, instances in (
        ("smallobj_demo_train", "train", PSEUDO_LABELS, None),
        ("smallobj_demo_train_gt", "train", "SegmentationClass", "SegmentationObject"),
        ("smallobj_demo_val", "val", "SegmentationClass", "SegmentationObject"),
    ):
        yield _demo_spec(root, name, split, labels, instances)


def _demo_spec(
    root: Path, name: str, split: str, labels: str, instances: str | None = None
) -> DatasetSpec:
    demo = root / DEMO_FOLDER
    folder = demo / VOC_FOLDER
    return DatasetSpec(
        name,
        functools.partial(voc_dicts, folder, split, label_dir=labels, instance_dir=instances),
        folder,
        DEMO_CLASS_NAMES,
        f"{PREPARE_COMMAND} --force --root {demo}",
        "Demo",
        ensure=functools.partial(ensure_demo, demo),
    )


def _demo_training_set(root: Path, name: str, labels: str) -> DatasetSpec:
    return _demo_spec(root, name, "train", labels)


def _voc_training_set(root: Path, name: str, labels: str) -> DatasetSpec:
    return _voc_spec(root, name, labels)


def _voc_specs(root: Path) -> Iterator[DatasetSpec]:
    """VOC-aug with pseudo labels or ground truth, VOC val, PASCAL-B."""
    for method in METHODS:
        command = _labels_command(method, root)
        yield _voc_spec(root, f"voc_2012_trainaug_{method}", voc_labels(method), command)
    yield _voc_spec(root, "voc_2012_trainaug_gt", "SegmentationClassAug")
    instances = "SegmentationObject"
    yield _voc_spec(root, "voc_2012_seg_val", "SegmentationClass", split="val", instances=instances)
    lister = functools.partial(
        voc_dicts,
        root / "pascal_b",
        "val",
        label_dir="SegmentationClass",
        instance_dir=instances,
        list_file="val.txt",
    )
    command = "python datasets/prepare_pascal_b.py"
    yield DatasetSpec(
        "pascal_b_val", lister, root / "pascal_b", VOC_CLASS_NAMES, command, "PASCAL-B"
    )


def _voc_spec(
    root: Path,
    name: str,
    labels: str,
    command: str = "",
    *,
    split: str = "trainaug",
    instances: str | None = None,
) -> DatasetSpec:
    folder = root / VOC_FOLDER
    lister = functools.partial(voc_dicts, folder, split, label_dir=labels, instance_dir=instances)
    return DatasetSpec(name, lister, folder, VOC_CLASS_NAMES, command, _VOC)


def _coco_specs(root: Path) -> Iterator[DatasetSpec]:
    """COCO with 81 classes: training on label maps, evaluation on the annotation file."""
    folder = root / COCO_FOLDER
    for year in COCO_YEARS:
        for method in METHODS:
            labels = folder / coco_labels(method, year)
            command = f"{_labels_command(method, root)} --dataset coco_{year}"
            yield _coco_spec(root, f"coco_{year}_train_81_{method}", year, labels, command)
        labels = folder / "SegmentationClass81" / f"train{year}"
        command = f"python datasets/prepare_coco.py train{year} --root {folder}"
        yield _coco_spec(root, f"coco_{year}_train_81_gt", year, labels, command)
        yield _coco_spec(root, f"coco_{year}_val_81", year, None)


def _coco_spec(
    root: Path, name: str, year: str, labels: Path | str | None, command: str = ""
) -> DatasetSpec:
    """A training set with labels; without, the validation set."""
    split = "val" if labels is None else "train"
    annotations = coco_annotations(root, split, year)
    lister = functools.partial(
        coco_dicts,
        annotations,
        coco_images(root, split, year),
        class_names=COCO_CLASS_NAMES,
        label_dir=labels,
    )
    evaluated = {"instances_json": os.fspath(annotations), "json_kind": "coco"}
    more = evaluated if labels is None else {}
    return DatasetSpec(name, lister, root / COCO_FOLDER, COCO_CLASS_NAMES, command, _COCO, **more)


def _coco_training_set(root: Path, year: str, name: str, labels: str) -> DatasetSpec:
    return _coco_spec(root, name, year, labels)


def _labels_command(method: str, root: Path) -> str:
    """The command that prepares a method's labels."""
    folders = " ".join(f"{name.upper()}_FOLDER" for name in METHOD_FOLDERS[method].folders)
    return f"python datasets/prepare_pseudo_labels.py {method} {folders} --root {root}"
