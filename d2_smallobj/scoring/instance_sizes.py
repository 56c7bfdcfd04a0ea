"""Measure the instances of any ground truth, by class and size."""

from __future__ import annotations

import copy
import functools

import numpy as np

from d2_smallobj.annotations.classes import stuff_beside_background
from d2_smallobj.annotations.truth import AnnotationTruth, GroundTruth, TruthImage
from d2_smallobj.scoring.inputs import choose_ignore_label
from d2_smallobj.statistics.counts import InstanceSizes, annotation_sizes, map_sizes
from d2_smallobj.utils.parallel import parallel_map
from d2_smallobj.utils.problems import Problems


def measure_instances(
    truth: GroundTruth, *, source: str, jobs: int = 1, progress: bool = False
) -> InstanceSizes:
    """Measure all instances of a ground truth.

    Args:
        truth: with class names.
        source: the data set's name in messages.
        jobs: processes that read label maps; annotation files are measured in this one, which
            takes less time than sending them.
        progress: show a progress bar on stderr.

    Raises:
        InputError: maps or annotations are malformed; lists all of them.
        ValueError: the ground truth has no images.
        WorkerError: a process was killed.
    """
    if not truth.images:
        raise ValueError(f"{source}: the data set has no images")
    if isinstance(truth, AnnotationTruth):
        measure, jobs = functools.partial(_measure_annotations, truth=truth), 1
    else:
        # Each process gets the images that it reads, not all of them.
        lean = copy.copy(truth)
        lean.images = []
        measure = functools.partial(_measure_files, truth=lean)
    sizes, problems = [], Problems()
    for result in parallel_map(
        measure, truth.images, jobs=jobs, description=source, progress=progress
    ):
        if isinstance(result, str):
            problems.add("image(s) that cannot be measured", result)
        else:
            sizes.append(result)
    problems.raise_if_any()
    return InstanceSizes.concatenate(sizes)


def _measure_files(image: TruthImage, *, truth: GroundTruth) -> InstanceSizes | str:
    """Measure an image in files, or return what is wrong with it."""
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


def _measure_annotations(image: TruthImage, *, truth: AnnotationTruth) -> InstanceSizes | str:
    """Measure an image of an annotation file, or return what is wrong with it."""
    annotations, number = truth.annotations, image.annotation_id
    declared = stuff_beside_background(truth.stuff, truth.class_names)
    try:
        found, size = annotations.annotations(number), annotations.image_size(number)
        sizes = annotation_sizes(found, *size, str(annotations.path))
    except ValueError as error:
        return str(error)
    return sizes.select(~np.isin(sizes.class_ids, declared))
