"""Data sets in the layout of PASCAL VOC 2012: image lists, JPEG images, PNG label maps."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from d2_smallobj.annotations.coco_file import KINDS, Id, id_order, read_annotation_file
from d2_smallobj.annotations.dataset_files import FileCheck, resolve_inside
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.options import look_up_option

IMAGE_FOLDER = "JPEGImages"
LIST_FOLDER = "ImageSets/Segmentation"


@dataclasses.dataclass(frozen=True)
class ListedImage:
    """One line of an image list.

    Attributes:
        image_id: the image's name without folder and suffix.
        image: path of the image below the data set's root, or None if the list gives bare ids.
        label: path of the label map below the root, or None.
    """

    image_id: str
    image: str | None = None
    label: str | None = None


def read_image_list(path: str | os.PathLike[str]) -> list[ListedImage]:
    """Read an image list.

    Both forms in use are read, line by line: bare ids (``2007_000032``), and pairs as in the
    SegmentationAug lists (``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``).
    Empty lines are passed over.

    Args:
        path: the list, UTF-8 text.

    Returns:
        The images in the order of the file; paths without their leading slash.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the list is empty or not text, names an image twice, has a line of another
            form, or a path that climbs out of the data set's folder. Names file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: an image list is UTF-8 text; {error}") from error
    images: dict[str, ListedImage] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        image = _parse(fields, f"{path}, line {number}")
        if image.image_id in images:
            raise ValueError(f"{path}, line {number}: image {image.image_id!r} is listed twice")
        images[image.image_id] = image
    if not images:
        raise ValueError(f"{path}: the image list is empty")
    return list(images.values())


def _parse(fields: list[str], where: str) -> ListedImage:
    """Make an entry of the fields of one line."""
    if len(fields) == 1 and not set(fields[0]) & set("/\\") and fields[0] not in (".", ".."):
        return ListedImage(fields[0])
    if len(fields) == 2 and all("/" in field for field in fields):
        image, label = (
            resolve_inside(Path(), field, where).as_posix().lstrip("/") for field in fields
        )
        return ListedImage(PurePosixPath(image).stem, image, label)
    raise ValueError(
        f"{where}: expected an image id, or an image path and a label path; got "
        f"{' '.join(fields)!r}"
    )


def voc_dicts(
    root: str | os.PathLike[str],
    split: str,
    *,
    label_dir: str,
    instance_dir: str | None = None,
    list_file: str | None = None,
    name: str | None = None,
    prepare: str = "See datasets/README.md for the layout and where the files come from.",
    check: FileCheck | None = None,
) -> list[dict[str, Any]]:
    """List a data set in detectron2's format without opening an image.

    Args:
        root: folder that holds ``JPEGImages`` and the label folders (``VOCdevkit/VOC2012``).
        split: name of the list in ``ImageSets/Segmentation``, without ``.txt``; see
            :func:`find_list`.
        label_dir: folder of the semantic maps below ``root``; a map is ``<id>.png``. Other
            files beside them (``<id>_palette.png``) are passed over. It also holds where the
            list names label files of its own.
        instance_dir: folder of the instance maps below ``root``, if there are any.
        list_file: the list's path below ``root`` where it lies elsewhere.
        name: the data set's name for messages; default: ``split``.
        prepare: what to do about missing files, a sentence for the message.
        check: notes which files are looked for and missing; default: a new one, of ``name`` and
            ``prepare``.

    Returns:
        One dict per image: ``file_name``, ``sem_seg_file_name``, ``image_id`` (str), and
        ``ins_seg_file_name`` with ``instance_dir``. Height and width are known once an image is
        loaded; they are not in the dict.

    Raises:
        FileNotFoundError: files are missing; one error that names the first ten, how many there
            are, and ``prepare``.
        ValueError: the list is malformed; see :func:`read_image_list`.
    """
    root = Path(root)
    list_path = root / list_file if list_file else find_list(root, split)
    check = check or FileCheck(name or split, prepare)
    folders = {"sem_seg_file_name": label_dir}
    if instance_dir is not None:
        folders["ins_seg_file_name"] = instance_dir
    if not check.require(list_path, one_of_many=False):
        for folder in (IMAGE_FOLDER, *folders.values()):
            check.require_folder(root / folder)
        check.raise_if_missing()

    paths = {key: os.path.join(root, folder) for key, folder in folders.items()}
    dicts = []
    for image in read_image_list(list_path):
        record: dict[str, Any] = {"file_name": image_path(root, image)}
        for key, folder in paths.items():
            record[key] = os.path.join(folder, f"{image.image_id}.png")
        for path in record.values():
            check.require(path)
        dicts.append({**record, "image_id": image.image_id})
    check.raise_if_missing()
    return dicts


def image_path(root: str | os.PathLike[str], image: ListedImage) -> str:
    """The file of a listed image: what its list names, or ``JPEGImages/<id>.jpg``."""
    return os.path.join(root, image.image or f"{IMAGE_FOLDER}/{image.image_id}.jpg")


