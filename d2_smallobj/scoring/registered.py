"""Ground truth of a data set that is registered with detectron2: the one part that needs it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.scoring.ruled import RuledTruth
from d2_smallobj.scoring.truth import AnnotationTruth, FileTruth, GroundTruth, TruthImage, choose
from d2_smallobj.utils.options import look_up_option


def registered_truth(name: str, *, listed: Sequence[str] | None = None) -> GroundTruth:
    """Find the ground truth of a registered data set.

    As the evaluator does: instance and semantic PNGs of the dicts (``ins_seg_file_name``,
    ``sem_seg_file_name``), else the metadata's ``instances_json``, else the semantic PNGs alone.

    Args:
        name: its name; those of :mod:`d2_smallobj.data.catalog`, and all others that detectron2
            itself registers. ``$DETECTRON2_DATASETS`` says where they lie.
        listed: names or ids of the images to score; default: all.

    Raises:
        ImportError: torch is missing.
        ValueError: there is no such data set, or it has no class names or no ground truth.
        FileNotFoundError: files of it are missing.
    """
    try:
        from d2_smallobj.data.catalog import canonical_name
        from detectron2.data import DatasetCatalog, MetadataCatalog
    except ImportError as error:
        raise ImportError(
            f"--dataset: registered data sets need torch ({error}); name the folders with "
            "--semantic and --instances, or the file with --coco-json, instead"
        ) from error
    name = canonical_name(name)
    look_up_option("--dataset", name, DatasetCatalog.list())
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    class_names = getattr(metadata, "stuff_classes", None)
    if class_names is None:
        raise ValueError(f"--dataset: {name!r} has no stuff_classes, so it is not for semantics")
    rule = getattr(metadata, "label_rule", None)
    if rule is not None:
        return RuledTruth(_stored_truth(name, records, metadata, None, listed), rule, class_names)
    return _stored_truth(name, records, metadata, class_names, listed)


def _stored_truth(
    name: str,
    records: Sequence[Mapping[str, Any]],
    metadata: Any,
    class_names: Sequence[str] | None,
    listed: Sequence[str] | None,
) -> GroundTruth:
    """The ground truth of a data set with the values that its files hold."""
    annotations = getattr(metadata, "instances_json", None)
    if annotations is not None and not any("ins_seg_file_name" in record for record in records):
        content = InstanceAnnotations(
            annotations,
            kind=getattr(metadata, "json_kind", None) or "coco",
            category_map=getattr(metadata, "json_category_map", None),
            class_names=class_names,
        )
        truth = AnnotationTruth(content, annotations, listed=listed)
        pictures = {str(record["image_id"]): record.get("file_name") for record in records}
        truth.images = [
            dataclasses.replace(image, picture=pictures[image.image_id])
            for image in truth.images
            if image.image_id in pictures
        ]
        return truth
    images = [_image(record, name) for record in records]
    if listed is not None:
        images = choose(images, listed, f"data set {name!r}")
    return FileTruth(
        images, class_names=class_names, ignore_label=getattr(metadata, "ignore_label", 255)
    )


def _image(record: Mapping[str, Any], name: str) -> TruthImage:
    """One image of a data set in files."""
    picture, semantic = record.get("file_name"), record.get("sem_seg_file_name")
    image_id = record.get("image_id", picture)
    if semantic is None or image_id is None:
        raise ValueError(
            f"--dataset: {name!r} has no ground truth for {picture!r}: its dict needs "
            f"'sem_seg_file_name' and 'image_id' or 'file_name', got {sorted(record)}"
        )
    paths = [str(path) for path in (picture, semantic) if path]
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    if not set(str(image_id)) & set("/\\"):
        stems.append(str(image_id))
    return TruthImage(
        str(image_id),
        tuple(dict.fromkeys(stems)),
        semantic,
        record.get("ins_seg_file_name"),
        picture=picture,
    )
