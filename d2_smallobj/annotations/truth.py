"""Open the ground truth of a data set: label maps, COCO, LVIS, panoptic files, Cityscapes.

A :class:`GroundTruth` is picklable, so that every process can read its own images.
Legend: H, W height and width of an image.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from d2_smallobj.annotations.cityscapes import (
    BENCHMARK_LABELS,
    BENCHMARK_STUFF,
    bare_name,
    instance_ids_beside,
)
from d2_smallobj.annotations.coco import IGNORE_LABEL, InstanceAnnotations
from d2_smallobj.annotations.coco_file import Id
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.image_sources import ImageSource, SourceReader, TruthImage
from d2_smallobj.annotations.label_maps import LabelFolder
from d2_smallobj.annotations.label_rules import VOID
from d2_smallobj.annotations.panoptic import read_panoptic_file
from d2_smallobj.utils.messages import Problems

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
"""Suffixes of pictures."""
# Of the maps, of the picture, and of what detectron2's own evaluator writes.
_CITYSCAPES_SUFFIXES = (
    "",
    "_leftImg8bit",
    "_gtFine_labelIds",
    "_gtFine_labelTrainIds",
    "_leftImg8bit_pred",
)


class GroundTruth:
    """Ground truth of a data set.

    Args:
        images: its images, in any order.
        reader: reads them.
        json_classes: class by the ``category_id`` that detectron2's evaluator writes for it;
            ``None``: that is the class.

    Attributes:
        images: as given; also ``json_classes``.
        remarks: what was decided about it without being asked for, one sentence each.
        class_names: names of its classes; empty: it has none.
        stuff: ids of the classes without instances; empty, too, where it does not know.
        ignore_label: its label of ignored pixels; ``None``: it has none of its own.
        annotations: the annotation file that images are painted from; ``None``: there is none.
        void_instance: instance id of pixels whose instance is unknown.
    """

    void_instance = VOID

    def __init__(
        self,
        images: Iterable[TruthImage],
        reader: SourceReader | None = None,
        *,
        json_classes: Mapping[Id, int] | None = None,
    ) -> None:
        reader = reader or SourceReader()
        self.images = list(images)
        self.class_names = tuple(reader.class_names)
        self.stuff = tuple(reader.stuff)
        self.ignore_label = reader.ignore_label
        self.annotations = reader.annotations
        self.json_classes = json_classes
        self.remarks: tuple[str, ...] = ()
        self._given = reader

    @property
    def painted(self) -> bool:
        """Return whether all maps are painted from the annotation file, above background."""
        plain = self._given.rule is None and self._given.unannotated == 0
        sources = [image.source for image in self.images]
        return plain and all(s.kind == "json" and s.semantic is None for s in sources)

    def size(self, image: TruthImage) -> tuple[int, int]:
        """Height and width of an image, without decoding it.

        Raises:
            OSError, ValueError: a file is missing or no label map, or two differ in size.
        """
        return self._reader.size(image.source)

    def read(self, image: TruthImage) -> tuple[np.ndarray, np.ndarray | None]:
        """Semantic map and instance map, both integer (H, W); ``None``: there are no instances.

        Raises:
            OSError, ValueError: a file or annotation is missing or malformed; names it.
        """
        return self._reader.read(image.source)

    def without_images(self) -> GroundTruth:
        """A copy for other processes, to which self-contained images are sent one by one."""
        lean = copy.copy(self)
        lean.images, lean.annotations = [], None
        return lean

    def self_contained(self, image: TruthImage) -> TruthImage:
        """The image with its annotations, so that it can be read without the annotation file."""
        source = image.source
        if source.kind != "json":
            return image
        file = self.annotations
        assert file is not None
        contained = dataclasses.replace(
            source,
            name=str(file.path),
            kind="annotations",
            annotations=tuple(file.annotations(source.number)),
            size=file.image_size(source.number),
        )
        return dataclasses.replace(image, source=contained)

    @property
    def _reader(self) -> SourceReader:
        return dataclasses.replace(
            self._given,
            class_names=self.class_names,
            stuff=self.stuff if self.class_names else (),
            ignore_label=self.ignore_label,
            annotations=self.annotations,
        )


def folder_truth(
    semantic: str | os.PathLike[str],
    instances: str | os.PathLike[str] | None = None,
    *,
    listed: Sequence[str] | None = None,
) -> GroundTruth:
    """Open ground truth in one or two folders of label maps of the same names.

    Args:
        semantic: folder of semantic maps; its files are the images.
        instances: folder of instance maps; ``None``: connected components are the instances.
        listed: the images to score; default: all.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: both are one folder.
        InputError: a listed image has no semantic map, an image has no instance map, or two files
            of one folder have the same name.
    """
    folder = LabelFolder(semantic, "--semantic")
    other = None if instances is None else LabelFolder(instances, "--instances")
    if instances is not None and os.path.samefile(semantic, instances):
        raise ValueError(
            f"--semantic and --instances are the same folder, {folder.path}: give that of the "
            "instance maps, or leave --instances out and connected components are the instances"
        )
    problems = Problems()
    images = []
    for stem in sorted(folder.files) if listed is None else listed:
        path = folder.find(stem)
        if path is None:
            problems.add(f"image(s) of --list without a semantic map in {folder.path}", stem)
            continue
        for source in (folder, other):
            if source is not None and stem in source.ambiguous:
                names = " and ".join(source.ambiguous[stem])
                problems.add(f"name(s) that two files in {source.path} share", names)
        found = None if other is None else other.find(stem)
        if other is not None and found is None:
            problems.add(
                f"image(s) without an instance map in {other.path} (to score those that have"
                " one, name them with --list)",
                stem,
            )
        images.append(TruthImage.of_files(stem, path, found))
    problems.raise_if_any()
    return GroundTruth(images)


def annotation_truth(
    annotations: InstanceAnnotations, *, listed: Sequence[str] | None = None
) -> GroundTruth:
    """Paint ground truth from a COCO or LVIS annotation file, the largest annotation first.

    The prediction of an image is looked for under the name of its picture
    (``COCO_val2014_000000000042``), its id in twelve digits, and its id. ``listed`` chooses images
    by picture name or id.

    Raises:
        InputError: a listed image is not in the file.
    """
    path, images = str(annotations.path), []
    for number in annotations.image_ids:
        try:
            name = annotations.file_name(number).replace("\\", "/")
        except ValueError:
            name = ""  # An image without a name is found by its id alone.
        # The last part only, and it is only compared: it cannot lead anywhere.
        stems = filter(None, (PurePosixPath(name).stem, str(number).zfill(12), str(number)))
        source = ImageSource(path, kind="json", number=number)
        images.append(TruthImage(str(number), tuple(dict.fromkeys(stems)), source))
    # Pixels without annotation are background.
    reader = SourceReader(annotations.class_names, (0,), IGNORE_LABEL, annotations=annotations)
    return GroundTruth(choose(images, listed, path), reader)


def panoptic_truth(
    json_file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    listed: Sequence[str] | None = None,
) -> GroundTruth:
    """Open ground truth in COCO's panoptic format: a JSON file and its folder of PNGs.

    The classes are the categories in ascending order of their ids; ``isthing`` tells which are
    stuff. Predictions are looked for under the name of the PNG, of the picture, and the id, by
    which ``listed`` chooses images, too.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file or folder.
        ValueError: the file is malformed.
        InputError: PNGs are missing, or a listed image is not in the file.
    """
    content = read_panoptic_file(json_file)
    folder = os.fspath(folder)
    os.listdir(folder)  # Raises for what is no folder.
    files, problems, images = FileCheck("", ""), Problems(), []
    for entry, segments in zip(content.entries, content.segments):
        # The last part only: it cannot lead out of the folder.
        name = PurePosixPath(entry.file_name.replace("\\", "/")).name
        path = os.path.join(folder, name)
        number = str(entry.image_id)
        picture = content.pictures.get(entry.image_id, "").replace("\\", "/")
        stems = [PurePosixPath(name).stem, PurePosixPath(picture).stem, number.zfill(12), number]
        source = ImageSource(name, None, "panoptic", path, segments)
        images.append(TruthImage(number, tuple(dict.fromkeys(filter(None, stems))), source))
        if not files.exists(path):
            problems.add(f"panoptic PNG(s) of {json_file} that are not in {folder}", name)
    if listed is None:
        problems.raise_if_any()
    images = choose(images, listed, str(json_file))
    ignore_label = 255 if len(content.class_names) <= 255 else 65535
    reader = SourceReader(content.class_names, content.stuff, ignore_label)
    return GroundTruth(images, reader, json_classes=content.class_ids)


def cityscapes_truth(
    folder: str | os.PathLike[str], *, listed: Sequence[str] | None = None
) -> GroundTruth:
    """Open ground truth of Cityscapes: the 19 classes of the benchmark, as train ids.

    ``folder`` is ``gtFine``, or a split or a city of it; ``listed`` names images as
    ``<city>_<sequence>_<frame>``.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        InputError: instance maps are missing, or a listed image is not there.
        ValueError: there is no label map in it.
    """
    os.listdir(folder)  # Raises for what is no folder.
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(Path(folder).rglob("*_label*Ids.png")):
        instances = instance_ids_beside(str(path))
        if instances is not None:
            # labelIds come before labelTrainIds, which are made of them.
            found.setdefault(bare_name(path.stem), (str(path), instances))
    if not found:
        raise ValueError(
            f"--cityscapes: no *_gtFine_labelIds.png in {folder} or below it; give gtFine or a "
            "split of it"
        )
    files, problems, images = FileCheck("", ""), Problems(), []
    for name, (semantic, instances) in found.items():
        if not files.exists(instances):
            problems.add("instance map(s) missing beside the label map", instances)
        stored = semantic.endswith("_labelIds.png")
        source = ImageSource(name, semantic, "cityscapes", instances, label_ids=stored)
        stems = tuple(f"{name}{suffix}" for suffix in _CITYSCAPES_SUFFIXES)
        picture = semantic.replace(f"{os.sep}gtFine{os.sep}", f"{os.sep}leftImg8bit{os.sep}")
        picture = os.path.join(os.path.dirname(picture), f"{name}_leftImg8bit.png")
        found_picture = picture if files.exists(picture) else None
        images.append(TruthImage(name, stems, source, found_picture))
    if listed is None:
        problems.raise_if_any()
    else:
        images = choose(images, [bare_name(entry) for entry in listed], str(folder))
    return GroundTruth(images, SourceReader(tuple(BENCHMARK_LABELS), BENCHMARK_STUFF, 255))


def choose(
    images: Sequence[TruthImage], listed: Sequence[str] | None, source: str
) -> list[TruthImage]:
    """The images that a list names by id or file name, or all; InputError for names of no image."""
    if listed is None:
        return list(images)
    by_name = {name: image for image in images for name in (*image.stems, image.image_id)}
    problems = Problems()
    for name in listed:
        if name not in by_name:
            problems.add(f"image(s) of --list that {source} does not have", name)
    problems.raise_if_any()
    return list({by_name[name].image_id: by_name[name] for name in listed}.values())


def with_pictures(truth: GroundTruth, folder: str | os.PathLike[str]) -> GroundTruth:
    """Set the picture of every image that has one of its name in a folder."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PICTURES:
            found.setdefault(stem, os.path.join(folder, name))
    truth.images = [
        dataclasses.replace(
            image, picture=next((found[stem] for stem in image.stems if stem in found), None)
        )
        for image in truth.images
    ]
    return truth
