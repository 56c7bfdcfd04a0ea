"""Find the ground-truth files of an image of a registered data set, by its dict and the metadata.

Opens only folders, each once, and the annotation file if there is no other source.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from d2_smallobj.annotations.cityscapes import instance_ids_beside
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.coco_file import Id, check_size
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.image_sources import ImageSource
from d2_smallobj.annotations.label_rules import dict_annotations
from d2_smallobj.annotations.panoptic import segments_of
from d2_smallobj.data.registered_classes import DatasetClasses, no_semantics

TOLD = {
    "map": "instances are those of ins_seg_file_name",
    "panoptic": "instances are the segments of the panoptic PNG",
    "cityscapes": "instances are those of the instanceIds beside the semantic map",
    "objects": "instances are those of SegmentationObject beside JPEGImages",
    "annotations": "instances are the annotations of the dicts",
    "json": "instances are those of the metadata's annotation file",
    "components": "nothing annotates instances, so that connected components are the instances",
    "void": "thing pixels of images without instances are left out of all instance figures",
}
"""Sentences about the source of instances, by :attr:`.ImageSource.kind`."""

# VOC annotates the objects of 20 classes.
_MOST_VOC_THINGS = 20


class TruthFinder:
    """Find the maps of an image, for one data set."""

    def __init__(self, name: str, metadata: Any, classes: DatasetClasses) -> None:
        self._name = name
        self._metadata = metadata
        self._class_names = classes.names
        self._numbers = {text: number for number, text in enumerate(classes.names)}
        self._num_things = len(classes.names) - len(classes.stuff)
        self._paints = classes.unannotated is not None
        self._files = FileCheck(name, "")

    def find(self, record: Mapping[str, Any]) -> ImageSource:
        """Find the maps of an image by its dict; kind ``"components"`` if it has no instances."""
        name = str(record.get("file_name", record.get("image_id")))
        semantic = record.get("sem_seg_file_name")
        semantic = None if semantic is None else os.fspath(semantic)
        if semantic is not None and not self._num_things:
            return ImageSource(name, semantic)
        source = self._instances(record, ImageSource(name, semantic))
        if source is not None:
            return source
        if semantic is not None:
            return ImageSource(name, semantic)
        if "no_masks" in record:
            raise ValueError(f"data set {self._name!r} has no ground truth: {record['no_masks']}")
        if "annotations" in record and not self._paints:
            raise ValueError(no_semantics(self._name, "no 'sem_seg_file_name' in its dicts"))
        raise ValueError(
            f"data set {self._name!r} has no ground truth for {record.get('file_name')!r}: its "
            "dict must have 'sem_seg_file_name', or 'pan_seg_file_name' and 'segments_info', or "
            f"the metadata 'instances_json' and the dict 'image_id'; got {sorted(record)}"
        )

    def _instances(self, record: Mapping[str, Any], image: ImageSource) -> ImageSource | None:
        """Return the first source of instances that an image has."""
        instances = record.get("ins_seg_file_name")
        if instances is not None and image.semantic is not None:
            return replace(image, kind="map", instances=os.fspath(instances))
        panoptic = record.get("pan_seg_file_name")
        if panoptic is not None and record.get("segments_info") is not None:
            segments = segments_of(record["segments_info"], len(self._class_names), str(panoptic))
            panoptic = os.fspath(panoptic)
            return replace(image, kind="panoptic", instances=panoptic, segments=segments)
        if image.semantic is None and not self._paints:
            return None
        found = self._beside(image) or self._from_dict(record, image)
        return found or self._from_json(record, image)

    def _beside(self, image: ImageSource) -> ImageSource | None:
        """Return an instance map that lies where the benchmarks put it."""
        if image.semantic is None or self.listed:
            return None
        city = instance_ids_beside(image.semantic)
        if city is not None and self._files.exists(city):
            return replace(image, kind="cityscapes", instances=city)
        folder, file = os.path.split(image.name)
        root, last = os.path.split(folder)
        objects = os.path.join(root, "SegmentationObject", os.path.splitext(file)[0] + ".png")
        is_voc = last == "JPEGImages" and self._num_things <= _MOST_VOC_THINGS
        if is_voc and self._files.exists(objects):
            return replace(image, kind="objects", instances=objects)
        return None

    def _from_dict(self, record: Mapping[str, Any], image: ImageSource) -> ImageSource | None:
        """Return the masks of the dict itself; boxes alone are no source."""
        entries = record.get("annotations")
        if entries is None or (entries and not any("segmentation" in e for e in entries)):
            return None
        height, width = record.get("height"), record.get("width")
        if height is None or width is None:
            what = f"the dict of {image.name} has annotations, but no 'height' and 'width'"
            raise ValueError(f"{self._name}: {what}")
        check_size(height, width, f"{self._name}: the dict of {image.name}")
        things = self._metadata.get("thing_classes") or self._class_names
        classes = [self._numbers.get(str(thing)) for thing in things]
        found = dict_annotations(entries, classes, image.name)
        return replace(image, kind="annotations", annotations=found, size=(height, width))

    def _from_json(self, record: Mapping[str, Any], image: ImageSource) -> ImageSource | None:
        """Return the annotation file of the metadata."""
        number = record.get("image_id")
        if self.json_file is None or (image.semantic is None and number is None):
            return None
        # Where nothing else is there, an id that the file lacks is an error when it is read.
        if image.semantic is not None and number not in self._ids:
            number = self._ids_by_name.get(os.path.basename(image.name))
        return None if number is None else replace(image, kind="json", number=number)

    # ---- The annotation file ------------------------------------------------------------------

    @property
    def listed(self) -> bool:
        """Tell whether the dicts name all instance maps, so that none is looked for."""
        return self._metadata.get("instances_listed", False)

    @property
    def json_classes(self) -> dict[Id, int] | None:
        """Class by the id that detectron2's SemSegEvaluator writes; ``None``: the class itself."""
        mapping = self._metadata.get("stuff_dataset_id_to_contiguous_id")
        return None if mapping is None else dict(mapping)

    @property
    def json_file(self) -> str | None:
        """The annotation file of the metadata, if there is one."""
        return self._metadata.get("instances_json") or self._metadata.get("json_file")

    @functools.cached_property
    def annotations(self) -> InstanceAnnotations:
        """The content of :attr:`json_file`, with the classes of the data set."""
        metadata = self._metadata
        assert self.json_file is not None
        lvis = metadata.get("evaluator_type") == "lvis"
        kind = metadata.get("json_kind") or ("lvis" if lvis else "coco")
        read = functools.partial(InstanceAnnotations, self.json_file, kind=kind)
        category_map = metadata.get("json_category_map")
        if metadata.get("instances_json") is not None:
            # The stored values of a data set with a rule are no classes of it.
            names = self._class_names if metadata.get("label_rule") is None else None
            return read(category_map=category_map, class_names=names)
        if category_map is None:
            category_map = self._categories(read(label_maps=False))
        return read(category_map=category_map, class_names=self._class_names, label_maps=False)

    def _categories(self, opened: InstanceAnnotations) -> dict[Any, int]:
        """Match the categories of the annotation file to classes, by name."""
        numbers = self._numbers
        things = self._metadata.get("thing_classes") or ()
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id") or {}
        names = {number: entry.name for number, entry in opened.categories.items()}
        # Most sets number their things, some the classes.
        numbered = things if max(contiguous.values(), default=0) < len(things) else ()
        names |= {key: str(numbered[n]) for key, n in contiguous.items() if numbered}
        found = {key: numbers[names[key]] for key in opened.categories if names[key] in numbers}
        if not found:
            raise ValueError(
                f"{self.json_file}: none of its categories has the name of a class of "
                f"{self._name!r} ({', '.join(self._class_names[:5])}, ...); set json_category_map "
                "in the metadata"
            )
        return found

    @functools.cached_property
    def _ids(self) -> set[Any]:
        return set(self.annotations.image_ids)

    @functools.cached_property
    def _ids_by_name(self) -> dict[str, Any]:
        """Image id of the annotation file by the last part of the picture's name."""
        found = {}
        for number in self._ids:
            # An image without a name is found by its id alone.
            with contextlib.suppress(ValueError):
                found[os.path.basename(self.annotations.file_name(number))] = number
        return found
