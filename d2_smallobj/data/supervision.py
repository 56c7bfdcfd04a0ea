"""Mixed supervision: some images have masks, the others boxes (docs/method.md#label-uncertainty).

Keys of a dataset dict that this module knows:

- ``supervision``: ``"mask"`` or ``"boxes"``; without it, the image has a mask as always;
- ``boxes``: the boxes of a box image, rows of (class id, left, top, right, bottom); see
  :mod:`d2_smallobj.annotations.boxes`. Without them they are derived from
  ``ins_seg_file_name`` and ``sem_seg_file_name``;
- ``label_rule``: how the values of the label files become classes.

Legend: H, W height and width of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from d2_smallobj.annotations.boxes import (
    IGNORE_LABEL,
    checked_boxes,
    classes_of_numbers,
    instance_boxes,
    number_boxes,
)
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.data.stream import StreamDataset
from d2_smallobj.data.supervision_split import stratified_split
from d2_smallobj.utils.options import look_up_option
from detectron2.config import CfgNode

SUPERVISIONS = ("mask", "boxes")
RESTS = ("boxes", "none")
_SHOWN = 10


def apply_supervision(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give training images the supervision that ``SMALLOBJ.SUPERVISION`` asks for.

    Args:
        cfg: the config.
        dicts: all training images.

    Returns:
        The images to train on, ``NUM_IMAGES`` of all. With ``MASK_FRACTION`` 1 they are as they
        were; if some have flags of their own, the others are flagged ``mask``. Below 1, the chosen
        images are flagged ``mask`` and come ``MASK_REPEAT`` times; the others are flagged
        ``boxes``, or left out (``REST none``).

    Raises:
        ValueError: a flag is unknown, an image lacks what its flag needs, images that are to be
            split have flags already, or a draw leaves a class without any image or mask.
    """
    node = cfg.SMALLOBJ.SUPERVISION
    dicts = list(dicts)
    if len(dicts) < node.NUM_IMAGES:
        raise ValueError(
            f"SMALLOBJ.SUPERVISION.NUM_IMAGES is {node.NUM_IMAGES}, but DATASETS.TRAIN has "
            f"{len(dicts)} image(s)"
        )
    classes = None
    if node.NUM_IMAGES:
        classes = _classes(dicts, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        drawn = _draw(cfg, "NUM_IMAGES", classes, node.NUM_IMAGES / len(dicts))
        dicts, classes = (
            [x for x, keep in zip(values, drawn) if keep] for values in (dicts, classes)
        )
    flagged = sum("supervision" in x for x in dicts)
    if node.MASK_FRACTION == 1:
        # Either all images of a batch have the maps that go with a flag, or none.
        dicts = [{"supervision": "mask", **x} for x in dicts] if flagged else dicts
        check_supervision(dicts)
        return dicts
    if flagged:
        raise ValueError(
            f"SMALLOBJ.SUPERVISION.MASK_FRACTION is {node.MASK_FRACTION}, but {flagged} image(s) "
            "of DATASETS.TRAIN say themselves whether they have a mask or boxes; set it to 1"
        )
    if classes is None:
        classes = _classes(dicts, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    keeps = _draw(cfg, "MASK_FRACTION", classes, node.MASK_FRACTION)
    masks = [{**x, "supervision": "mask"} for x, keep in zip(dicts, keeps) if keep]
    boxes = [{**x, "supervision": "boxes"} for x, keep in zip(dicts, keeps) if not keep]
    split = masks * node.MASK_REPEAT + (boxes if node.REST == "boxes" else [])
    check_supervision(split)
    return split


def _classes(dicts: Sequence[dict[str, Any]], num_classes: int) -> list[set[int]]:
    """The foreground classes of every image, which may mean reading every mask."""
    images = tqdm(dicts, desc="classes of the images", unit="image", disable=None)
    classes = [classes_of(x) for x in images]
    wrong = [
        f"{x.get('file_name')} ({max(image)})"
        for x, image in zip(dicts, classes)
        if max(image, default=0) >= num_classes
    ]
    if wrong:
        what = f"image(s) with classes beyond the model's 0..{num_classes - 1}"
        raise ValueError(_summary(what, wrong))
    return classes


def _draw(cfg: CfgNode, key: str, classes: Sequence[set[int]], share: float) -> np.ndarray:
    """Draw a share of the images, by class; errors name the key."""
    seed = cfg.SMALLOBJ.SUPERVISION.SPLIT_SEED
    try:
        return stratified_split(classes, share, max(cfg.SEED, 0) if seed < 0 else seed)
    except ValueError as error:
        raise ValueError(f"SMALLOBJ.SUPERVISION.{key}: {error}") from error


class SupervisedStream(StreamDataset):
    """A stream whose box images give way to mask images up to a position.

    The order of the stream stays as it is, and position alone decides what is read, so that a
    resumed run reads what the killed one would have read.

    Args:
        dicts: detectron2 dataset dicts.
        boxes_from: the first position at which images flagged ``boxes`` are used.

    Raises:
        ValueError: if box images shall give way and no image has a mask.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]], boxes_from: int) -> None:
        super().__init__(dicts)
        self.boxes_from = boxes_from
        self.masks = [x for x in dicts if x.get("supervision") != "boxes"]
        if boxes_from > 0 and not self.masks:
            raise ValueError(
                "SMALLOBJ.SUPERVISION.BOXES_FROM is above 0, but no training image has a mask to "
                "begin with; set it to 0"
            )

    def __getitem__(self, code: int) -> dict[str, Any]:
        x = super().__getitem__(code)
        if x["stream_position"] >= self.boxes_from or x.get("supervision") != "boxes":
            return x
        epoch, index = x["stream_position"] // len(self.dicts), int(code) % len(self.dicts)
        # Another one every time around, so that all masks are used alike.
        stand_in = self.masks[(index + epoch) % len(self.masks)]
        return {**stand_in, "stream_position": x["stream_position"]}


def first_box_position(cfg: CfgNode, images_per_step: int) -> int:
    """The stream position from which box images are used."""
    share = cfg.SMALLOBJ.SUPERVISION.BOXES_FROM
    return round(share * cfg.SOLVER.MAX_ITER) * images_per_step


def check_supervision(dicts: Sequence[Mapping[str, Any]]) -> None:
    """Check that every image has what its flag promises.

    Raises:
        ValueError: names the first ten images that have not, and how many there are.
    """
    problems: dict[str, list[str]] = {}
    for x in dicts:
        if "supervision" not in x:
            continue
        name = str(x.get("file_name"))
        flag = look_up_option(f"{name}: supervision", x["supervision"], SUPERVISIONS)
        if flag == "mask" and "sem_seg_file_name" not in x:
            problems.setdefault(
                "image(s) flagged 'mask' without a mask ('sem_seg_file_name')", []
            ).append(name)
        if flag == "boxes" and not _has_boxes(x):
            problems.setdefault(
                "image(s) flagged 'boxes' without boxes ('boxes', or 'ins_seg_file_name' with "
                "'sem_seg_file_name' to derive them from)",
                [],
            ).append(name)
    if problems:
        raise ValueError("; ".join(_summary(what, names) for what, names in problems.items()))


def classes_of(x: Mapping[str, Any]) -> set[int]:
    """The foreground classes of an image, from its boxes or else from its mask."""
    if "boxes" in x:
        return {int(row[0]) for row in x["boxes"] if row[0] > 0}
    if "sem_seg_file_name" not in x:
        raise ValueError(f"{x.get('file_name')}: it has neither boxes nor a mask to be split by")
    values = np.unique(_semantic(x))
    return set(values.tolist()) - {0, 255}


def supervised_labels(
    x: Mapping[str, Any],
    read_mask: Callable[[Mapping[str, Any]], np.ndarray],
    *,
    keep_true: bool,
    ignore_label: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Label map of a flagged image, and the maps that go with it.

    Ignored pixels of a mask are not carried over to the boxes of its image: the borders that VOC
    marks with 255 would tell the outlines.

    Args:
        x: its dataset dict, with ``height`` and ``width``.
        read_mask: reads the mask of a dict, checked.
        keep_true: whether to add the true labels of a box image, where its mask is known.
        ignore_label: for crowds, and for true labels that are not known.

    Returns:
        labels, int32 (H, W), and int32 (H, W) maps by name: ``doubtable``, the number of the box
        that a label comes from, 0 where it is certain; with ``keep_true`` also ``true_sem_seg``.

    Raises:
        ValueError: boxes are malformed; names the image.
    """
    if x["supervision"] == "mask":
        labels = read_mask(x)
        numbers, true_labels = np.zeros_like(labels), labels
    else:
        boxes = boxes_of(x)
        numbers = number_boxes(boxes, x["height"], x["width"])
        labels = classes_of_numbers(boxes, numbers).astype(np.int32)
        labels[labels == IGNORE_LABEL] = ignore_label
        true_labels = np.full_like(labels, ignore_label)
        if keep_true and "sem_seg_file_name" in x:
            true_labels = read_mask(x)
    maps = {"doubtable": numbers}
    if keep_true:
        maps["true_sem_seg"] = true_labels
    return labels, maps


def boxes_of(x: Mapping[str, Any]) -> np.ndarray:
    """The boxes of an image, checked and clipped: int32 (B, 5)."""
    if "boxes" in x:
        table, where = x["boxes"], f"{x['file_name']}: boxes"
    else:
        semantic, where = _semantic(x), x["ins_seg_file_name"]
        instances = read_label_map(where)
        if instances.shape != semantic.shape:
            raise ValueError(
                f"{where}: the instance map is {instances.shape[1]}x{instances.shape[0]}, "
                f"{x['sem_seg_file_name']} is {semantic.shape[1]}x{semantic.shape[0]} "
                "(width x height); they must agree"
            )
        if "label_rule" in x:
            instances = x["label_rule"].instances(instances, semantic)
        table = instance_boxes(semantic, instances)
    return checked_boxes(table, x["height"], x["width"], str(where))


def _semantic(x: Mapping[str, Any]) -> np.ndarray:
    """The classes of an image's label file."""
    path = x["sem_seg_file_name"]
    stored = read_label_map(path)
    return x["label_rule"].semantic(stored, path) if "label_rule" in x else stored


def _has_boxes(x: Mapping[str, Any]) -> bool:
    return "boxes" in x or ("ins_seg_file_name" in x and "sem_seg_file_name" in x)


def _summary(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"