def find_list(root: str | os.PathLike[str], split: str) -> Path:
    """Path of a split's image list; ``trainaug`` may be called ``train_aug``, as it often is."""
    folder = Path(root) / LIST_FOLDER
    usual = folder / f"{split}.txt"
    other = folder / "train_aug.txt"
    return other if split == "trainaug" and not usual.exists() and other.exists() else usual


class IndexedImage(NamedTuple):
    """An image of an annotation file; sizes in pixels.

    Attributes:
        image_id: its id.
        file_name: path of the image below the folder of images, checked to stay in it.
        height: H.
        width: W.
        annotated: whether it has any annotation, crowds included.
    """

    image_id: Id
    file_name: str
    height: int
    width: int
    annotated: bool


class ImageIndex(NamedTuple):
    """The images of an annotation file, in its order, and its class names, background first."""

    images: tuple[IndexedImage, ...]
    class_names: tuple[str, ...]


def image_index(json_path: str | os.PathLike[str], kind: str = "coco") -> ImageIndex:
    """List the images of an annotation file.

    The answer is kept in memory, so that a file is read once by a process as long as it is not
    changed.

    Args:
        json_path: the annotation file.
        kind: ``"coco"`` or ``"lvis"``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is malformed, or names images outside their folder; see
            :func:`.coco_file.read_annotation_file`.
    """
    look_up_option("kind", kind, KINDS)
    state = os.stat(json_path)
    return _image_index(os.path.abspath(json_path), kind, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _image_index(path: str, kind: str, modified: int, size: int) -> ImageIndex:
    """See :func:`image_index`; time and size only tell one state of the file from another."""
    content = read_annotation_file(path, kind)
    annotated = {annotation.image_id for annotation in content.annotations}
    images, problems = [], []
    for image in content.images.values():
        try:
            name = content.file_name(image.id)
            inside = resolve_inside(Path(), name, f"image {image.id}").as_posix()
        except ValueError as error:
            problems.append(str(error))
            continue
        images.append(
            IndexedImage(image.id, inside, image.height, image.width, image.id in annotated)
        )
    if problems:
        raise ValueError(f"{path}: {itemized('unusable file name(s)', problems)}")
    names = (
        content.categories[category].name for category in sorted(content.categories, key=id_order)
    )
    return ImageIndex(tuple(images), ("background", *names))


def coco_dicts(
    json_path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    kind: str = "coco",
    class_names: Sequence[str] | None = None,
    label_dir: str | os.PathLike[str] | None = None,
    name: str | None = None,
    prepare: str = "See datasets/README.md for the layout and where the files come from.",
    check: FileCheck | None = None,
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
        check: notes which files are looked for and missing; default: a new one, of ``name`` and
            ``prepare``.

    Returns:
        One dict per image: ``file_name``, ``image_id`` (int), ``height``, ``width``, and
        ``sem_seg_file_name`` with ``label_dir``.

    Raises:
        FileNotFoundError: files are missing; one error that names the first ten, how many there
            are, and ``prepare``.
        ValueError: the annotation file is malformed or has other classes.
    """
    json_path, image_dir = Path(json_path), Path(image_dir)
    check = check or FileCheck(name or json_path.stem, prepare)
    if not check.require(json_path, one_of_many=False):
        check.require_folder(image_dir)
        if label_dir is not None:
            check.require_folder(label_dir)
        check.raise_if_missing()

    index = image_index(json_path, kind)
    if class_names is not None and tuple(class_names) != index.class_names:
        raise ValueError(
            f"{json_path}: expected {len(class_names) - 1} categories "
            f"({', '.join(class_names[1:4])}, ...), got {len(index.class_names) - 1} "
            f"({', '.join(index.class_names[1:4])}, ...) or another order"
        )
    dicts = []
    for image in index.images:
        if label_dir is not None and not image.annotated:
            continue
        path = os.path.join(image_dir, image.file_name)
        check.require(path)
        record: dict[str, Any] = {
            "file_name": path,
            "image_id": image.image_id,
            "height": image.height,
            "width": image.width,
        }
        if label_dir is not None:
            label = label_path(label_dir, image, check)
            check.require(label)
            record["sem_seg_file_name"] = label
        dicts.append(record)
    check.raise_if_missing()
    return dicts


def label_path(
    folder: str | os.PathLike[str], image: IndexedImage, check: FileCheck, suffix: str = ".png"
) -> str:
    """Where an image's label map is: a file named like the image, or by its id in twelve digits.

    Args:
        folder: of the label maps.
        image: the image.
        check: knows what is in the folder.
        suffix: of the file.

    Returns:
        The one that exists, in this order; the first if none does.
    """
    by_name = os.path.join(folder, f"{PurePosixPath(image.file_name).stem}{suffix}")
    by_id = os.path.join(folder, f"{str(image.image_id).zfill(12)}{suffix}")
    return by_id if not check.exists(by_name) and check.exists(by_id) else by_name
