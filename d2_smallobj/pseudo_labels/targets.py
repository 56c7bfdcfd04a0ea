"""List the images that need pseudo labels, and the place of the labels."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
from PIL import ImageOps

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, DEMO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.dataset_files import (
    COCO_FOLDER,
    COCO_YEARS,
    DEMO_FOLDER,
    METHODS,
    VOC_FOLDER,
    FileCheck,
    coco_annotations,
    coco_images,
    coco_labels,
    voc_labels,
)
from d2_smallobj.annotations.image_files import open_picture
from d2_smallobj.annotations.image_lists import find_list, image_index, image_path, read_image_list
from d2_smallobj.annotations.image_sources import SourceReader
from d2_smallobj.annotations.truth import GroundTruth, TruthImage, annotation_truth
from d2_smallobj.utils.messages import look_up_option

DATA_SETS = ("voc", *(f"coco_{year}" for year in COCO_YEARS), "demo")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ROTATED = range(5, 9)  # EXIF orientations that exchange height and width.
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class TargetImage:
    """An image that needs a pseudo label.

    A method's label of it is looked for under each of ``stems``; the prepared one has the first.
    """

    stems: tuple[str, ...]
    picture: str | None = None  # its file, from which the size is read if it is not known
    size: tuple[int, int] | None = None  # height and width
    annotation_id: int | str | None = None  # its id in the annotation file, if there is one

    def read_size(self) -> tuple[int, int]:
        """Return height and width of the image as it is trained on, EXIF orientation applied.

        Raises:
            OSError: its file is missing.
            ValueError: it is damaged or no picture.
        """
        if self.size is not None:
            return self.size
        assert self.picture is not None
        with open_picture(self.picture) as picture:
            width, height = picture.size
            # A value that is none, a text or 99, rotates nothing, as when the image is read.
            rotated = picture.getexif().get(_ORIENTATION) in _ROTATED
        return (width, height) if rotated else (height, width)


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) RGB, EXIF orientation applied.

    Raises:
        OSError: it is missing; names the file.
        ValueError: it is damaged or no picture; names the file.
    """
    with open_picture(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


@dataclasses.dataclass(frozen=True)
class LabelTarget:
    """A training set and the place of a method's labels for it."""

    data_set: str  # one of DATA_SETS
    root: Path  # folder of all data sets
    folder: Path  # of the prepared labels
    images: tuple[TargetImage, ...]  # in the order of their list
    class_names: tuple[str, ...]  # background first
    use: str  # name for DATASETS.TRAIN

    @property
    def command(self) -> str:
        """Override that trains on the labels."""
        return f"DATASETS.TRAIN \"('{self.use}',)\""

    @property
    def summary(self) -> Path:
        """Path of the summary's files, without suffix; nothing is added to a demo folder."""
        beside = self.root if self.data_set == "demo" else self.folder.parent
        return beside / f"{'demo_labels_' if self.data_set == 'demo' else ''}{self.folder.name}"

    def files(self) -> dict[str, str]:
        """The prepared label of every image, by the image's id in :meth:`ground_truth`."""
        files = {}
        for image in self.images:
            key = image.stems[0] if image.annotation_id is None else image.annotation_id
            files[str(key)] = os.path.join(self.folder, f"{image.stems[0]}.png")
        return files

    def ground_truth(self) -> GroundTruth | None:
        """Open the ground truth of the target's images that have instances; ``None`` without any.

        VOC: training images with maps in SegmentationClass and SegmentationObject; COCO: all
        images, by the annotation file.
        """
        if self.data_set.startswith("coco"):
            truth = annotation_truth(InstanceAnnotations(_coco_json(self.root, self.data_set)))
            wanted = {image.annotation_id for image in self.images}
            truth.images = [image for image in truth.images if image.source.number in wanted]
            return truth
        check = FileCheck("", "")
        found = []
        for image in self.images:
            stem = image.stems[0]
            semantic, instances = (
                os.path.join(self.folder.parents[1], name, f"{stem}.png")
                for name in ("SegmentationClass", "SegmentationObject")
            )
            if check.exists(semantic) and check.exists(instances):
                found.append(TruthImage.of_files(stem, semantic, instances))
        return GroundTruth(found, SourceReader(self.class_names)) if found else None


def open_target(root: str | os.PathLike[str], data_set: str, method: str) -> LabelTarget:
    """List the images of a training set, one of :data:`DATA_SETS`, below ``root``.

    ``method`` names the labels' folder, in letters, digits, ``_``, ``.`` and ``-``.

    Raises:
        FileNotFoundError: the list, the annotation file or images are missing.
        ValueError: an option is unknown, or the list or the file malformed.
    """
    look_up_option("data_set", data_set, DATA_SETS)
    if not _NAME.fullmatch(method):
        raise ValueError(
            f"method: a name of letters, digits, '_', '.' and '-' is needed, got {method!r}"
        )
    root = Path(root)
    if data_set.startswith("coco"):
        return _coco_target(root, data_set, method)
    demo = data_set == "demo"
    folder = root / DEMO_FOLDER / VOC_FOLDER if demo else root / VOC_FOLDER
    section = "Demo" if demo else "VOC-aug and pseudo labels"
    check = FileCheck(data_set, f'See datasets/README.md, section "{section}".')
    list_path = find_list(folder, "train" if demo else "trainaug")
    if not check.require(list_path, one_of_many=False):
        check.raise_if_missing()
    images = []
    for image in read_image_list(list_path):
        picture = image_path(folder, image)
        images.append(TargetImage((image.image_id,), picture))
        check.require(picture)
    check.raise_if_missing()
    labels = folder / voc_labels(method)
    base = "smallobj_demo_train" if demo else "voc_2012_trainaug"
    class_names = DEMO_CLASS_NAMES if demo else VOC_CLASS_NAMES
    use = _use(base, method, labels)
    return LabelTarget(data_set, root, labels, tuple(images), class_names, use)


def _use(base: str, method: str, labels: Path) -> str:
    """The name under which a method's labels are trained on."""
    known = method in METHODS and base != "smallobj_demo_train"
    return f"{base}_{method}" if known else f"{base}@{labels}"


def _coco_target(root: Path, data_set: str, method: str) -> LabelTarget:
    """COCO's training images that have annotations: methods write no labels for the others."""
    year = data_set.rsplit("_", 1)[1]
    path = _coco_json(root, data_set)
    check = FileCheck(data_set, 'See datasets/README.md, section "COCO".')
    check.require(path, one_of_many=False)
    check.raise_if_missing()
    index = image_index(path)
    if index.class_names != COCO_CLASS_NAMES:
        raise ValueError(
            f"{path}: expected COCO's {len(COCO_CLASS_NAMES) - 1} categories, got "
            f"{len(index.class_names) - 1} or others"
        )
    pictures = coco_images(root, "train", year)
    images = (
        TargetImage(
            tuple(dict.fromkeys((Path(image.file_name).stem, str(image.image_id).zfill(12)))),
            os.path.join(pictures, image.file_name),
            (image.height, image.width),
            annotation_id=image.image_id,
        )
        for image in index.images
        if image.annotated
    )
    folder = root / COCO_FOLDER / coco_labels(method, year)
    use = _use(f"coco_{year}_train_81", method, folder)
    return LabelTarget(data_set, root, folder, tuple(images), COCO_CLASS_NAMES, use)


def _coco_json(root: Path, data_set: str) -> Path:
    return coco_annotations(root, "train", data_set.rsplit("_", 1)[1])
