"""Read Cityscapes: the 19 classes of its benchmark, or vehicles and persons only.

::

    <root>/cityscapes/
      leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
      gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png
      gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_instanceIds.png

``labelIds`` hold the ids of the benchmark's 34 labels; ``instanceIds`` hold ``1000 * label + n``
on the n-th object of a label, and the label alone where objects are not separated.
``labelTrainIds``, which the benchmark's own scripts make, hold classes 0..18 and 255.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.label_rules import (
    VOID,
    LabelRule,
    fit_instances,
    thing_pixels,
    unique_by_runs,
)
from d2_smallobj.utils.messages import listed

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
BENCHMARK_LABELS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    **VEHICLES_AND_PERSONS,
}
"""Label id of every class of the benchmark; position = train id."""
_TRAIN_IDS = {label: number for number, label in enumerate(BENCHMARK_LABELS.values())}
BENCHMARK_STUFF = tuple(range(11))
"""Train ids of the classes without instances."""

_NUM_LABELS = 34
# Labels that the benchmark itself leaves out: void, and rare ones such as caravan and trailer.
_NOT_SCORED = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30)
_INSTANCE_STEP = 1000
_IMAGE_SUFFIX = "_leftImg8bit.png"
_LABEL_FILE = re.compile(r"(.+_gt(?:Fine|Coarse))_label(?:Train)?Ids\.png")
_SUFFIX = re.compile(r"_(leftImg8bit|gt(Fine|Coarse)_(label|labelTrain|instance)Ids)$")


def cityscapes_rule() -> LabelRule:
    """Map label ids to the classes of :data:`CITYSCAPES_CLASS_NAMES`; 255: not scored."""
    classes = [0] * _NUM_LABELS
    for label in _NOT_SCORED:
        classes[label] = 255
    for class_id, label in enumerate(VEHICLES_AND_PERSONS.values(), start=1):
        classes[label] = class_id
    return LabelRule(tuple(classes), groups_below=_INSTANCE_STEP)


def benchmark_rule() -> LabelRule:
    """Map label ids to train ids; 255: not scored by the benchmark."""
    return LabelRule(tuple(_TRAIN_IDS.get(label, 255) for label in range(_NUM_LABELS)))


def predicted_train_ids(labels: np.ndarray, where: str) -> np.ndarray:
    """Convert a prediction of label ids (H, W) to train ids, uint8.

    Raises:
        ValueError: the prediction ``where`` has a label that the benchmark does not score.
    """
    # Label 0 is one of those that are not scored.
    known = np.where((labels >= 0) & (labels < _NUM_LABELS), labels, 0)
    train_ids = np.array(benchmark_rule().classes, np.uint8)[known]
    wrong = train_ids == 255
    if wrong.any():
        raise ValueError(
            f"{where}: predictions with --prediction-ids label hold the 19 labels that the "
            f"benchmark scores ({', '.join(map(str, _TRAIN_IDS))}), got "
            f"{listed(np.unique(labels[wrong]))} in {np.count_nonzero(wrong)} px; are they train "
            "ids?"
        )
    return train_ids


def bare_name(stem: str) -> str:
    """``<city>_<sequence>_<frame>``, without the suffix that tells what the file holds."""
    return _SUFFIX.sub("", stem)


def instance_ids_beside(label_file: str) -> str | None:
    """Return the path of the instance map beside a semantic map; ``None`` for other files."""
    match = _LABEL_FILE.fullmatch(label_file)
    return f"{match.group(1)}_instanceIds.png" if match else None


def label_classes(class_names: Sequence[str]) -> dict[int, int] | None:
    """Map label ids to classes; ``None`` if the classes are not the benchmark's.

    Nineteen classes of other names are taken for the train ids.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    named = {label: numbers[n] for n, label in BENCHMARK_LABELS.items() if n in numbers}
    if set(VEHICLES_AND_PERSONS.values()) <= set(named):
        return named
    return _TRAIN_IDS if len(class_names) == len(_TRAIN_IDS) else None


