"""List the images of data sets in the layouts of PASCAL VOC 2012 and COCO."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from d2_smallobj.annotations.coco_file import KINDS, Id, read_annotation_file
from d2_smallobj.annotations.dataset_files import FileCheck, resolve_inside
from d2_smallobj.utils.files import read_text
from d2_smallobj.utils.messages import itemized, look_up_option

IMAGE_FOLDER = "JPEGImages"
LIST_FOLDER = "ImageSets/Segmentation"


class ListedImage(NamedTuple):
    """An image of a list: its name without folder and suffix; its path below the data set's root.

    The path is None if the list gives bare ids.
    """

    image_id: str
    image: str | None = None


def read_image_list(path: str | os.PathLike[str]) -> list[ListedImage]:
    """Read an image list: UTF-8 text, one image a line.

    A line is a bare id (``2007_000032``), or a pair as in the SegmentationAug lists
    (``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``). Empty lines are
    skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the list is empty or not text, or a line repeats an image, has another form, or
            a path that climbs out of the data set's folder.
    """
    lines = read_text(path, "an image list").splitlines()
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


def choose_listed(
    list_file: str | os.PathLike[str], names: Mapping[str, Collection[Id]], source: object
) -> set[Id]:
    """Find the images that a list names: UTF-8 text, one name a line.

    Args:
        list_file: the list; spaces around a name and empty lines are skipped.
        names: the images, by their ids, that each known name stands for.
        source: the data set or file that has them, for messages.

    Returns:
        The ids of the listed images.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is empty or no text, or a line names no image, two, or one again.
    """
    lines = read_text(list_file, "a list of images").splitlines()
    chosen: dict[Id, int] = {}
    problems = []
    for number, name in enumerate(map(str.strip, lines), start=1):
        found = names.get(name, ())
        if not name:
            continue
        if len(found) != 1:
            what = f"stands for {len(found)} images" if found else "is no image"
            problems.append(f"line {number}: {name!r} {what} of {source}")
            continue
        (image_id,) = found
        if chosen.setdefault(image_id, number) != number:
            problems.append(f"line {number}: {name!r} is the image of line {chosen[image_id]}")
    if problems:
        raise ValueError(f"{list_file}: {itemized('bad line(s)', problems)}")
    if not chosen:
        raise ValueError(f"{list_file}: the list of images is empty")
    return set(chosen)


def _parse(fields: list[str], where: str) -> ListedImage:
    """Make an entry of the fields of one line."""
    if len(fields) == 1 and not set(fields[0]) & set("/\\") and fields[0] not in (".", ".."):
        return ListedImage(fields[0])
    if len(fields) == 2 and all("/" in field for field in fields):
        image, _ = (resolve_inside(Path(), field, where).as_posix() for field in fields)
        return ListedImage(PurePosixPath(image).stem, image)
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
    check: FileCheck | None = None,
) -> list[dict[str, Any]]:
    """List a data set in the VOC layout in detectron2's format without opening an image.

    Args:
        root: folder that holds ``JPEGImages`` and the label folders (``VOCdevkit/VOC2012``).
        split: name of the list; see :func:`find_list`.
        label_dir: folder of the semantic maps ``<id>.png`` below ``root``, also where the list
            names label files of its own.
        instance_dir: folder of the instance maps below ``root``, if there are any.
        list_file: the list's path below ``root`` if it is not in ``ImageSets/Segmentation``.
        check: records missing files, with the data set's name; default: a new one of ``split``.

    Returns:
        One dict per image: ``file_name``, ``sem_seg_file_name``, ``image_id`` (str), and
        ``ins_seg_file_name`` with ``instance_dir``.

    Raises:
        FileNotFoundError: files are missing; one error for all.
        ValueError: the list is malformed; see :func:`read_image_list`.
    """
    root = Path(root)
    list_path = root / list_file if list_file else find_list(root, split)
    check = check or FileCheck(split)
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

    ``file_name`` is a path below the folder of images, checked to stay in it; ``annotated`` images
    have an annotation, crowds included.
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
    """List the images of an annotation file of kind ``"coco"`` or ``"lvis"``.

    The result is kept in memory until the file changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, or names images outside their folder.
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
    names = (content.categories[category].name for category in content.class_ids)
    return ImageIndex(tuple(images), ("background", *names))


def coco_dicts(
    json_path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    kind: str = "coco",
    class_names: Sequence[str] | None = None,
    label_dir: str | os.PathLike[str] | None = None,
    check: FileCheck | None = None,
) -> list[dict[str, Any]]:
    """List a data set of COCO or LVIS images without opening one.

    Args:
        json_path: the annotation file.
        image_dir: folder of the images; for LVIS the one above ``train2017`` and ``val2017``.
        kind: ``"coco"`` or ``"lvis"``.
        class_names: names that the file's classes must have, background first; default: any.
        label_dir: folder of semantic maps, named like the image
            (``COCO_train2014_000000000009.png``) or by its id in twelve digits. With it, images
            without any annotation are left out, since methods that learn from image-level labels
            write none for them. Without it, the annotation file is the ground truth.
        check: records missing files, with the data set's name; default: a new one of the file.

    Returns:
        One dict per image: ``file_name``, ``image_id`` (int), ``height``, ``width``, and
        ``sem_seg_file_name`` with ``label_dir``.

    Raises:
        FileNotFoundError: files are missing; one error for all.
        ValueError: the annotation file is malformed or has other classes.
    """
    json_path, image_dir = Path(json_path), Path(image_dir)
    check = check or FileCheck(json_path.stem)
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
            label = _label_path(label_dir, image, check)
            check.require(label)
            record["sem_seg_file_name"] = label
        dicts.append(record)
    check.raise_if_missing()
    return dicts


def _label_path(folder: str | os.PathLike[str], image: IndexedImage, check: FileCheck) -> str:
    """Path of an image's label map; by the image's name if there is none by name or id."""
    by_name = os.path.join(folder, f"{PurePosixPath(image.file_name).stem}.png")
    by_id = os.path.join(folder, f"{str(image.image_id).zfill(12)}.png")
    return by_id if not check.exists(by_name) and check.exists(by_id) else by_name
