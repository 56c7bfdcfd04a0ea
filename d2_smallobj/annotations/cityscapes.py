"""Cityscapes in its own layout, for the task "vehicles and persons" (SPEC 6).

::

    <root>/cityscapes/
      leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
      gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png
      gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_instanceIds.png

``labelIds`` hold the ids of the benchmark's 34 labels; ``instanceIds`` hold ``1000 * label + n``
on the n-th object of a label, and the label alone where objects were not told apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from d2_smallobj.annotations.files import FileCheck
from d2_smallobj.annotations.label_rules import LabelRule

CITYSCAPES_FOLDER = Path("cityscapes")
SPLITS = ("train", "val")
VEHICLES_AND_PERSONS = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""Label id of every class: the benchmark's categories "human" and "vehicle", as it scores them."""
CITYSCAPES_CLASS_NAMES = ("background", *VEHICLES_AND_PERSONS)

_NUM_LABELS = 34
# Labels that the benchmark itself leaves out: void, and rare ones such as caravan and trailer.
_NOT_SCORED = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30)
_INSTANCE_STEP = 1000
_IMAGE_SUFFIX = "_leftImg8bit.png"


def cityscapes_rule() -> LabelRule:
    """From label ids to the classes of :data:`CITYSCAPES_CLASS_NAMES`; 255 what is not scored."""
    classes = [0] * _NUM_LABELS
    for label in _NOT_SCORED:
        classes[label] = 255
    for class_id, label in enumerate(VEHICLES_AND_PERSONS.values(), start=1):
        classes[label] = class_id
    return LabelRule(tuple(classes), groups_below=_INSTANCE_STEP)


def cityscapes_dicts(
    root: str | os.PathLike[str],
    split: str,
    *,
    name: str | None = None,
    prepare: str = "See datasets/README.md for the layout and where the files come from.",
    check: FileCheck | None = None,
) -> list[dict[str, Any]]:
    """List a split in detectron2's format without opening an image.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``"train"`` or ``"val"``.
        name: the data set's name for messages; default: ``split``.
        prepare: what to do about missing files, a sentence for the message.
        check: notes which files are looked for and missing; default: a new one, of ``name`` and
            ``prepare``.

    Returns:
        One dict per image, by city and name: ``file_name``, ``image_id``
        (``<city>_<sequence>_<frame>``), ``sem_seg_file_name``, ``ins_seg_file_name`` and
        ``label_rule``.

    Raises:
        FileNotFoundError: files are missing; one error that names the first ten, how many there
            are, and ``prepare``.
    """
    images, truth = Path(root, "leftImg8bit", split), Path(root, "gtFine", split)
    check = check or FileCheck(name or split, prepare)
    if not (check.require_folder(images) & check.require_folder(truth)):
        check.raise_if_missing()
        return []
    rule = cityscapes_rule()
    dicts = []
    for path in sorted(images.glob(f"*/*{_IMAGE_SUFFIX}")):
        image_id = path.name[: -len(_IMAGE_SUFFIX)]
        labels = truth / path.parent.name / f"{image_id}_gtFine_labelIds.png"
        instances = labels.with_name(f"{image_id}_gtFine_instanceIds.png")
        for file in (path, labels, instances):
            check.require(file)
        dicts.append(
            {
                "file_name": os.fspath(path),
                "image_id": image_id,
                "sem_seg_file_name": os.fspath(labels),
                "ins_seg_file_name": os.fspath(instances),
                "label_rule": rule,
            }
        )
    check.raise_if_missing()
    return dicts
