"""Whether an image and its labels fit each other: sizes, values, instances.

Apart from the data sets themselves, so that processes that check need not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from d2_smallobj.annotations.coco import IGNORE_LABEL, Annotation
from d2_smallobj.annotations.coco_maps import image_fates
from d2_smallobj.annotations.label_maps import check_label_values, read_label_map
from d2_smallobj.metrics.matching import match_image
from d2_smallobj.pseudo_labels.targets import TargetImage


def check_image(
    task: tuple[Mapping[str, Any], list[Annotation]], *, num_classes: int, source: str
) -> str | None:
    """What is wrong with an image and its labels.

    Args:
        task: the image's dataset dict, and its annotations where there are any.
        num_classes: number of classes, background included.
        source: the annotation file, for messages.

    Returns:
        A sentence that names the file; ``None`` if nothing is wrong.
    """
    record, annotations = task
    picture = record["file_name"]
    try:
        size = TargetImage((), picture).read_size()
        if "height" in record and size != (record["height"], record["width"]):
            raise ValueError(
                f"{picture}: height x width is {size}, {source} says "
                f"{(record['height'], record['width'])}"
            )
        if "sem_seg_file_name" in record:
            _check_maps(record, size, num_classes)
        _, faults = image_fates((annotations, *size), source=source)
    except (OSError, TypeError, ValueError) as error:
        return str(error)
    return "; ".join(faults) or None


def _check_maps(record: Mapping[str, Any], size: tuple[int, int], num_classes: int) -> None:
    """Check sizes and values of an image's label maps, and that they fit each other."""
    keys = [key for key in ("sem_seg_file_name", "ins_seg_file_name") if key in record]
    maps = [read_label_map(record[key]) for key in keys]
    for key, labels in zip(keys, maps):
        if labels.shape != size:
            raise ValueError(
                f"{record[key]}: height x width is {labels.shape}, its image "
                f"{record['file_name']} has {size}"
            )
    semantic, *instances = maps
    if "label_rule" in record:
        semantic = record["label_rule"].semantic(semantic, record[keys[0]])
        instances = [record["label_rule"].instances(stored, semantic) for stored in instances]
    check_label_values(semantic, num_classes, IGNORE_LABEL, record[keys[0]])
    if instances:
        try:
            match_image(semantic, semantic, *instances, num_classes=num_classes)
        except ValueError as error:
            raise ValueError(f"{record[keys[1]]}: {error}") from error
