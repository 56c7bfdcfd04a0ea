"""Listing the images of a COCO or LVIS annotation file in detectron2's format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.files import FileCheck, resolve_inside


def coco_dicts(
    json_path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    kind: str = "coco",
    class_names: Sequence[str] | None = None,
    label_dir: str | os.PathLike[str] | None = None,
    name: str | None = None,
    prepare: str = "See datasets/README.md for the layout and where the files come from.",
) -> list[dict[str, Any]]:
    """List a data set of COCO images without opening one.

    Args:
        json_path: the annotation file.
        image_dir: folder of the images; for LVIS the one above ``train2017`` and ``val2017``.
        kind: ``"coco"`` or ``"lvis"``.
        class_names: names that the file's classes must have, background first; default: any.
        label_dir: folder of semantic label maps, named like the image
            (``COCO_train2014_000000000009.png``) or by its id in twelve digits
            (``000000000009.png``). With it, images without any annotation are left out: methods
            that learn from image-level labels write none for them. Without it, the annotation
            file itself is the ground truth, and all images are listed.
        name: the data set's name for messages; default: the annotation file's.
        prepare: what to do about missing files, a sentence for the message.

    Returns:
        One dict per image: ``file_name``, ``image_id`` (int), ``height``, ``width``, and
        ``sem_seg_file_name`` with ``label_dir``.

    Raises:
        FileNotFoundError: files are missing; one error that names the first ten, how many there
            are, and ``prepare``.
        ValueError: the annotation file is malformed or has other classes.
    """
    json_path, image_dir = Path(json_path), Path(image_dir)
    check = FileCheck(name or json_path.stem, prepare)
    if not check.require(json_path, one_of_many=False):
        check.require_folder(image_dir)
        if label_dir is not None:
            check.require_folder(label_dir)
        check.raise_if_missing()

    annotations = InstanceAnnotations(json_path, kind=kind)
    if class_names is not None and tuple(class_names) != annotations.class_names:
        raise ValueError(
            f"{json_path}: expected {len(class_names) - 1} categories "
            f"({', '.join(class_names[1:4])}, ...), got {len(annotations.class_names) - 1} "
            f"({', '.join(annotations.class_names[1:4])}, ...) or another order"
        )
    dicts = []
    for image_id in annotations.image_ids:
        if label_dir is not None and not annotations.is_annotated(image_id):
            continue
        where = f"{json_path}: image {image_id}"
        image = resolve_inside(image_dir, annotations.file_name(image_id), where)
        check.require(image)
        height, width = annotations.image_size(image_id)
        record: dict[str, Any] = {
            "file_name": os.fspath(image),
            "image_id": image_id,
            "height": height,
            "width": width,
        }
        if label_dir is not None:
            label = Path(label_dir) / f"{PurePosixPath(image.name).stem}.png"
            by_id = Path(label_dir) / f"{str(image_id).zfill(12)}.png"
            if not check.exists(label) and check.exists(by_id):
                label = by_id
            check.require(label)
            record["sem_seg_file_name"] = os.fspath(label)
        dicts.append(record)
    check.raise_if_missing()
    return dicts
