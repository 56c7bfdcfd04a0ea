"""Mixed supervision: some images have masks, the others boxes (docs/method.md#label-uncertainty).

Keys of a dataset dict that this module knows:

- ``supervision``: ``"mask"`` or ``"boxes"``; without it, the image has a mask;
- ``boxes``: a table as in :mod:`d2_smallobj.annotations.boxes`; without it, boxes are derived from
  ``ins_seg_file_name`` and ``sem_seg_file_name``;
- ``label_rule``: how the values of the label files become classes;
- ``no_masks``: why it has no ``sem_seg_file_name``, in a sentence.

Legend: H, W height and width of the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
from tqdm import tqdm

from d2_smallobj.annotations.boxes import (
    IGNORE_LABEL,
    checked_boxes,
    classes_of_numbers,
    classes_on_pixels,
    instance_boxes,
    number_boxes,
)
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.annotations.label_rules import check_label_values
from d2_smallobj.utils.messages import listed, look_up_option
from detectron2.config import CfgNode

SUPERVISIONS = ("mask", "boxes")
_MAPS = {"ins_seg_file_name", "sem_seg_file_name"}


# ---- Flags -------------------------------------------------------------------------------------


def apply_supervision(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give training images the supervision that ``SMALLOBJ.SUPERVISION`` asks for.

    Args:
        cfg: the config.
        dicts: all training images.

    Returns:
        The images to train on, ``NUM_IMAGES`` of all. With ``MASK_FRACTION`` 1 they are as they
        were; if some have flags of their own, the others are flagged ``mask``. Images of a set
        that has boxes only are flagged ``boxes`` beside a set with masks. Below 1, the chosen
        images are flagged ``mask`` and come ``MASK_REPEAT`` times; the others are flagged
        ``boxes``, or left out (``REST none``).

    Raises:
        ValueError: a flag is unknown, an image lacks what its flag needs, images that are to be
            split have flags already, or a draw leaves a class without any image or mask.
    """
    node = cfg.SMALLOBJ.SUPERVISION
    number, fraction = node.NUM_IMAGES, node.MASK_FRACTION
    if any("no_masks" not in x for x in dicts):
        boxed = {"supervision": "boxes"}
        dicts = [{**boxed, **x} if x.keys() >= {"no_masks", "boxes"} else x for x in dicts]
    flagged = sum("supervision" in x for x in dicts)
    if len(dicts) < number:
        raise ValueError(
            f"SMALLOBJ.SUPERVISION.NUM_IMAGES is {number}, but DATASETS.TRAIN has {len(dicts)} "
            "image(s)"
        )
    if flagged and fraction < 1:
        raise ValueError(
            f"SMALLOBJ.SUPERVISION.MASK_FRACTION is {fraction}, but {flagged} image(s) of "
            "DATASETS.TRAIN have a 'supervision' flag of their own; set it to 1"
        )
    kept = list(dicts)
    if number or fraction < 1:
        classes = _classes(kept, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    if number:
        drawn = _draw(cfg, "NUM_IMAGES", classes, number / len(kept))
        kept, classes = list(compress(kept, drawn)), list(compress(classes, drawn))
    if fraction < 1:
        drawn = _draw(cfg, "MASK_FRACTION", classes, fraction)
        masks = [{**x, "supervision": "mask"} for x in compress(kept, drawn)]
        boxes = [{**x, "supervision": "boxes"} for x in compress(kept, ~drawn)]
        kept = masks * node.MASK_REPEAT + (boxes if node.REST == "boxes" else [])
    elif any("supervision" in x for x in kept):
        # Either all images of a batch have the maps that go with a flag, or none.
        kept = [{"supervision": "mask", **x} for x in kept]
    check_supervision(kept)
    return kept


def check_supervision(dicts: Sequence[Mapping[str, Any]]) -> None:
    """Check that every image has what its flag promises; a ValueError names those that lack it."""
    no_masks, no_boxes = [], []
    for x in dicts:
        if "no_masks" in x and x.get("supervision") != "boxes":
            raise ValueError(f"DATASETS.TRAIN: there is nothing to train on: {x['no_masks']}")
        if "supervision" not in x:
            continue
        name = str(x.get("file_name"))
        flag = look_up_option(f"{name}: supervision", x["supervision"], SUPERVISIONS)
        if flag == "mask" and "sem_seg_file_name" not in x:
            no_masks.append(name)
        if flag == "boxes" and "boxes" not in x and not x.keys() >= _MAPS:
            no_boxes.append(name)
    problems = {
        "image(s) flagged 'mask' without a mask ('sem_seg_file_name')": no_masks,
        "image(s) flagged 'boxes' without boxes ('boxes', or 'ins_seg_file_name' with "
        "'sem_seg_file_name' to derive them from)": no_boxes,
    }
    found = [f"{len(x)} {what}: {listed(x)}" for what, x in problems.items() if x]
    if found:
        raise ValueError("; ".join(found))


def classes_of(x: Mapping[str, Any]) -> set[int]:
    """Return the foreground classes of an image, from its boxes or else from its mask."""
    if "boxes" in x:
        return {int(row[0]) for row in x["boxes"] if row[0] > 0}
    if "sem_seg_file_name" not in x:
        raise ValueError(f"{x.get('file_name')}: it has neither boxes nor a mask to be split by")
    return set(np.unique(read_semantic(x)).tolist()) - {0, IGNORE_LABEL}


def _classes(dicts: Sequence[dict[str, Any]], num_classes: int) -> list[set[int]]:
    """List the foreground classes of every image, which may mean reading every mask."""
    images = tqdm(dicts, desc="classes of the images", unit="image", disable=None)
    classes = [classes_of(x) for x in images]
    largest = [max(image, default=0) for image in classes]
    wrong = [f"{x.get('file_name')} ({c})" for x, c in zip(dicts, largest) if c >= num_classes]
    if wrong:
        what = f"image(s) with classes beyond the model's 0..{num_classes - 1}"
        raise ValueError(f"{len(wrong)} {what}: {listed(wrong)}")
    return classes


# ---- The split ---------------------------------------------------------------------------------


def _draw(cfg: CfgNode, key: str, classes: Sequence[set[int]], share: float) -> np.ndarray:
    """Draw a share of the images, by class; errors name the key."""
    seed = cfg.SMALLOBJ.SUPERVISION.SPLIT_SEED
    try:
        return stratified_split(classes, share, max(cfg.SEED, 0) if seed < 0 else seed)
    except ValueError as error:
        raise ValueError(f"SMALLOBJ.SUPERVISION.{key}: {error}") from error


def stratified_split(classes: Sequence[Collection[int]], fraction: float, seed: int) -> np.ndarray:
    """Choose a fraction of the images so that every class keeps about that fraction of its own.

    Iterative stratification (Sechidis et al., ECML 2011) for two parts: the class with the fewest
    images left is dealt out first, each image to the part that still wants more of that class.

    Args:
        classes: the foreground classes of every image.
        fraction: share of the chosen images, in (0, 1].
        seed: the same seed gives the same choice.

    Returns:
        bool (number of images,), true for the chosen ones: exactly ``round(fraction * number)``.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction!r}")
    number = round(fraction * len(classes))
    if number == 0:
        raise ValueError(f"fraction {fraction:g} of {len(classes)} image(s) is no image at all")
    chosen = _deal(classes, number, np.random.default_rng(seed))
    total = Counter(c for image in classes for c in set(image))
    kept = {c for image, keeps in zip(classes, chosen) if keeps for c in image}
    lacking = [f"{c} (in {total[c]} image(s))" for c in sorted(total.keys() - kept)]
    if lacking:
        raise ValueError(
            f"fraction {fraction:g} of {len(classes)} image(s) leaves {len(lacking)} class(es) "
            f"without any: {listed(lacking)}; give a larger fraction, or other images"
        )
    return chosen


def _deal(classes: Sequence[Collection[int]], number: int, rng: np.random.Generator) -> np.ndarray:
    """Deal all images out to the chosen (True) and the other part."""
    share = number / len(classes)
    # The background is a class of every image: what is left at the end is dealt out by it.
    members = [{*image, 0} for image in classes]
    left = Counter(c for image in members for c in image)
    wanted = {True: {c: share * n for c, n in left.items()},
              False: {c: (1 - share) * n for c, n in left.items()}}  # fmt: skip
    room = {True: number, False: len(classes) - number}
    order = rng.permutation(len(classes))
    open_images = dict.fromkeys(order.tolist())
    chosen = np.zeros(len(classes), bool)
    while open_images:
        # The background last, for it has every image that is left.
        rarest = min((c for c, n in left.items() if n), key=lambda c: (c == 0, left[c], c))
        for image in [i for i in open_images if rarest in members[i]]:
            part = max(
                (part for part in (True, False) if room[part]),
                key=lambda part: (wanted[part][rarest], wanted[part][0]),
            )
            chosen[image] = part
            room[part] -= 1
            del open_images[image]
            for c in members[image]:
                left[c] -= 1
                wanted[part][c] -= 1
    return chosen


# ---- Label maps --------------------------------------------------------------------------------


def read_semantic(x: Mapping[str, Any]) -> np.ndarray:
    """Read the classes in an image's label file, by its label rule if it has one."""
    path = x["sem_seg_file_name"]
    stored = read_label_map(path)
    return x["label_rule"].semantic(stored, path) if "label_rule" in x else stored


def read_labels(x: Mapping[str, Any], num_classes: int, ignore_label: int) -> np.ndarray:
    """Read the classes in an image's label file, and check its values and size.

    The dict has ``height`` and ``width`` of the image; a ValueError names the bad file.
    """
    path = x["sem_seg_file_name"]
    labels = read_semantic(x)
    size = f"its image {x['file_name']} is {x['width']}x{x['height']}"
    _check_size(f"{path}: the label map", labels, (x["height"], x["width"]), size)
    check_label_values(labels, num_classes, ignore_label, path)
    return labels


def read_instances(x: Mapping[str, Any], semantic: np.ndarray) -> np.ndarray:
    """Read the instance map that belongs to what :func:`read_semantic` returns."""
    path = x["ins_seg_file_name"]
    instances = read_label_map(path)
    size = f"{x['sem_seg_file_name']} is {semantic.shape[1]}x{semantic.shape[0]}"
    _check_size(f"{path}: the instance map", instances, semantic.shape, size)
    return x["label_rule"].instances(instances, semantic) if "label_rule" in x else instances


def _check_size(what: str, labels: np.ndarray, size: tuple[int, ...], other: str) -> None:
    if labels.shape != size:
        raise ValueError(
            f"{what} is {labels.shape[1]}x{labels.shape[0]}, {other} (width x height); they must "
            "agree"
        )


def read_supervision(
    x: Mapping[str, Any],
    num_classes: int,
    ignore_label: int,
    keep_true: bool,
    overlaps: str = "smaller",
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Make the label map of an image from its mask or boxes, and the maps that go with it.

    Ignored pixels of a mask are not carried over to the boxes of its image: the borders that VOC
    marks with 255 would tell the outlines. Crowds and unknown true labels get ``ignore_label``.
    ``overlaps`` is ``SMALLOBJ.SUPERVISION.OVERLAPS``.

    Returns:
        labels, int32 (H, W), for the ignore label may be none of the file's; and for images with a
        flag integer (H, W) maps by name: ``doubtable``, the number of the box that a label comes
        from, 0 where it is certain; with ``overlaps`` "model" ``box_classes``, the bits of
        :func:`.boxes.classes_on_pixels` (0 for a mask); with ``keep_true`` ``true_sem_seg``, the
        mask of a box image where it is known.
    """
    flag, mask = x.get("supervision", "mask"), None
    if flag == "mask" or (keep_true and "sem_seg_file_name" in x):
        mask = read_labels(x, num_classes, ignore_label).astype(np.int32)
    if mask is not None and "supervision" not in x:
        return mask, {}
    if mask is not None and flag == "mask":
        labels, numbers = mask, np.zeros_like(mask)
        classes = numbers
    else:
        boxes, size = boxes_of(x), (x["height"], x["width"])
        numbers = number_boxes(boxes, *size, interior=overlaps == "interior")
        labels = classes_of_numbers(boxes, numbers).astype(np.int32)
        labels[labels == IGNORE_LABEL] = ignore_label
        where = f"{x['file_name']}: its boxes"
        check_label_values(labels, num_classes, ignore_label, where)
        if overlaps in ("ignore", "model"):
            classes = classes_on_pixels(boxes, *size)
        if overlaps == "ignore":
            # A number with a single bit shares none with the number before it.
            labels[classes & (classes - 1) != 0] = ignore_label
    maps: dict[str, np.ndarray] = {"doubtable": numbers}
    if overlaps == "model":
        maps["box_classes"] = classes
    if keep_true:
        maps["true_sem_seg"] = np.full_like(labels, ignore_label) if mask is None else mask
    return labels, maps


def boxes_of(x: Mapping[str, Any]) -> np.ndarray:
    """Return the boxes of an image, checked and clipped: int32 (B, 5)."""
    if "boxes" in x:
        table, where = x["boxes"], f"{x['file_name']}: boxes"
    else:
        semantic, where = read_semantic(x), x["ins_seg_file_name"]
        table = instance_boxes(semantic, read_instances(x, semantic))
    return checked_boxes(table, x["height"], x["width"], str(where))
