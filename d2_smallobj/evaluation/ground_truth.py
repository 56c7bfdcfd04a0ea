"""Where an image's ground truth comes from: PNG files, or COCO or LVIS annotations."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from d2_smallobj.annotations.label_maps import read_label_map
from detectron2.data import DatasetCatalog, MetadataCatalog

if TYPE_CHECKING:
    from d2_smallobj.annotations.coco import InstanceAnnotations

SEMANTIC_KEY = "sem_seg_file_name"
INSTANCE_KEY = "ins_seg_file_name"


class GroundTruth(NamedTuple):
    """Ground truth of one image.

    Attributes:
        semantic: (H, W) integers, 0 = background, the ignore label elsewhere unlabelled.
        instances: (H, W) integers, 0 = none, 255 = void; ``None``: nothing annotates instances.
        source: the file or files it was read from, for messages.
    """

    semantic: np.ndarray
    instances: np.ndarray | None
    source: str


class GroundTruthReader:
    """Reads the ground truth of a registered data set, one image at a time.

    In this order:

    1. a dict with ``ins_seg_file_name``: that PNG and the one of ``sem_seg_file_name``;
    2. metadata with ``instances_json`` (and ``json_kind``, ``"coco"`` or ``"lvis"``, and
       ``json_category_map``, class id by category id, where the classes are not the file's):
       both maps painted from the annotations, largest first (SPEC 1), by the dict's
       ``image_id``;
    3. ``sem_seg_file_name`` alone: no instances.

    With ``label_rule`` (a :class:`~d2_smallobj.annotations.label_rules.LabelRule`) in the metadata,
    it says how the stored values become classes and instances.

    Keys that a mapper has dropped are taken from the registered dict of the same ``file_name``.

    Args:
        dataset_name: a name in DatasetCatalog and MetadataCatalog.
    """

    def __init__(self, dataset_name: str) -> None:
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)

    def __call__(self, record: Mapping[str, Any]) -> GroundTruth:
        """Read the ground truth of one image.

        Args:
            record: its dataset dict, or what a mapper made of it.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is corrupt or no label map, or if the data set has no ground
                truth for the image. Both name the file.
        """
        truth = self._stored(record)
        rule = getattr(self._metadata, "label_rule", None)
        if rule is None:
            return truth
        semantic = rule.semantic(truth.semantic, truth.source)
        instances = truth.instances
        if instances is not None:
            instances = rule.instances(instances, semantic)
        return GroundTruth(semantic, instances, truth.source)

    def _stored(self, record: Mapping[str, Any]) -> GroundTruth:
        """The ground truth of an image with the values that its files hold."""
        annotated = getattr(self._metadata, "instances_json", None) is not None
        if INSTANCE_KEY not in record and not (annotated and "image_id" in record):
            record = {**self._registered(str(record.get("file_name"))), **record}
        if annotated and INSTANCE_KEY not in record and "image_id" in record:
            maps = self._annotations.maps(record["image_id"])
            source = f"{self._metadata.instances_json}, image {record['image_id']}"
            return GroundTruth(*maps, source=source)
        if SEMANTIC_KEY not in record:
            raise ValueError(
                f"data set {self._dataset_name!r} has no ground truth for"
                f" {record.get('file_name')!r}: its dict must have {SEMANTIC_KEY!r}, or the"
                f" metadata 'instances_json' and the dict 'image_id'; got {sorted(record)}"
            )
        semantic_file, instance_file = record[SEMANTIC_KEY], record.get(INSTANCE_KEY)
        semantic = read_label_map(semantic_file)
        if instance_file is None:
            return GroundTruth(semantic, None, str(semantic_file))
        instances = read_label_map(instance_file)
        return GroundTruth(semantic, instances, f"{semantic_file} and {instance_file}")

    @functools.cached_property
    def _annotations(self) -> InstanceAnnotations:
        # Data sets of PNG files do without pycocotools.
        from d2_smallobj.annotations.coco import InstanceAnnotations

        return InstanceAnnotations(
            self._metadata.instances_json,
            kind=getattr(self._metadata, "json_kind", None) or "coco",
            category_map=getattr(self._metadata, "json_category_map", None),
        )

    @functools.cached_property
    def _by_file(self) -> dict[str, dict[str, Any]]:
        # Metadata alone will do where inputs bring all keys along.
        if self._dataset_name not in DatasetCatalog.list():
            return {}
        return {
            str(record["file_name"]): record for record in DatasetCatalog.get(self._dataset_name)
        }

    def _registered(self, file_name: str) -> dict[str, Any]:
        """Ground-truth keys of the registered dict, less those that a mapper works on."""
        record = self._by_file.get(file_name, {})
        wanted = (SEMANTIC_KEY, INSTANCE_KEY, "image_id")
        return {key: record[key] for key in wanted if key in record}
