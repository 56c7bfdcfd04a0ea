"""COCO's instance annotations as PNG label maps, semantic and instance, image by image.

::

    <coco>/
      annotations/instances_<split>.json
      SegmentationClass81/<split>/<image name>.png         painting "file"
      SegmentationObject81/<split>/<image name>.png
      SegmentationClass81/<split>.json                     what they were made from
      SegmentationClass81_area/...                         painting "area", the same three
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from d2_smallobj.annotations.class_names import COCO_CLASS_NAMES
from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations, paint
from d2_smallobj.annotations.coco_lists import image_index
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.utils.files import atomic_write_text
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.parallel import parallel_map

_MOST_8_BIT = 254


@dataclasses.dataclass(frozen=True)
class MapFolders:
    """Where the maps of a split are.

    Attributes:
        semantic: folder of the semantic maps.
        instances: folder of the instance maps.
        marker: file that tells what they were made from.
    """

    semantic: Path
    instances: Path
    marker: Path

    @classmethod
    def of(cls, root: str | os.PathLike[str], split: str, painting: str) -> MapFolders:
        """The folders of a split in a painting, below COCO's folder."""
        suffix = "" if painting == "file" else f"_{painting}"
        semantic = Path(root) / f"SegmentationClass81{suffix}"
        instances = Path(root) / f"SegmentationObject81{suffix}"
        return cls(semantic / split, instances / split, semantic / f"{split}.json")


@dataclasses.dataclass(frozen=True)
class WrittenMaps:
    """What :func:`write_coco_maps` did.

    Attributes:
        folders: where the maps are.
        written: number of images whose maps were written.
        kept: number of images whose maps were there already.
        unannotated: number of images without annotation; their maps are all background.
        crowded: number of images with more than 254 instances; their instance maps have 16 bits.
    """

    folders: MapFolders
    written: int
    kept: int
    unannotated: int
    crowded: int


def write_coco_maps(
    root: str | os.PathLike[str],
    split: str,
    *,
    painting: str = "file",
    jobs: int = 1,
    force: bool = False,
    progress: bool = False,
) -> WrittenMaps:
    """Write the label maps of every image of a split, those without annotations included.

    Maps that an interrupted run left are kept. Evaluating with maps of painting ``"area"`` gives
    the figures that the annotation file itself gives.

    Args:
        root: COCO's folder.
        split: e.g. ``"train2014"``.
        painting: ``"file"`` or ``"area"``; see :class:`.coco.InstanceAnnotations`.
        jobs: number of processes.
        force: replace maps that were made from another annotation file.
        progress: show a progress bar on stderr.

    Raises:
        FileNotFoundError: there is no annotation file.
        FileExistsError: there are maps that were made from something else, without ``force``.
        ValueError: the annotation file is malformed or has other categories, or masks in it are
            malformed: all other images are painted then.
        OSError: a map cannot be written.
    """
    path = Path(root) / "annotations" / f"instances_{split}.json"
    annotations = InstanceAnnotations(path, painting=painting)
    if annotations.class_names != COCO_CLASS_NAMES:
        raise ValueError(
            f"{path}: expected COCO's {len(COCO_CLASS_NAMES) - 1} categories, got "
            f"{len(annotations.class_names) - 1} or others"
        )
    folders = MapFolders.of(root, split, painting)
    origin = {"annotations": path.name, "sha256": _digest(path), "painting": painting}
    keep = _check_origin(folders, origin, force=force)
    stems = _stems(path)
    present = [set(_listing(f)) if keep else set() for f in (folders.semantic, folders.instances)]
    missing = [
        image_id
        for image_id, stem in stems.items()
        if not all(f"{stem}.png" in names for names in present)
    ]
    atomic_write_text(folders.marker, json.dumps(origin, indent=2) + "\n")
    tasks = [
        (stems[image_id], annotations.annotations(image_id), *annotations.image_size(image_id))
        for image_id in missing
    ]
    write = functools.partial(_write_maps, folders=folders, painting=painting, source=str(path))
    results = parallel_map(write, tasks, jobs=jobs, description=split, progress=progress)
    problems = [problem for problem in results if problem is not None]
    if problems:
        what = "image(s) that cannot be painted (all others are)"
        raise ValueError(f"{path}: {itemized(what, problems)}")
    found = [annotations.annotations(image_id) for image_id in annotations.image_ids]
    return WrittenMaps(
        folders,
        written=len(missing),
        kept=len(stems) - len(missing),
        unannotated=sum(not some for some in found),
        crowded=sum(sum(not a.crowd for a in some) > _MOST_8_BIT for some in found),
    )


def _write_maps(
    task: tuple[str, Sequence[Annotation], int, int],
    *,
    folders: MapFolders,
    painting: str,
    source: str,
) -> str | None:
    """Paint one image; returns what is wrong with its annotations, if anything is."""
    stem, annotations, height, width = task
    try:
        semantic, instances = paint(annotations, height, width, painting=painting, source=source)
    except ValueError as error:
        return str(error)
    write_label_map(folders.instances / f"{stem}.png", instances)
    write_label_map(folders.semantic / f"{stem}.png", semantic)
    return None


def _stems(path: Path) -> dict[Any, str]:
    """Name of every image's maps, without suffix, by image id."""
    stems = {i.image_id: PurePosixPath(i.file_name).stem for i in image_index(path).images}
    owner: dict[str, Any] = {}
    twice = [
        f"images {owner[stem]} and {image_id}: {stem}.png"
        for image_id, stem in stems.items()
        if owner.setdefault(stem, image_id) != image_id
    ]
    if twice:
        raise ValueError(f"{path}: {itemized('label map(s) that two images share', twice)}")
    return stems


def _check_origin(folders: MapFolders, origin: dict[str, str], *, force: bool) -> bool:
    """Whether the maps that are there can be kept.

    Raises:
        FileExistsError: they cannot, and are not to be replaced.
    """
    if not (_listing(folders.semantic) or _listing(folders.instances)):
        return True
    try:
        found = json.loads(folders.marker.read_text(encoding="utf-8"))
        same = all(found[key] == value for key, value in origin.items())
        what = f"made from another state of {origin['annotations']}"
    except (OSError, ValueError, KeyError, TypeError):
        same, what = False, f"of unknown origin ({folders.marker} does not tell)"
    if not same and not force:
        raise FileExistsError(
            f"{folders.semantic} and {folders.instances} hold label maps {what}: remove them, or "
            "replace them with --force"
        )
    return same


def _listing(folder: Path) -> list[str]:
    """Names of the PNG files in a folder; none if it does not exist."""
    try:
        return [name for name in os.listdir(folder) if name.endswith(".png")]
    except FileNotFoundError:
        return []


def _digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