def cityscapes_instances(
    semantic: np.ndarray,
    stored: np.ndarray,
    classes: Mapping[int, int] | None,
    *,
    stuff: Collection[int],
    ignore_label: int,
    source: str,
) -> np.ndarray:
    """Read an ``instanceIds`` map beside the semantic map of its image.

    Args:
        semantic: (H, W) classes and ``ignore_label``.
        stored: (H, W), as the file has it.
        classes: class of every label id that is one; ``None``: unknown.
        stuff: ids of the classes without instances.
        ignore_label: label of ignored pixels.
        source: the two files, for messages.

    Returns:
        int32 (H, W): 0 = no instance, 255 = void and groups of objects.

    Raises:
        ValueError: most labels of the two maps differ, or as :func:`.label_rules.fit_instances`.
    """
    # An image without instances may be stored in 8 bits.
    stored = stored.astype(np.int32, copy=False)
    separated = stored >= _INSTANCE_STEP
    instances = np.where(separated, stored, 0)
    if stored.shape == semantic.shape:
        if classes is not None:
            _check_labels(semantic, stored, classes, ignore_label, source)
        instances[thing_pixels(semantic, stuff, ignore_label) & ~separated] = VOID
    # A label of the file that is no class is one of those that are not scored.
    ids = unique_by_runs(stored[separated])[0].tolist()
    known = None
    if classes is not None:
        known = {number: classes.get(number // _INSTANCE_STEP, -1) for number in ids}
    return fit_instances(
        semantic, instances, known, stuff=stuff, ignore_label=ignore_label, source=source
    )


def _check_labels(
    semantic: np.ndarray,
    stored: np.ndarray,
    classes: Mapping[int, int],
    ignore_label: int,
    source: str,
) -> None:
    """Refuse an instance map whose labels are not those of the semantic map."""
    table = np.full(max(int(stored.max()), _NUM_LABELS) + 1, -1, np.int32)
    for label, class_id in classes.items():
        table[label] = class_id
    # One table from what is stored: a division for every pixel costs more than all the rest.
    values = np.arange(int(stored.max()) + 1)
    table = table[np.where(values >= _INSTANCE_STEP, values // _INSTANCE_STEP, values)]
    valid = semantic != ignore_label
    same = int(np.count_nonzero((table[stored] == semantic) & valid))
    total = int(np.count_nonzero(valid))
    if 2 * same < total:
        raise ValueError(
            f"{source}: only {same} of {total} pixels have the same label in both; do the files "
            "belong to the same image?"
        )


def cityscapes_dicts(
    root: str | os.PathLike[str],
    split: str,
    *,
    check: FileCheck | None = None,
) -> list[dict[str, Any]]:
    """List a split (``"train"``, ``"val"``) in detectron2's format without opening an image.

    ``root`` holds ``leftImg8bit`` and ``gtFine``; see :func:`.image_lists.voc_dicts` for the other
    arguments. Returns one dict per image, by city and name: ``file_name``, ``image_id``
    (``<city>_<sequence>_<frame>``), ``sem_seg_file_name``, ``ins_seg_file_name``, ``label_rule``.

    Raises:
        FileNotFoundError: files are missing; one error for all.
    """
    images, truth = Path(root, "leftImg8bit", split), Path(root, "gtFine", split)
    check = check or FileCheck(split)
    if not (check.require_folder(images) & check.require_folder(truth)):
        check.raise_if_missing()
        return []
    rule = cityscapes_rule()
    dicts = []
    for path in sorted(images.glob(f"*/*{_IMAGE_SUFFIX}")):
        image_id = path.name[: -len(_IMAGE_SUFFIX)]
        stem = truth / path.parent.name / f"{image_id}_gtFine"
        files = {
            "file_name": os.fspath(path),
            "sem_seg_file_name": f"{stem}_labelIds.png",
            "ins_seg_file_name": f"{stem}_instanceIds.png",
        }
        for file in files.values():
            check.require(file)
        dicts.append({**files, "image_id": image_id, "label_rule": rule})
    check.raise_if_missing()
    return dicts
