"""What becomes of every annotation of a COCO or LVIS file when its images are painted."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from d2_smallobj.annotations.coco import (
    Annotation,
    InstanceAnnotations,
    instance_id,
    paint_masks,
)
from d2_smallobj.annotations.coco_file import Id, id_order
from d2_smallobj.annotations.masks import decode_mask
from d2_smallobj.utils.parallel import parallel_map

FATES = ("used", "void", "crowd", "background", "no area", "hidden", "malformed")
"""What can become of an annotation, each of exactly one:

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
        counts: by category id (those that have annotations, in the order of ids), how many
            annotations met each fate.
        names: category name by id, of all categories of the file.
        num_images: number of images.
        num_unannotated: number of images without any annotation.
        malformed: what is wrong with each malformed mask.
    """

    counts: dict[Id, Counter[str]]
    names: dict[Id, str]
    num_images: int
    num_unannotated: int
    malformed: tuple[str, ...] = ()

    @property
    def total(self) -> Counter[str]:
        """How many annotations of all categories met each fate."""
        return sum(self.counts.values(), Counter())


def account(
    annotations: InstanceAnnotations, *, jobs: int = 1, progress: bool = False
) -> Accounting:
    """Account for every annotation of a file.

    Args:
        annotations: the file, with the classes and the painting that are asked about.
        jobs: number of processes; the result does not depend on it.
        progress: show a progress bar on stderr.

    Returns:
        The fates; a category's counts add up to the number of its annotations.
    """
    images = [
        (annotations.annotations(image_id), *annotations.image_size(image_id))
        for image_id in annotations.image_ids
    ]
    look = functools.partial(
        image_fates, painting=annotations.painting, source=str(annotations.path)
    )
    counts: dict[Id, Counter[str]] = {}
    faults: list[str] = []
    results = parallel_map(look, images, jobs=jobs, description="annotations", progress=progress)
    for (found, _, _), (fates, wrong) in zip(images, results):
        faults += wrong
        for annotation, fate in zip(found, fates):
            counts.setdefault(annotation.category_id, Counter())[fate] += 1
    unmapped = annotations.unmapped()
    for entry in unmapped:
        counts.setdefault(entry.category_id, Counter())["background"] += 1
    lonely = set(annotations.image_ids) - {entry.image_id for entry in unmapped}
    return Accounting(
        counts={category: counts[category] for category in sorted(counts, key=id_order)},
        names={category.id: category.name for category in annotations.categories.values()},
        num_images=len(images),
        num_unannotated=sum(not annotations.annotations(image_id) for image_id in lonely),
        malformed=tuple(faults),
    )


def image_fates(
    image: tuple[Sequence[Annotation], int, int], *, painting: str = "area", source: str = ""
) -> tuple[list[str], list[str]]:
    """The fates of one image's annotations.

    Args:
        image: its annotations of classes, in the order of the file; its height and width.
        painting: ``"area"`` or ``"file"``.
        source: the file that they come from, for messages.

    Returns:
        One of :data:`FATES` for each annotation; and what is wrong with the malformed ones.
    """
    annotations, height, width = image
    masks: list[np.ndarray | None] = []
    faults = []
    for annotation in annotations:
        where = f"{source}: annotation {annotation.annotation_id}"
        try:
            masks.append(decode_mask(annotation.segmentation, height, width, where))
        except ValueError as error:
            masks.append(None)
            faults.append(str(error))
    # Classes do not matter here, and LVIS has more than a semantic map can hold.
    sound = [
        msgspec.structs.replace(annotation, class_id=1)
        for annotation, mask in zip(annotations, masks)
        if mask is not None
    ]
    painted = [mask for mask in masks if mask is not None]
    _, instances = paint_masks(sound, painted, height, width, painting=painting)
    visible = set(np.unique(instances).tolist())
    fates, rank = [], 0
    for annotation, mask in zip(annotations, masks):
        rank += mask is not None and not annotation.crowd
        fates.append(_fate(annotation, mask, instance_id(rank) in visible))
    return fates, faults


def _fate(annotation: Annotation, mask: np.ndarray | None, visible: bool) -> str:
    """The fate of an annotation of a class or a void category."""
    if mask is None:
        return "malformed"
    if not mask.any():
        return "no area"
    if annotation.crowd:
        return "void" if annotation.class_id == 0 else "crowd"
    return "used" if visible else "hidden"
