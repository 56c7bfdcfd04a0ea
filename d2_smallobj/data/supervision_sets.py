"""Data sets for mixed supervision: with boxes beside their masks, or of one class only."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
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
from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.dataset_files import (
    COCO_YEARS,
    VOC_FOLDER,
    FileCheck,
    coco_annotations,
)
from d2_smallobj.annotations.label_rules import LabelRule, identity_rule
from d2_smallobj.data.specs import DatasetSpec
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.options import look_up_option

SEPARATOR = ":"
"""Between a data set and the one class of it that a binary task keeps."""
ANY_CLASS = "any"
"""In place of the class: objects of all classes against the background."""

_Lister = Callable[..., "list[dict[str, Any]]"]


@dataclasses.dataclass(frozen=True)
class RuledSpec(DatasetSpec):
    """A data set whose label files hold other values than class ids.

    Attributes:
        label_rule: how they become classes; also in the metadata, for the evaluator.
    """

    label_rule: LabelRule | None = None

    def metadata(self) -> dict[str, Any]:
        """The entries for ``MetadataCatalog``."""
        return {**super().metadata(), "label_rule": self.label_rule}


def supervision_specs(root: Path, known: dict[str, DatasetSpec]) -> Iterator[DatasetSpec]:
    """The data sets of this module.

    Args:
        root: the folder of all data sets.
        known: the other data sets by name, of which those with true masks get boxes here.
    """
    masks = known["voc_2012_trainaug_gt"]
    annotations = root / VOC_FOLDER / "Annotations"
    boxed = functools.partial(_with_voc_boxes, masks.lister, annotations)
    yield dataclasses.replace(masks, name="voc_2012_trainaug_mixed", lister=boxed)
    for year in COCO_YEARS:
        masks = known[f"coco_{year}_train_81_gt"]
        annotations = coco_annotations(root, "train", year)
        boxed = functools.partial(_with_coco_boxes, masks.lister, annotations)
        yield dataclasses.replace(masks, name=f"coco_{year}_train_81_mixed", lister=boxed)
    for split in SPLITS:
        folder = root / CITYSCAPES_FOLDER
        yield RuledSpec(
            name=f"cityscapes_vehicles_persons_{split}",
            lister=functools.partial(cityscapes_dicts, folder, split),
            folder=folder,
            class_names=CITYSCAPES_CLASS_NAMES,
            command="",
            section="Cityscapes",
            label_rule=cityscapes_rule(),
        )


def binary_spec(spec: DatasetSpec, category: str) -> DatasetSpec:
    """The binary task "is it this class" on a data set.

    Args:
        spec: the data set.
        category: one of its classes, which becomes class 1, all others background; or
            :data:`ANY_CLASS`.

    Raises:
        ValueError: it has no such class; names the closest.
    """
    objects = spec.class_names[1:]
    class_id = None
    if category != ANY_CLASS:
        class_id = 1 + objects.index(look_up_option(f"class of {spec.name!r}", category, objects))
    rule = getattr(spec, "label_rule", None) or identity_rule(len(spec.class_names))
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(DatasetSpec)}
    fields |= {
        "name": f"{spec.name}{SEPARATOR}{category}",
        "class_names": ("background", "object" if class_id is None else category),
        "lister": functools.partial(_one_class, spec.lister, class_id, rule.only(class_id)),
    }
    return RuledSpec(**fields, label_rule=rule.only(class_id))


def _one_class(
    lister: _Lister, class_id: int | None, rule: LabelRule, **arguments: Any
) -> list[dict[str, Any]]:
    """A data set's dicts with one class only."""
    dicts = []
    for record in lister(**arguments):
        boxes = {"boxes": only_class(record["boxes"], class_id)} if "boxes" in record else {}
        dicts.append({**record, **boxes, "label_rule": rule})
    return dicts


def _with_voc_boxes(
    lister: _Lister, folder: Path, *, check: FileCheck | None = None, **arguments: Any
) -> list[dict[str, Any]]:
    """VOC's dicts with the boxes of ``Annotations/<id>.xml``."""
    check = check or FileCheck(arguments["name"], arguments["prepare"])
    dicts = lister(check=check, **arguments)
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
        raise ValueError(f"{arguments['name']}: {itemized('bad annotation(s)', problems)}")
    return boxed


def _with_coco_boxes(lister: _Lister, annotations: Path, **arguments: Any) -> list[dict[str, Any]]:
    """COCO's dicts with the boxes of the annotation file."""
    dicts = lister(**arguments)
    boxes = coco_boxes(annotations)
    return [{**record, "boxes": boxes[record["image_id"]]} for record in dicts]
