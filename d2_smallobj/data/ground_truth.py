"""Decide where the ground truth of a registered data set is, and read it.

For each image, instances come from the first of these that exists:

1. ``ins_seg_file_name`` of its dict: a map of ids, 0 = none, 255 = void;
2. ``pan_seg_file_name`` and ``segments_info``: a panoptic PNG;
3. Cityscapes' ``..._gtFine_instanceIds.png`` beside the semantic map;
4. VOC's ``SegmentationObject/<id>.png`` beside ``JPEGImages/<id>.jpg``;
5. ``annotations`` of the dict, as far as they have masks;
6. a COCO or LVIS file in the metadata, ``json_file`` or ``instances_json``.

If no image of the set has any, the connected components of the semantic map are the instances. The
semantic map is the file ``sem_seg_file_name``, else the panoptic PNG, else it is painted from
``instances_json``. docs/evaluator.md says what that means for each data set.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2_smallobj.annotations.cityscapes import bare_name
from d2_smallobj.annotations.classes import Stuff, stuff_beside_background
from d2_smallobj.annotations.image_sources import ImageSource, SourceReader
from d2_smallobj.annotations.label_rules import VOID, without_stuff
from d2_smallobj.annotations.truth import GroundTruth, TruthImage, choose
from d2_smallobj.data.catalog import alias_hint, canonical_name, registered
from d2_smallobj.data.ground_truth_files import TOLD, TruthFinder
from d2_smallobj.data.own_specs import is_own
from d2_smallobj.data.registered_classes import DatasetClasses, dataset_classes
from d2_smallobj.utils.messages import look_up_option
from detectron2.data import DatasetCatalog, MetadataCatalog

MISSING = ("error", "components", "void")
Reader = Callable[[Mapping[str, Any]], "tuple[np.ndarray, np.ndarray | None]"]

_KEYS = (
    *("sem_seg_file_name", "ins_seg_file_name", "pan_seg_file_name", "segments_info"),
    *("annotations", "image_id", "height", "width", "no_masks"),
)


class GroundTruthMaps(NamedTuple):
    """Ground truth of one image.

    Attributes:
        semantic: (H, W) integers: classes, and the ignore label.
        instances: (H, W) integers, 0 = none, 255 = void; ``None``: nothing annotates instances.
        source: the file or files it was read from, for messages.
    """

    semantic: np.ndarray
    instances: np.ndarray | None
    source: str


def resolve(
    dataset_name: str,
    *,
    stuff: Stuff = None,
    missing_instances: str = "error",
    unannotated: str | int | None = None,
    reader: Reader | None = None,
    num_classes: int | None = None,
) -> RegisteredTruth:
    """Decide what the ground truth of a registered data set is; opens no file.

    Args:
        dataset_name: a name in DatasetCatalog and MetadataCatalog; metadata alone is enough if
            the dicts that are read have all their keys.
        stuff: names or ids of the classes that have no instances; ``None``: see
            :mod:`d2_smallobj.data.registered_classes`.
        missing_instances: for images without instances in a data set where others have them:
            ``"error"``; ``"components"``: connected components are the instances; ``"void"``: no
            thing pixel belongs to an instance.
        unannotated: paint the semantic maps of a detection data set from its annotations; pixels
            without annotation get this class (name or id) or ``"void"``. The class
            ``"background"`` is put before the others if they lack it.
        reader: a function of the dict that returns the semantic map and the instance map or
            ``None``; replaces all files.
        num_classes: number of classes, where the metadata have no names.

    Raises:
        ValueError: an option is out of range, the metadata contradict themselves, or the data set
            has no semantic ground truth, or is one to train on.
    """
    look_up_option("missing_instances", missing_instances, MISSING)
    name = canonical_name(dataset_name)
    if is_own(name) and registered()[name].weak and reader is None:
        raise ValueError(
            f"data set {name!r}: the maps of labels= are to train on, they are no ground truth; "
            "leave labels= out to score with the masks of the file"
        )
    classes = dataset_classes(
        name,
        MetadataCatalog.get(name),
        stuff=stuff,
        num_classes=num_classes,
        unannotated=unannotated,
        own_reader=reader is not None,
    )
    return RegisteredTruth(name, classes, missing_instances, reader, alias_hint(dataset_name))


def open_dataset(name: str, *, listed: Sequence[str] | None = None, **options: Any) -> GroundTruth:
    """Open the ground truth that a command's ``--dataset`` names.

    Takes the options of :func:`resolve`, ``listed`` as :meth:`RegisteredTruth.scoring_truth`.
    Raises ValueError as they do, or if there is no such data set (names the closest).
    """
    name = canonical_name(name)
    look_up_option("--dataset", name, DatasetCatalog.list())
    return resolve(name, **options).scoring_truth(listed)


class RegisteredTruth:
    """The ground truth of a registered data set; made by :func:`resolve`.

    Attributes:
        name: the data set's.
        class_names: names of its C classes.
        stuff: ids of the classes without instances, ascending.
        ignore_label: label of ignored pixels.
        void_instance: instance id of void pixels, 255.
        decided: one sentence for each decision that the user did not make, with the way to change
            it; one about the instances joins when the first image is looked at.
        warned: those of them that limit what the figures mean.
    """

    void_instance = VOID

    def __init__(
        self, name: str, classes: DatasetClasses, missing: str, reader: Reader | None, alias: str
    ) -> None:
        metadata = MetadataCatalog.get(name)
        self.name = name
        self.class_names, self.stuff, self.ignore_label = classes[:3]
        self.decided = [classes.decided] if classes.decided else []
        self.warned = tuple(self.decided) if classes.warns else ()
        self._alias = alias
        self._finder = TruthFinder(name, metadata, classes)
        self._reads = SourceReader(
            *classes[:3], unannotated=classes.unannotated or 0, rule=metadata.get("label_rule")
        )
        self._missing = missing
        self._own_reader = reader
        self._kinds: set[str] = set()
        self._finding = threading.Lock()

    def read_record(self, record: Mapping[str, Any]) -> GroundTruthMaps:
        """Read the ground truth of one image; several threads may.

        Args:
            record: its dict, or what a mapper made of it: what is missing is taken from the
                registered dict of the same ``file_name``.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is corrupt or no label map, files do not belong together, or the
                data set has no ground truth for the image; names the files.
        """
        if self._own_reader is not None:
            semantic, instances = self._own_reader(record)
            declared = stuff_beside_background(self.stuff, self.class_names)
            instances = without_stuff(semantic, instances, declared, self.ignore_label)
            made = f"what the given reader makes of {record.get('file_name')}"
            return GroundTruthMaps(semantic, instances, made)
        # What all images share, such as an annotation file, is opened by one thread alone.
        with self._finding:
            source = self._source(record)
            reader, files = self._reader_of(source.kind), self._name_files(source)
        return GroundTruthMaps(*reader.read(source), files)

    def scoring_truth(self, listed: Sequence[str] | None = None) -> GroundTruth:
        """Return the ground truth for :mod:`d2_smallobj.scoring`, picklable and without torch.

        Args:
            listed: names or ids of the images to score; default: all.

        Raises:
            ValueError: an image has no ground truth, or a listed image does not exist.
        """
        if self._own_reader is not None:
            raise ValueError(f"{self.name}: reader= works with the evaluator only")
        sources = [self._source(record) for record in self._records]
        images = [self._image(*pair) for pair in zip(self._records, sources)]
        images = choose(images, listed, f"data set {self.name!r}")
        reads = self._reader_of(*(source.kind for source in sources))
        truth = GroundTruth(images, reads, json_classes=self._finder.json_classes)
        if not (self._finder.listed or (sources and truth.painted)):
            truth.remarks = tuple(self.decided)
        return truth

    def _source(self, record: Mapping[str, Any]) -> ImageSource:
        """Find the maps of an image."""
        complete = self._complete(record)
        try:
            source = self._finder.find(complete)
        except ValueError as error:
            raise (ValueError(f"{self._alias}{error}") if self._alias else error) from error
        things = len(self.stuff) < len(self.class_names)
        expected = things and self._missing != "components"
        if source.kind == "components" and expected and self._has_instances:
            if self._missing == "error":
                raise ValueError(
                    f"{self.name}: {source.files} has no instances beside it, but other images "
                    "of the data set have; give missing_instances='components' (its connected "
                    "components are the instances) or 'void' (none can be told apart), on the "
                    "command line --missing-instances"
                )
            source = dataclasses.replace(source, kind="void")
        if things and source.kind not in self._kinds:
            self.decided.append(
                f"{self.name}: {TOLD[source.kind]}, e.g. of {self._name_files(source)}; "
                "ins_seg_file_name in the dicts, or reader=, names another source."
            )
        self._kinds.add(source.kind)
        return source

    def _name_files(self, source: ImageSource) -> str:
        if source.kind == "json" and source.semantic is None:
            return f"{self._finder.json_file}, image {source.number}"
        return source.files

    def _reader_of(self, *kinds: str) -> SourceReader:
        if "json" not in kinds:
            return self._reads
        return dataclasses.replace(self._reads, annotations=self._finder.annotations)

    def _image(self, record: Mapping[str, Any], source: ImageSource) -> TruthImage:
        """Describe one image for scoring."""
        picture = record.get("file_name")
        image_id = record.get("image_id", picture)
        if image_id is None:
            raise ValueError(
                f"{self.name}: every dict needs 'image_id' or 'file_name', got {sorted(record)}"
            )
        paths = [str(path) for path in (picture, source.semantic) if path]
        stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
        if not set(str(image_id)) & set("/\\"):
            stems.append(str(image_id))
        return TruthImage(
            str(image_id),
            tuple(dict.fromkeys([*stems, *map(bare_name, stems)])),
            source,
            picture,
            translated=self._reads.rule is not None,
        )

    # ---- What is registered -------------------------------------------------------------------

    @functools.cached_property
    def _records(self) -> list[dict[str, Any]]:
        # Metadata alone is enough if the dicts that are read have all keys.
        if self.name not in DatasetCatalog.list():
            return []
        try:
            return DatasetCatalog.get(self.name)
        except FileNotFoundError as error:
            raise (FileNotFoundError(f"{self._alias}{error}") if self._alias else error) from error

    @functools.cached_property
    def _by_file(self) -> dict[str, dict[str, Any]]:
        return {str(record.get("file_name")): record for record in self._records}

    def _complete(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Restore the keys of a dict that a mapper dropped or changed, from the registered one."""
        if "sem_seg_file_name" in record and "ins_seg_file_name" in record:
            return record
        known = self._by_file.get(str(record.get("file_name")), {})
        return {**record, **{key: known[key] for key in _KEYS if key in known}}

    @functools.cached_property
    def _has_instances(self) -> bool:
        """Tell whether any image of the data set has instances, so that all must have them."""
        return any(self._finder.find(record).kind != "components" for record in self._records)
