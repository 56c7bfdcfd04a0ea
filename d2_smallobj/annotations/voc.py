"""Data sets in the layout of PASCAL VOC 2012: image lists, JPEG images, PNG label maps."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path, PurePosixPath
from typing import Any

from d2_smallobj.annotations.files import FileCheck, resolve_inside

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
