"""Write COCO's annotations as PNG label maps, and account for every annotation of a file.

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
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations, instance_id, paint
from d2_smallobj.annotations.coco_file import Id, encode_mask, id_order, mask_area
from d2_smallobj.annotations.image_lists import image_index
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.utils.files import atomic_write_text, file_sha256, read_json
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.parallel import parallel_map

_MOST_8_BIT = 254


@dataclasses.dataclass(frozen=True)
class MapFolders:
    """Folders of a split's semantic and instance maps, and the file that records their origin."""

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
    """Result of :func:`write_coco_maps`: where the maps are, and numbers of images.

    Attributes:
        folders: where the maps are.
        written: images whose maps were written.
        kept: images whose maps existed.
        unannotated: images without annotation; their maps are all background.
        crowded: images with more than 254 instances; their instance maps have 16 bits.
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

    Existing maps of the same origin are kept. Maps of painting ``"area"`` give the figures of the
    annotation file itself.

    Args:
        root: COCO's folder.
        split: e.g. ``"train2014"``.
        painting: ``"file"`` or ``"area"``; see :class:`.coco.InstanceAnnotations`.
        jobs: number of processes.
        force: replace maps that were made from another annotation file.
        progress: show a progress bar on stderr.

    Raises:
        FileNotFoundError: there is no annotation file.
        FileExistsError: there are maps of another origin, without ``force``.
        ValueError: the file is malformed or has other categories, or masks in it are malformed (all
            other images are painted then).
    """
    path = Path(root) / "annotations" / f"instances_{split}.json"
    annotations = InstanceAnnotations(path, painting=painting)
    if annotations.class_names != COCO_CLASS_NAMES:
        raise ValueError(
            f"{path}: expected COCO's {len(COCO_CLASS_NAMES) - 1} categories, got "
            f"{len(annotations.class_names) - 1} or others"
        )
    folders = MapFolders.of(root, split, painting)
    origin = {"annotations": path.name, "sha256": file_sha256(path), "painting": painting}
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
    """Return whether existing maps can be kept; FileExistsError if they must not be replaced."""
    if not (_listing(folders.semantic) or _listing(folders.instances)):
        return True
    try:
        found = read_json(folders.marker)
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


FATES = ("used", "void", "crowd", "background", "no area", "hidden", "malformed")
"""Fates of annotations; each annotation has exactly one:

``used``: an instance of a class with at least one pixel in the maps; ``void``: of a category that
is ignored (255); ``crowd``: a crowd region, ignored in painting ``"area"`` and background in
``"file"``; ``background``: of a category that is no class; and three kinds that are dropped:
``no area``: its polygons or runs cover no pixel; ``hidden``: others cover all of its pixels;
``malformed``: its mask cannot be read, so that its image cannot be painted.
"""


@dataclasses.dataclass(frozen=True)
class Accounting:
    """The fates of a file's annotations.

    Attributes:
        counts: number of annotations by category id and fate, for categories that have any.
        names: category name by id, of all categories.
        num_images: number of images.
        num_unannotated: number of images without any annotation.
        malformed: errors of malformed masks.
    """

    counts: dict[Id, Counter[str]]
    names: dict[Id, str]
    num_images: int
    num_unannotated: int
    malformed: tuple[str, ...] = ()

    @property
    def total(self) -> Counter[str]:
        """Number of annotations of all categories by fate."""
        return sum(self.counts.values(), Counter())


def account(
    annotations: InstanceAnnotations, *, jobs: int = 1, progress: bool = False
) -> Accounting:
    """Account for every annotation of a file, with its classes and painting.

    A category's counts add up to the number of its annotations, whatever the number of processes.
    """
    images = [
        (annotations.annotations(image_id), *annotations.image_size(image_id))
        for image_id in annotations.image_ids
    ]
    source = str(annotations.path)
    find = functools.partial(image_fates, painting=annotations.painting, source=source)
    counts: dict[Id, Counter[str]] = {}
    errors: list[str] = []
    results = parallel_map(find, images, jobs=jobs, description="annotations", progress=progress)
    for (found, _, _), (fates, wrong) in zip(images, results):
        errors += wrong
        for annotation, fate in zip(found, fates):
            counts.setdefault(annotation.category_id, Counter())[fate] += 1
    unmapped = annotations.unmapped()
    for entry in unmapped:
        counts.setdefault(entry.category_id, Counter())["background"] += 1
    unpainted = set(annotations.image_ids) - {entry.image_id for entry in unmapped}
    return Accounting(
        counts={category: counts[category] for category in sorted(counts, key=id_order)},
        names={category.id: category.name for category in annotations.categories.values()},
        num_images=len(images),
        num_unannotated=sum(not annotations.annotations(image_id) for image_id in unpainted),
        malformed=tuple(errors),
    )


def image_fates(
    image: tuple[Sequence[Annotation], int, int], *, painting: str = "area", source: str = ""
) -> tuple[list[str], list[str]]:
    """Find the fates of one image's annotations.

    Takes the annotations of classes in file order with height and width; returns one of
    :data:`FATES` for each, and the errors of malformed ones, which begin with ``source``.
    """
    annotations, height, width = image
    masks: list[dict[str, Any] | None] = []
    errors = []
    for annotation in annotations:
        where = f"{source}: annotation {annotation.annotation_id}"
        try:
            masks.append(encode_mask(annotation.segmentation, height, width, where))
        except ValueError as error:
            masks.append(None)
            errors.append(str(error))
    readable = [a for a, mask in zip(annotations, masks) if mask is not None]
    painted = [mask for mask in masks if mask is not None]
    _, instances = paint(readable, height, width, painting=painting, masks=painted)
    visible = set(np.unique(instances).tolist())
    fates, rank = [], 0
    for annotation, mask in zip(annotations, masks):
        rank += mask is not None and not annotation.crowd
        fates.append(_fate(annotation, mask, instance_id(rank) in visible))
    return fates, errors


def _fate(annotation: Annotation, mask: dict[str, Any] | None, visible: bool) -> str:
    """The fate of an annotation of a class or a void category."""
    if mask is None:
        return "malformed"
    if not mask_area(mask):
        return "no area"
    if annotation.crowd:
        return "void" if annotation.class_id == 0 else "crowd"
    return "used" if visible else "hidden"
