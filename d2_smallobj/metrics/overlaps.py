"""Overlaps of predicted components with the ground truth, and what each instance is charged.

Shapes: C number of classes; R number of runs; K number of predicted components; E number of
overlaps, i.e. of pairs of a component and a region (label and instance) that occur; T number of
records.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from d2_smallobj.metrics.image_runs import ImageRuns, MatchSettings
from d2_smallobj.metrics.runs import changes, join, run_components, stack_runs

# Largest table of components and regions, by run; a larger one costs more than sorting.
_TABLE_PER_RUN = 4


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """Overlaps of components and regions, all int64 (E,), ascending by component.

    Attributes:
        component: number of the predicted component.
        region: number of the region among those of all images.
        image: position of the image.
        instance: value of the instance map.
        label: value of the semantic map.
        count: number of pixels.
    """

    component: np.ndarray
    region: np.ndarray
    image: np.ndarray
    instance: np.ndarray
    label: np.ndarray
    count: np.ndarray


@dataclasses.dataclass(frozen=True)
class PredictedComponents:
    """The predicted components of the images; some numbers stand for no class.

    Attributes:
        of_run: int64 (R,), component of each run.
        category: int64 (K,), class of each component.
        image: int64 (K,), its image.
        first_thing: number of the first one that is a thing.
    """

    of_run: np.ndarray
    category: np.ndarray
    image: np.ndarray
    first_thing: int


def sum_by(index: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Sum pixel counts by ``index``, int64 (length,); exact, as bincount is up to 2**53."""
    return np.bincount(index, values, length).astype(np.int64)


def number_components(images: Sequence[ImageRuns], settings: MatchSettings) -> PredictedComponents:
    """Number the predicted components: of each image no class and stuff, then all things."""
    kinds, total = 1 + len(settings.stuff), (1 + len(settings.stuff)) * len(images)
    category = [np.array([0, *settings.stuff] * len(images), np.int64)]
    image_of = [np.arange(len(images)).repeat(kinds)]
    numbers, parts, classes, places = [], [], [], []
    for place, image in enumerate(images):
        number = settings.stuff_number[image.predicted]
        if place:
            number += place * kinds
        numbers.append(number)
        if image.number is None:
            # From the runs, those of all images at once.
            chosen = settings.is_thing[image.predicted].nonzero()[0]
            parts.append((image.runs, chosen))
            classes.append(image.predicted[chosen])
            places.append(place)
        else:
            chosen = image.number.nonzero()[0]
            number[chosen] = image.number[chosen] + (total - 1)
            category.append(image.class_of)
            image_of.append(np.full(len(image.class_of), place))
            total += len(image.class_of)
    if parts:
        start, end, width = stack_runs(parts)
        predicted = join(classes)
        tree, first = run_components(start, end, predicted, width)
        tree += total
        ends = np.array([len(chosen) for _, chosen in parts]).cumsum()
        begin = 0
        for place, (_, chosen), stop in zip(places, parts, ends.tolist()):
            numbers[place][chosen] = tree[begin:stop]
            begin = stop
        category.append(predicted[first])
        image_of.append(np.array(places)[ends.searchsorted(first, side="right")])
    return PredictedComponents(join(numbers), join(category), join(image_of), kinds * len(images))


def count_overlaps(components: PredictedComponents, images: Sequence[ImageRuns]) -> Overlaps:
    """Count the pixels of runs (R,) by component and region."""
    regions = max(1, *(len(image.label) for image in images))
    key = components.of_run * regions
    key += join([image.region for image in images])
    length = join([image.runs.length for image in images])
    size = len(components.category) * regions
    if size <= _TABLE_PER_RUN * len(key):
        sums = sum_by(key, length, size)
        key = sums.nonzero()[0]
        count = sums[key]
    else:
        order = key.argsort()
        key, length = key[order], length[order]
        heads = changes(key)
        count = np.add.reduceat(length, heads) if len(heads) else heads
        key = key[heads]
    component, region = np.divmod(key, regions)
    if len(images) > 1:
        first = np.cumsum([0, *(len(image.label) for image in images)])
        region += first[components.image[component]]
    return overlaps_of(component, region, count, images)


