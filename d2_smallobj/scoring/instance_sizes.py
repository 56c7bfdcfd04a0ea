"""The instances of any ground truth that can be scored, by class and size."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from d2_smallobj.annotations.classes import stuff_beside_background
from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations
from d2_smallobj.annotations.masks import encode_mask
from d2_smallobj.annotations.truth import AnnotationTruth, GroundTruth, TruthImage
from d2_smallobj.scoring.inputs import Inputs, choose_ignore_label
from d2_smallobj.scoring.plan import read_list
from d2_smallobj.statistics.balance import InstanceSizes, map_sizes
from d2_smallobj.utils.parallel import parallel_map
from d2_smallobj.utils.problems import Problems

_JSON_KINDS = {"coco_json": "coco", "lvis_json": "lvis"}


def open_ground_truth(
    kind: str,
    path: str,
    *,
    instances: str | None = None,
    classes: str | None = None,
    category_map: str | None = None,
    image_list: str | None = None,
    stuff: Sequence[str] | None = None,
    panoptic_maps: str | None = None,
) -> GroundTruth:
    """Open a data set to measure its instances.

    As :class:`d2_smallobj.scoring.inputs.Inputs` opens a ground truth, except that an annotation
    file may have more categories than an 8-bit label map has labels: nothing is painted.

    Args:
        kind: ``"semantic"``, ``"coco_json"``, ``"lvis_json"``, ``"panoptic"``, ``"cityscapes"``
            or ``"dataset"``.
        path: the folder or file, or the registered data set's name.
        instances: folder of instance maps, with ``"semantic"``.
        classes: see :func:`d2_smallobj.annotations.classes.read_class_names`.
        category_map: see :func:`d2_smallobj.annotations.classes.choose_categories`.
        image_list: file that lists the images to use; default: all.
        stuff: names of the classes without instances; default: as :class:`Inputs` decides.
        panoptic_maps: folder of the PNGs, with ``"panoptic"``.

    Raises:
        OSError, ValueError, ImportError: as :meth:`Inputs.open_truth`.
    """
    if kind in _JSON_KINDS and classes is None and category_map is None and stuff is None:
        annotations = InstanceAnnotations(path, kind=_JSON_KINDS[kind], label_maps=False)
        listed = None if image_list is None else read_list(image_list)
        return AnnotationTruth(annotations, path, listed=listed)
    return Inputs(
        predictions="",
        **{kind: path},
        instances=instances,
        classes=classes,
        category_map=category_map,
        image_list=image_list,
        stuff=None if stuff is None else tuple(stuff),
        panoptic_maps=panoptic_maps,
    ).open_truth()


def measure_instances(
    truth: GroundTruth, *, source: str, jobs: int = 1, progress: bool = False
) -> InstanceSizes:
    """Measure all instances of a ground truth.

    Args:
        truth: with class names.
        source: what messages call it.
        jobs: processes that read label maps; annotation files are measured in this one, where
            it takes less time than sending them would.
        progress: show a progress bar on stderr.

    Raises:
        InputError: maps or annotations are malformed; lists all of them.
        ValueError: the ground truth has no images.
        RuntimeError: a process was killed.
    """
    if not truth.images:
        raise ValueError(f"{source}: the data set has no images")
    if isinstance(truth, AnnotationTruth):
        results = _measure_annotations(truth, source, progress)
    else:
        # Each process gets the images that it reads, not all of them.
        lean = copy.copy(truth)
        lean.images = []
        measure = functools.partial(_measure_files, truth=lean)
        results = parallel_map(
            measure, truth.images, jobs=jobs, description=source, progress=progress
        )
    return _collect(results)


def _collect(results: Iterable[InstanceSizes | str]) -> InstanceSizes:
    """Join what was measured, or raise for all that could not be."""
    sizes, problems = [], Problems()
    for result in results:
        if isinstance(result, str):
            problems.add("image(s) that cannot be measured", result)
        else:
            sizes.append(result)
    problems.raise_if_any()
    return InstanceSizes.concatenate(sizes)


def _measure_files(image: TruthImage, *, truth: GroundTruth) -> InstanceSizes | str:
    """The instances of an image in files, or what is wrong with it."""
    try:
        semantic, instances = truth.read(image)
    except (OSError, ValueError) as error:
        return str(error)
    try:
        return map_sizes(
            semantic,
            instances,
            num_classes=len(truth.class_names),
            stuff=truth.stuff,
            ignore_label=choose_ignore_label(None, truth),
            void_instance=truth.void_instance,
        )
    except (TypeError, ValueError) as error:
        return f"{image.where}: {error}"


def _measure_annotations(
    truth: AnnotationTruth, source: str, progress: bool
) -> Iterator[InstanceSizes | str]:
    """The instances of every image of an annotation file, or what is wrong with it."""
    annotations = truth.annotations
    declared = stuff_beside_background(truth.stuff, truth.class_names)
    for image in tqdm(truth.images, desc=source, unit="image", disable=not progress):
        number = image.annotation_id
        try:
            found, size = annotations.annotations(number), annotations.image_size(number)
            sizes = annotation_sizes(found, *size, str(annotations.path))
            yield sizes.select(~np.isin(sizes.class_ids, declared))
        except ValueError as error:
            yield str(error)


def annotation_sizes(
    annotations: Iterable[Annotation], height: int, width: int, source: str
) -> InstanceSizes:
    """Measure the instances of an image without painting it.

    Equals :func:`.balance.map_sizes` of :meth:`.coco.InstanceAnnotations.maps`.

    Args:
        annotations: of the image, in the order of the file.
        height: H.
        width: W.
        source: the file that they come from, for messages.

    Raises:
        ValueError: a mask is malformed; names the annotation.
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
    """Visible pixels of masks that are painted from the largest to the smallest: int64 (N,)."""
    if not runs:
        return np.zeros(0, np.int64)
    areas = coco_mask.area(runs).astype(np.int64)
    left, top, width, height = coco_mask.toBbox(runs).T
    right, bottom = left + width, top + height
    visible = areas.copy()
    # A stable sort: of two equally large ones, the later in the file lies on top.
    order = np.argsort(-areas, kind="stable")
    for place, number in enumerate(order):
        above = order[place + 1 :]
        touching = (left[above] < right[number]) & (left[number] < right[above])
        touching &= (top[above] < bottom[number]) & (top[number] < bottom[above])
        hiding = [runs[other] for other in above[touching]]
        if hiding and areas[number]:
            cover = coco_mask.merge(hiding)
            both = coco_mask.merge([runs[number], cover])
            visible[number] = int(coco_mask.area(both)) - int(coco_mask.area(cover))
    return visible
