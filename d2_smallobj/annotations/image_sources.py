"""Read the ground truth of an image from label maps, panoptic PNGs or annotations.

An :class:`ImageSource` names its files; reading them needs neither torch nor detectron2.
Legend: H, W height and width of an image; C number of classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2_smallobj.annotations.cityscapes import (
    benchmark_rule,
    cityscapes_instances,
    label_classes,
)
from d2_smallobj.annotations.classes import stuff_beside_background
from d2_smallobj.annotations.coco import IGNORE_LABEL, Annotation, InstanceAnnotations, paint
from d2_smallobj.annotations.label_maps import label_size, read_labels
from d2_smallobj.annotations.label_rules import (
    VOID,
    LabelRule,
    annotation_classes,
    fit_instances,
    size_text,
    thing_pixels,
    without_stuff,
)
from d2_smallobj.annotations.panoptic import PanopticMaps, Segment, panoptic_maps, panoptic_size

Maps = tuple[np.ndarray, "np.ndarray | None"]


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Location of the ground truth of one image.

    Attributes:
        name: what messages call the image, if no file is at hand.
        semantic: file of the semantic map; ``None``: it is painted from the instances' source.
        kind: source of the instances. ``"map"``: a file of ids, 255 = void; ``"panoptic"``: a
            panoptic PNG; ``"cityscapes"``: its ``instanceIds``; ``"objects"``: VOC's
            ``SegmentationObject``; ``"annotations"``: masks of the image's dict; ``"json"``: the
            annotation file; ``"components"``: the connected components of the semantic map;
            ``"void"``: none, and no thing pixel belongs to an instance.
        instances: file of the instances, if they are in one of their own.
        segments: of the panoptic PNG.
        annotations: of the dict.
        number: id of the image in the annotation file.
        size: (H, W) of the image, with ``"annotations"``.
        label_ids: whether the semantic map holds Cityscapes' label ids, to become train ids.
    """

    name: str
    semantic: str | None = None
    kind: str = "components"
    instances: str | None = None
    segments: tuple[Segment, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    number: Any = None
    size: tuple[int, int] | None = None
    label_ids: bool = False

    @property
    def instance_file(self) -> str:
        """The file of the instances, of a kind that has one."""
        assert self.instances is not None
        return self.instances

    @property
    def files(self) -> str:
        """The files that hold it, for messages."""
        given = [file for file in (self.semantic, self.instances) if file is not None]
        if self.kind == "annotations":
            given.append(f"the annotations of {self.name}")
        return " and ".join(dict.fromkeys(given)) or self.name


@dataclasses.dataclass(frozen=True)
class TruthImage:
    """One image of the ground truth.

    Attributes:
        image_id: its name in the results.
        stems: names under which its prediction is looked for, in this order.
        source: where its maps are.
        picture: file of the picture itself, if it is known.
        translated: whether a label rule changes the stored labels.
    """

    image_id: str
    stems: tuple[str, ...]
    source: ImageSource
    picture: str | None = None
    translated: bool = False

    @classmethod
    def of_files(cls, image_id: str, semantic: str, instances: str | None = None) -> TruthImage:
        """Make an image of one or two label maps; without instances, components are instances."""
        kind = "components" if instances is None else "map"
        return cls(image_id, (image_id,), ImageSource(image_id, semantic, kind, instances))

    @property
    def semantic(self) -> str | None:
        """File of the semantic map, if the file holds it as it is scored."""
        return self.source.semantic if self._stored else None

    @property
    def instances(self) -> str | None:
        """File of the instance map, if the file holds it as it is scored."""
        return self.source.instances if self._stored else None

    @property
    def where(self) -> str:
        """Name in messages."""
        return self.source.semantic or f"image {self.image_id}"

    @property
    def both(self) -> str:
        """Name of the two maps in messages."""
        instances = self.source.instances
        return f"{self.where} and {instances}" if instances else self.where

    @property
    def _stored(self) -> bool:
        return self.source.kind in ("map", "components") and not self.translated


@dataclasses.dataclass(frozen=True)
class SourceReader:
    """Read the maps of an :class:`ImageSource`; picklable.

    Attributes:
        class_names: names of the C classes; empty: not known.
        stuff: ids of the classes without instances.
        ignore_label: label of ignored pixels; ``None``: 255.
        unannotated: label of pixels without annotation, where the semantic map is painted.
        rule: how stored values become classes; ``None``: they are classes.
        annotations: the data set's annotation file, if an image needs it.
    """

    class_names: Sequence[str] = ()
    stuff: tuple[int, ...] = ()
    ignore_label: int | None = None
    unannotated: int = 0
    rule: LabelRule | None = None
    annotations: InstanceAnnotations | None = None

    def size(self, source: ImageSource) -> tuple[int, int]:
        """Height and width of an image; as :meth:`.truth.GroundTruth.size`."""
        sizes = {}
        if source.semantic is not None:
            sizes[source.semantic] = label_size(source.semantic)
        if source.kind == "panoptic":
            sizes[source.instance_file] = panoptic_size(source.instance_file)
        elif source.instances is not None:
            sizes[source.instances] = label_size(source.instances)
        if not sizes and source.kind == "json":
            return self._file.image_size(source.number)
        if not sizes:
            assert source.size is not None
            return source.size
        (first, size), *others = sizes.items()
        for file, other in others:
            if other != size:
                raise ValueError(
                    f"{file}: height x width {size_text(other)}, but {size_text(size)} in "
                    f"{first}; do the files belong to the same image?"
                )
        return size

    def read(self, source: ImageSource) -> Maps:
        """Read the two maps; as :meth:`.truth.GroundTruth.read`."""
        if source.semantic is None:
            semantic, instances = self._paint(source)
        else:
            semantic = read_labels(source.semantic)
            if source.label_ids:
                semantic = benchmark_rule().semantic(semantic, source.semantic)
            instances = self._instances(source, semantic)
        if self.rule is not None:
            semantic = self.rule.semantic(semantic, source.files)
            if instances is not None:
                instances = self.rule.instances(instances, semantic)
        return semantic, self._without_stuff(semantic, instances)

    def _without_stuff(
        self, semantic: np.ndarray, instances: np.ndarray | None
    ) -> np.ndarray | None:
        """Remove what is annotated of classes that are stuff here: no segment of it is one."""
        declared = stuff_beside_background(self.stuff, self.class_names)
        return without_stuff(semantic, instances, declared, self._ignored)

    def _paint(self, source: ImageSource) -> Maps:
        """Both maps from where the instances are."""
        if source.kind == "panoptic":
            maps = self._panoptic(source)
            return maps.semantic, maps.instances
        annotations, size, where = self._annotations(source)
        return paint(
            annotations,
            *size,
            source=where,
            unannotated=self.unannotated,
            ignore_label=self._ignored,
        )

    def _annotations(
        self, source: ImageSource
    ) -> tuple[Sequence[Annotation], tuple[int, int], str]:
        """Masks of an image, its size, and where they are from."""
        if source.kind == "json":
            file, number = self._file, source.number
            return file.annotations(number), file.image_size(number), str(file.path)
        assert source.size is not None
        return source.annotations, source.size, source.name

    @property
    def _file(self) -> InstanceAnnotations:
        assert self.annotations is not None
        return self.annotations

    @property
    def _ignored(self) -> int:
        return IGNORE_LABEL if self.ignore_label is None else self.ignore_label

    def _panoptic(self, source: ImageSource) -> PanopticMaps:
        return panoptic_maps(
            source.instance_file, source.segments, stuff=self.stuff, ignore_label=self._ignored
        )

    def _instances(self, source: ImageSource, semantic: np.ndarray) -> np.ndarray | None:
        """The instance map beside a semantic map that is in a file."""
        instances: np.ndarray | None
        classes = None
        if source.kind == "components":
            return None
        if source.kind == "void":
            things = thing_pixels(semantic, self.stuff, self._ignored)
            return np.where(things, VOID, 0).astype(np.int32)
        if source.kind == "map":
            return read_labels(source.instance_file)
        fit: dict[str, Any] = {"stuff": self.stuff, "ignore_label": self._ignored}
        fit["source"] = source.files
        if source.kind == "cityscapes":
            stored = read_labels(source.instance_file)
            return cityscapes_instances(semantic, stored, label_classes(self.class_names), **fit)
        if source.kind == "panoptic":
            maps = self._panoptic(source)
            instances, classes = maps.instances, maps.classes
        elif source.kind == "objects":
            instances = read_labels(source.instance_file)
            if self.rule is None:
                instances = self._without_stuff(semantic, instances)
        else:
            annotations, size, where = self._annotations(source)
            _, instances = paint(annotations, *size, source=where)
            classes = annotation_classes(annotations)
        # The semantic map decides; where stored labels are no classes yet, the rule does.
        if self.rule is not None or instances is None:
            return instances
        return fit_instances(semantic, instances, classes, **fit)