def overlaps_of(
    component: np.ndarray, region: np.ndarray, count: np.ndarray, images: Sequence[ImageRuns]
) -> Overlaps:
    """Look up image, instance and label of regions; all int64 (E,)."""
    label = join([image.label for image in images])
    instance = join([image.instance for image in images])
    image = np.arange(len(images)).repeat([len(image.label) for image in images])
    return Overlaps(component, region, image[region], instance[region], label[region], count)


def charge_instances(
    size: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    components: PredictedComponents,
    records: dict[str, np.ndarray],
    *,
    truncate: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Charge components to the instances of their class that they overlap.

    Args:
        size: int64 (K,), counted pixels of each component.
        pairs: component, record and pixels of each overlap of a component with an instance of
            its class, int64 (E,), ascending by component.
        components: the predicted components.
        records: columns of the records.
        truncate: cut each share of the pixels outside the overlap to an integer.

    Returns:
        Columns of the records and of the unmatched components.
    """
    component, record, count = pairs
    total = len(records["pixels"])
    overlap = sum_by(component, count, len(size))
    surplus, overlapped = (size - overlap)[component], overlap[component]
    whole, rest = np.divmod(surplus * count, overlapped)
    if truncate:
        # The authors cut a floating-point product, which may be just short of a whole number.
        whole = (count / overlapped * surplus).astype(np.int64)
    intersection = sum_by(record, count, total)
    charged = (intersection + sum_by(record, whole, total)).astype(np.float64)
    if not truncate:
        _add_fractions(charged, record, rest, overlapped)
    unmatched = (overlap == 0) & (size > 0)
    unmatched[: components.first_thing] = False
    unmatched = unmatched.nonzero()[0]
    return {
        **records,
        "intersection": intersection,
        "charged": charged,
        "components": np.bincount(record, minlength=total),
        "shared": _count_sharing(component, record, total),
    }, {
        "image": components.image[unmatched],
        "category_id": components.category[unmatched],
        "area": size[unmatched],
    }


def _count_sharing(component: np.ndarray, record: np.ndarray, length: int) -> np.ndarray:
    """Count the other instances that each instance (T,) shares a component with.

    ``component`` ascends; both are int64 (E,).
    """
    shared = np.zeros(length, np.int64)
    size = np.bincount(component, minlength=1)
    joint = (size[component] > 1).nonzero()[0]
    if len(joint) == 0:
        return shared
    component, record = component[joint], record[joint]
    shared[record] = size[component] - 1
    # Two instances may share several components, but count once.
    groups: dict[int, set[int]] = {}
    for pair in np.flatnonzero(np.bincount(record, minlength=length)[record] > 1).tolist():
        start, end = np.searchsorted(component, [component[pair], component[pair] + 1]).tolist()
        groups.setdefault(int(record[pair]), set()).update(record[start:end].tolist())
    for one, group in groups.items():
        shared[one] = len(group) - 1
    return shared


def _add_fractions(
    charged: np.ndarray, record: np.ndarray, rest: np.ndarray, overlap: np.ndarray
) -> None:
    """Add Σ rest / overlap to ``charged``, in place and rounded once.

    Integer arithmetic makes the sum independent of the order of components, so that a mirrored
    image gets the same bits. Only components that several instances share have a rest.
    """
    where = rest.nonzero()[0]
    sums: dict[int, tuple[int, int]] = {}
    for one, above, below in zip(*(x[where].tolist() for x in (record, rest, overlap))):
        other, common = sums.get(one, (0, 1))
        whole = math.lcm(common, below)
        sums[one] = other * (whole // common) + above * (whole // below), whole
    for one, (above, below) in sums.items():
        # A quotient of Python's integers is rounded once.
        charged[one] = (int(charged[one]) * below + above) / below
