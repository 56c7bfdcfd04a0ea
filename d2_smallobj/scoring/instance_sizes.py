"""Measure the instances of any ground truth: class and visible area.

Legend: H, W height and width of an image; N number of instances.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.classes import stuff_beside_background
from d2_smallobj.annotations.coco import Annotation
from d2_smallobj.annotations.coco_file import encode_mask, fill_mask, mask_area
from d2_smallobj.annotations.truth import GroundTruth, TruthImage
from d2_smallobj.scoring.inputs import choose_ignore_label
from d2_smallobj.statistics.balance import InstanceSizes, map_sizes
from d2_smallobj.utils.messages import Problems
from d2_smallobj.utils.parallel import parallel_map

# Masks from which painting is faster than looking, for each, which others lie on it.
_MANY = 1000


def measure_instances(
    truth: GroundTruth, *, source: str, jobs: int = 1, progress: bool = False
) -> InstanceSizes:
    """Measure all instances of a ground truth, ``source`` in messages; InputError lists bad images.

    ``jobs`` processes read label maps; annotation files are measured in this one.
    """
    if not truth.images:
        raise ValueError(f"{source}: the data set has no images")
    # Each process gets the images that it reads, not all of them.
    images, painted, truth = truth.images, truth.painted, copy.copy(truth)
    truth.images = []
    measure = functools.partial(_measure, truth=truth, painted=painted)
    jobs = 1 if painted else jobs
    sizes, problems = [], Problems()
    for result in parallel_map(measure, images, jobs=jobs, description=source, progress=progress):
        if isinstance(result, str):
            problems.add("image(s) that cannot be measured", result)
        else:
            sizes.append(result)
    problems.raise_if_any()
    return InstanceSizes.concatenate(sizes)


def _measure(image: TruthImage, *, truth: GroundTruth, painted: bool) -> InstanceSizes | str:
    """Measure an image, or return what is wrong with it."""
    where = ""
    try:
        if painted:
            annotations, number = truth.annotations, image.source.number
            assert annotations is not None
            found, size = annotations.annotations(number), annotations.image_size(number)
            sizes = annotation_sizes(found, *size, str(annotations.path))
            declared = stuff_beside_background(truth.stuff, truth.class_names)
            return sizes.select(~np.isin(sizes.class_ids, declared))
        semantic, instances = truth.read(image)
        where = f"{image.where}: "
        return map_sizes(
            semantic,
            instances,
            num_classes=len(truth.class_names),
            stuff=truth.stuff,
            ignore_label=choose_ignore_label(None, truth),
            void_instance=truth.void_instance,
        )
    except (OSError, ValueError) as error:
        return f"{where}{error}"


def annotation_sizes(
    annotations: Iterable[Annotation], height: int, width: int, source: str
) -> InstanceSizes:
    """Measure an image's annotations, in the order of the file, without painting them.

    Equals :func:`.balance.map_sizes` of :meth:`.coco.InstanceAnnotations.maps`; ValueError names
    ``source`` and the annotation whose mask is malformed.
    """
    runs, class_ids = [], []
    for annotation in annotations:
        where = f"{source}: annotation {annotation.annotation_id}"
        encoded = encode_mask(annotation.segmentation, height, width, where)
        # Crowds lie beneath the instances and hide none, but a malformed one is an error.
        if not annotation.crowd:
            runs.append(encoded)
            class_ids.append(annotation.class_id)
    areas = _visible_areas(runs)
    seen = areas > 0
    shown = np.asarray(class_ids, np.int64)[seen]
    return InstanceSizes(shown, areas[seen], np.full(len(shown), height * width), num_images=1)


def _visible_areas(runs: list[dict]) -> np.ndarray:
    """Count the visible pixels of masks painted from the largest to the smallest: int64 (N,)."""
    if not runs:
        return np.zeros(0, np.int64)
    areas = np.array([mask_area(mask) for mask in runs])
    # A stable sort: of two equally large ones, the later in the file lies on top.
    order = np.argsort(-areas, kind="stable")
    if len(runs) > _MANY:
        columns = np.zeros(np.prod(runs[0]["size"]), np.int32)
        for number in order:
            fill_mask(columns, runs[number], number + 1)
        return np.bincount(columns, minlength=len(runs) + 1)[1:]
    left, top, width, height = coco_mask.toBbox(runs).T
    right, bottom = left + width, top + height
    visible = areas.copy()
    for place, number in enumerate(order):
        above = order[place + 1 :]
        touching = (left[above] < right[number]) & (left[number] < right[above])
        touching &= (top[above] < bottom[number]) & (top[number] < bottom[above])
        hiding = [runs[other] for other in above[touching]]
        if hiding and areas[number]:
            cover = coco_mask.merge(hiding)
            both = coco_mask.merge([runs[number], cover])
            visible[number] = mask_area(both) - mask_area(cover)
    return visible
