"""Where ground truth comes from: folders of label maps, or COCO or LVIS annotations.

All of them are picklable, so that every process can read its own images.
Legend: H, W height and width of an image.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np

from d2_smallobj.annotations.classes import stuff_beside_background
from d2_smallobj.annotations.coco import IGNORE_LABEL, InstanceAnnotations
from d2_smallobj.annotations.image_sources import ImageSource, SourceReader
from d2_smallobj.annotations.label_maps import LabelFolder, label_size, read_labels
from d2_smallobj.annotations.label_rules import VOID, without_stuff
from d2_smallobj.utils.problems import Problems

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class TruthImage:
    """One image of the ground truth.

    Attributes:
        image_id: its name in the results.
        stems: names under which its prediction is looked for, in this order.
        semantic: file of the semantic map, or ``None`` if it is painted from annotations.
        instances: file of the instance map, or ``None``.
        annotation_id: its id in the annotation file, or ``None``.
        picture: the picture itself, if it is known.
        source: how a registered data set's maps are read, where they are no files that could be
            read as they are.
    """

    image_id: str
    stems: tuple[str, ...]
    semantic: str | None = None
    instances: str | None = None
    annotation_id: int | None = None
    picture: str | None = None
    source: ImageSource | None = None

    @property
    def where(self) -> str:
        """What messages call it."""
        own = None if self.source is None else self.source.semantic
        return self.semantic or own or f"image {self.image_id}"

    @property
    def both(self) -> str:
        """What messages call its two maps together."""
        own = None if self.source is None else self.source.instances
        instances = self.instances or own
        return f"{self.where} and {instances}" if instances else self.where


class GroundTruth(Protocol):
    """Ground truth of a data set.

    Attributes:
        images: its images, in any order.
        class_names: names of its classes; ``None``: it has none.
        stuff: ids of the classes without instances; ``None``: it does not know.
        ignore_label: its label of ignored pixels; ``None``: it has none of its own.
        void_instance: instance id of pixels that belong to no instance that could be told;
            ``None``: there is none.
        json_classes: class by the ``category_id`` that detectron2's evaluator writes for it;
            ``None``: that is the class.
        remarks: what was decided about it without being asked for, one sentence each.
    """

    images: list[TruthImage]
    class_names: tuple[str, ...] | None
    stuff: tuple[int, ...] | None
    ignore_label: int | None
    void_instance: int | None
    json_classes: Mapping[int, int] | None
    remarks: Sequence[str]

    def choose_stuff(self, stuff: tuple[int, ...] | None) -> None:
        """Let other classes be stuff than the ground truth itself says."""

    def size(self, image: TruthImage) -> tuple[int, int]:
        """Height and width of an image, without decoding it.

        Raises:
            OSError, ValueError: a file is missing or no label map, or two differ in size.
        """

    def read(self, image: TruthImage) -> tuple[np.ndarray, np.ndarray | None]:
        """Semantic map and instance map, both integer (H, W); ``None``: there are no instances.

        Raises:
            OSError, ValueError: a file or annotation is missing or malformed; names it.
        """


class FileTruth:
    """Ground truth in files.

    Args:
        images: with ``semantic``, and ``instances`` where there are any.
        class_names: names of the classes, if they are known.
        stuff: ids of the classes without instances, if they are known.
        ignore_label: label of ignored pixels, if it is known.
    """

    void_instance = VOID
    json_classes: Mapping[int, int] | None = None
    remarks: Sequence[str] = ()

    def __init__(
        self,
        images: Iterable[TruthImage],
        *,
        class_names: Sequence[str] | None = None,
        stuff: Sequence[int] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        self.images = list(images)
        self.class_names = None if class_names is None else tuple(class_names)
        self.stuff = None if stuff is None else tuple(stuff)
        self.ignore_label = ignore_label

    def choose_stuff(self, stuff: tuple[int, ...] | None) -> None:
        """See :meth:`GroundTruth.choose_stuff`."""
        self.stuff = stuff

    def size(self, image: TruthImage) -> tuple[int, int]:
        """See :meth:`GroundTruth.size`."""
        size = label_size(image.semantic)
        if image.instances is not None:
            other = label_size(image.instances)
            if other != size:
                raise ValueError(
                    f"{image.instances}: height x width {_x(other)}, but {_x(size)} in "
                    f"{image.semantic}"
                )
        return size

    def read(self, image: TruthImage) -> tuple[np.ndarray, np.ndarray | None]:
        """See :meth:`GroundTruth.read`."""
        semantic = read_labels(image.semantic)
        instances = None if image.instances is None else read_labels(image.instances)
        return semantic, _things_only(self, semantic, instances)


def folder_truth(
    semantic: str | os.PathLike[str],
    instances: str | os.PathLike[str] | None = None,
    *,
    listed: Sequence[str] | None = None,
) -> FileTruth:
    """Ground truth in one or two folders of label maps of the same names.

    Args:
        semantic: folder of semantic maps; its files are the images.
        instances: folder of instance maps; ``None``: the components of the semantic maps are
            the instances. Maps that have no semantic map are passed over.
        listed: the images to score; default: all.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        InputError: a listed image has no semantic map, an image has no instance map, or two
            files of one folder claim one image.
    """
    folder = LabelFolder(semantic, "--semantic")
    other = None if instances is None else LabelFolder(instances, "--instances")
    problems = Problems()
    images = []
    for stem in sorted(folder.files) if listed is None else listed:
        if stem not in folder.files:
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
        images.append(TruthImage(stem, (stem,), folder.find(stem), found))
    problems.raise_if_any()
    return FileTruth(images)


class SourceTruth:
    """Ground truth of a registered data set.

    Args:
        images: with their ``source``.
        reader: reads it.
        remarks: see :class:`GroundTruth`.
        json_classes: see :class:`GroundTruth`.
    """

    void_instance = VOID

    def __init__(
        self,
        images: Iterable[TruthImage],
        reader: SourceReader,
        remarks: Sequence[str] = (),
        *,
        json_classes: Mapping[int, int] | None = None,
    ) -> None:
        self.images = list(images)
        self.json_classes = json_classes
        self.remarks = tuple(remarks)
        self.class_names = tuple(reader.class_names)
        self.stuff = tuple(reader.stuff)
        self.ignore_label = reader.ignore_label
        self._reader = reader

    def choose_stuff(self, stuff: tuple[int, ...] | None) -> None:
        """See :meth:`GroundTruth.choose_stuff`."""
        self.stuff = tuple(stuff or ())
        self._reader = dataclasses.replace(self._reader, stuff=self.stuff)

    def size(self, image: TruthImage) -> tuple[int, int]:
        """See :meth:`GroundTruth.size`."""
        return self._reader.size(image.source)

    def read(self, image: TruthImage) -> tuple[np.ndarray, np.ndarray | None]:
        """See :meth:`GroundTruth.read`."""
        return self._reader.read(image.source)


class AnnotationTruth:
    """Ground truth painted from a COCO or LVIS annotation file, the largest annotation first.

    The prediction of an image is looked for under the name of its picture
    (``COCO_val2014_000000000042``), its id in twelve digits, and its id.

    Args:
        annotations: the annotation file, with its classes.
        source: what messages call it.
        listed: the images to score, by picture name or id; default: all.

    Attributes:
        annotations: as given.

    Raises:
        InputError: a listed image is not in the file.
    """

    void_instance = VOID
    json_classes: Mapping[int, int] | None = None
    remarks: Sequence[str] = ()
    # Pixels without annotation are background.
    stuff: tuple[int, ...] = (0,)

    def __init__(
        self,
        annotations: InstanceAnnotations,
        source: str | os.PathLike[str],
        *,
        listed: Sequence[str] | None = None,
    ) -> None:
        self.annotations = annotations
        self.class_names = tuple(annotations.class_names)
        self.ignore_label = IGNORE_LABEL
        images = [self._image(number) for number in annotations.image_ids]
        self.images = images if listed is None else choose(images, listed, str(source))

    def choose_stuff(self, stuff: tuple[int, ...] | None) -> None:
        """See :meth:`GroundTruth.choose_stuff`."""
        self.stuff = stuff

    def size(self, image: TruthImage) -> tuple[int, int]:
        """See :meth:`GroundTruth.size`."""
        return self.annotations.image_size(image.annotation_id)

    def read(self, image: TruthImage) -> tuple[np.ndarray, np.ndarray | None]:
        """See :meth:`GroundTruth.read`."""
        semantic, instances = self.annotations.maps(image.annotation_id)
        return semantic, _things_only(self, semantic, instances)

    def _image(self, number: int) -> TruthImage:
        names = [str(number).zfill(12), str(number)]
        try:
            file_name = self.annotations.file_name(number).replace("\\", "/")
        except ValueError:
            file_name = ""  # An image without a name is found by its id alone.
        # The last part only, and it is only compared: it cannot lead anywhere.
        names.insert(0, PurePosixPath(file_name).stem)
        return TruthImage(
            str(number), tuple(dict.fromkeys(filter(None, names))), annotation_id=number
        )


def _things_only(
    truth: GroundTruth, semantic: np.ndarray, instances: np.ndarray | None
) -> np.ndarray | None:
    """Remove what is annotated of classes that are stuff here: no segment of it is an instance."""
    if truth.class_names is None:
        return instances
    declared = stuff_beside_background(truth.stuff, truth.class_names)
    label = IGNORE_LABEL if truth.ignore_label is None else truth.ignore_label
    return without_stuff(semantic, instances, declared, label)


def choose(images: Sequence[TruthImage], listed: Sequence[str], source: str) -> list[TruthImage]:
    """The images that a list names by id or file name."""
    by_name = {name: image for image in images for name in (*image.stems, image.image_id)}
    problems = Problems()
    for name in listed:
        if name not in by_name:
            problems.add(f"image(s) of --list that {source} does not have", name)
    problems.raise_if_any()
    return list({by_name[name].image_id: by_name[name] for name in listed}.values())


def _x(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def with_pictures(truth: GroundTruth, folder: str | os.PathLike[str]) -> GroundTruth:
    """Note the picture of every image that has one in a folder, under its name.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    found = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in _PICTURES:
            found.setdefault(stem, os.path.join(folder, name))
    truth.images = [
        dataclasses.replace(
            image, picture=next((found[stem] for stem in image.stems if stem in found), None)
        )
        for image in truth.images
    ]
    return truth
