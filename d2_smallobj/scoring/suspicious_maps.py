"""Notice folders of label maps that were exchanged, or given twice.

An instance map and a semantic map are both small integers, so that one in the place of the other
may give a table that looks right. What tells them apart: the ids of an image's instances count from
1 without a gap, its classes hardly ever do; and several instances may lie on one class, but never
the other way round.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.metrics import InstanceTable
from d2_smallobj.utils.messages import InputError

# Fewer images, or fewer different numbers of classes in an image, prove nothing.
_FEW_IMAGES, _FEW_COUNTS = 5, 3


def fits_exchanged(
    semantic: np.ndarray,
    instances: np.ndarray | None,
    *,
    num_classes: int,
    void: Collection[int | None],
) -> bool:
    """Tell if two maps (H, W) that do not fit each other would, one in the place of the other.

    ``void`` are the values of ignored pixels and of void instances. It is so if the semantic values
    count from 1, the values of the instance map are classes, and each of the former lies on one of
    the latter.
    """
    if instances is None or instances.shape != semantic.shape:
        return False
    ignored = [value for value in void if value is not None]
    held = np.ones(semantic.shape, bool)
    for values in (semantic, instances):
        held &= (values > 0) & ~np.isin(values, ignored)
    if not held.any() or instances[held].max() >= num_classes:
        return False
    labels = np.unique(np.stack([semantic[held], instances[held]]).astype(np.int64), axis=1)[0]
    return len(np.unique(labels)) == len(labels) == labels.max()


def refuse_exchanged(images: Sequence[str], problems: int, table: InstanceTable) -> None:
    """Raise one short InputError if all that is wrong is that two folders were exchanged.

    Args:
        images: those that :func:`fits_exchanged`.
        problems: number of images and files with any problem.
        table: the records of the images without one. Several instances of a class in one of them
            prove that the folders are where they belong.
    """
    if images and len(images) == problems and not _shares_class(table):
        raise InputError(
            f"--semantic and --instances seem to be exchanged: the maps of {len(images)} image(s), "
            f"{images[0]} for one, fit each other only the other way round"
        )


def suspicions(table: InstanceTable, num_classes: int, options: Mapping[str, Any]) -> list[str]:
    """Say in a sentence what is suspicious about the folders that a run was scored with."""
    inputs = options.get("inputs")
    if not isinstance(inputs, Mapping) or "semantic" not in inputs:
        return []
    things = table.select(table.things).sorted()
    first = np.unique(things.image_id, return_index=True)[1][1:]
    pairs = list(zip(*(np.split(x, first) for x in (things.category_id, things.instance_id))))
    if not len(things):
        return []
    counted = [_counts_from_1(classes) for classes, _ in pairs]
    numbers = {len(np.unique(classes)) for classes, _ in pairs}
    many = len(pairs) >= _FEW_IMAGES
    if "instances" not in inputs:
        if many and all(counted) and len(numbers) >= _FEW_COUNTS:
            return [
                "The semantic maps look like instance maps: in each image the labels count from 1 "
                "without a gap. Is --semantic the folder of the classes?"
            ]
        return []
    same = np.array_equal(things.category_id, things.instance_id)
    if same and (not all(counted) or (many and len(numbers) >= _FEW_COUNTS)):
        return [
            "The semantic and the instance maps are the same in all images, so that each class is "
            "one instance. Is --instances the folder of the instances?"
        ]
    ids = [_counts_from_1(ids) for _, ids in pairs]
    classes = things.instance_id.max() < num_classes
    if all(counted) and not all(ids) and classes and not _shares_class(table):
        return [
            "--semantic and --instances look exchanged: the labels of each semantic map count from "
            "1, those of the instance maps do not, and no image has two instances of a class."
        ]
    return []


def _counts_from_1(values: np.ndarray) -> bool:
    """Tell if positive integers are 1, 2, ... without a gap."""
    return len(np.unique(values)) == values.max()


def _shares_class(table: InstanceTable) -> bool:
    """Tell if an image has two instances of a class."""
    things = table.select(table.things)
    rows = zip(things.image_id.tolist(), things.category_id.tolist())
    return len(set(rows)) < len(things)
