"""Images as runs of equal pixels: their maps checked, components numbered, overlaps counted.

Shapes: H, W image height and width; C number of classes; R number of runs; G number of regions,
i.e. of pairs of a label and an instance that occur; K number of predicted components; E number of
overlaps, i.e. of pairs of a component and a region that occur; T number of records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from d2_smallobj.metrics import validation
from d2_smallobj.metrics.components import class_components, component_ids, pixel_components
from d2_smallobj.metrics.runs import (
    Runs,
    changes,
    find_runs,
    join,
    number_regions,
    run_components,
    stack_runs,
)
from d2_smallobj.metrics.validation import MatchSettings

# Pixels of a run, on average, below which an image is looked at pixel by pixel.
_SHORT_RUN = 4
_SMALLEST_AREA = 1 << 12
# Largest table of components and regions, by run; a larger one costs more than sorting.
_TABLE_PER_RUN = 4
LARGEST_TABLE = 1 << 22
"""Largest table of instance ids, or of regions and classes."""


@dataclasses.dataclass
class ImageRuns:
    """An image as runs of equal pixels.

    Attributes:
        image_id: its name.
        area: H·W.
        runs: where the R runs are.
        predicted: int64 (R,), predicted class; -1 for other values, below ignored pixels.
        region: int64 (R,), number 0..G-1 of the pair of label and instance that each run lies on.
        label: int64 (G,), value of the semantic map there.
        instance: int64 (G,), value of the instance map there.
        number: int64 (R,), component of each run of things, from 1, 0 elsewhere; ``None``: to be
            found from the runs.
        class_of: int64 (K,), class of component k at index k - 1, with ``number``.
    """

    image_id: str
    area: int
    runs: Runs
    predicted: np.ndarray
    region: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    number: np.ndarray | None = None
    class_of: np.ndarray | None = None

    @property
    def is_noise(self) -> bool:
        """True if runs are so short that looking at pixels is faster."""
        short = len(self.runs) * _SHORT_RUN >= self.area >= _SMALLEST_AREA
        return short and self.number is None


def read_image(
    prediction: np.ndarray,
    semantic: np.ndarray,
    instances: np.ndarray | None,
    settings: MatchSettings,
    image_id: str = "",
) -> ImageRuns:
    """Check the maps (H, W) of an image and cut them into runs.

    Raises:
        TypeError, ValueError: as :func:`.matching.match_image`.
    """
    validation.check_maps(prediction=prediction, semantic=semantic, instances=instances)
    maps = (prediction, semantic) if instances is None else (prediction, semantic, instances)
    runs = find_runs(*maps)
    predicted, label = runs.sample(prediction), runs.sample(semantic)
    limit, outside = settings.num_classes, None
    if predicted.max(initial=0) >= limit or _has_negative(prediction, predicted):
        outside = _out_of_range(predicted, limit)
        predicted[outside] = -1
    no_class = _out_of_range(label, limit)
    ignored = label == settings.ignore_label
    wrong = np.count_nonzero(no_class) != np.count_nonzero(ignored)
    if wrong or (outside is not None and (outside & ~ignored).any()):
        kept = semantic != settings.ignore_label
        validation.raise_for_values("semantic", semantic[kept], limit)
        validation.raise_for_values("prediction", prediction[kept], limit)
    if instances is None:
        instance = component_ids(
            runs, label, (*settings.stuff, settings.ignore_label), settings.void_instance
        )
    else:
        instance = runs.sample(instances)
        if _has_negative(instances, instance):
            validation.raise_for_values("instances", instances, np.iinfo(np.int64).max)
    # What is no class is ignored here, and the numbers of regions are kept small.
    np.minimum(label, limit, out=label)
    region, label, instance = number_regions(label, instance, limit + 1)
    label[label == limit] = settings.ignore_label
    image = ImageRuns(image_id, semantic.size, runs, predicted, region, label, instance)
    _check_instances(image, settings)
    if settings.mode == "official":
        image.number, image.class_of = predicted_components(image, prediction, settings)
    return image


def _has_negative(labels: np.ndarray, sample: np.ndarray) -> bool:
    """Look for a value below 0 among a map's values at the runs."""
    return labels.dtype.kind == "i" and bool(sample.min(initial=0) < 0)


def _out_of_range(values: np.ndarray, limit: int) -> np.ndarray:
    """Mark int64 values outside 0..limit-1; negative ones are large without their sign."""
    return values.view(np.uint64) >= limit


def _check_instances(image: ImageRuns, settings: MatchSettings) -> None:
    """Check that every instance lies on one class of things, ignored pixels aside."""
    held = image.instance != 0
    held &= image.label != settings.ignore_label
    if settings.void_instance is not None:
        held &= image.instance != settings.void_instance
    classes, ids = image.label[held], image.instance[held]
    # Regions ascend by instance.
    if (ids[1:] == ids[:-1]).any() or not settings.is_thing[classes].all():
        count = np.bincount(image.region, image.runs.length, len(held)).astype(np.int64)
        validation.raise_for_classes(ids, classes, count[held], settings.stuff)


def predicted_components(
    image: ImageRuns, prediction: np.ndarray, settings: MatchSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Find the predicted components of things in the pixels, not in the runs.

    Returns:
        int64 (R,), number of each run's component from 1, 0 elsewhere; int64 (K,), class of
        component k at index k - 1.
    """
    if settings.mode == "official":
        predicted = np.unique(image.predicted[image.predicted >= 0])
        present = predicted[settings.is_thing[predicted]].tolist()
        parts = class_components(prediction, skip=(), only=present, filled=True)
        return image.runs.sample(parts.map), parts.class_of
    # Values that are no class lie under ignored pixels.
    wanted = (prediction >= 0) & (prediction < settings.num_classes)
    wanted &= settings.is_thing.take(prediction, mode="clip")
    number, class_of = pixel_components(prediction, wanted)
    return number.ravel()[image.runs.start], class_of


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
        if image.number is None or image.class_of is None:
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


def find_records(
    overlaps: Overlaps, valid: np.ndarray, images: int, settings: MatchSettings
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Find the stuff classes and the instances that have a valid pixel, in each image.

    Returns:
        Their columns image, instance_id, category_id, area and pixels, int64 (T,) each, stuff
        first; and int64 (E,), the record of each overlap, T for none.
    """
    identity, label, count = overlaps.instance, overlaps.label, overlaps.count
    classes, below = settings.num_classes, int(overlaps.instance.max(initial=0)) + 1
    if images * below > max(LARGEST_TABLE, len(identity)):
        distinct, identity = np.unique(identity, return_inverse=True)
        below = len(distinct)
    # An instance's image and id, and a label's image and class, as one number each.
    category = label
    if images > 1:
        identity = overlaps.image * below + identity
        category = overlaps.image * classes + label
    is_object = overlaps.instance != 0
    counted = valid.nonzero()[0]
    # A stuff class is here by its valid pixels outside every instance.
    on_stuff = counted[~is_object[counted]]
    on_stuff = on_stuff[~settings.is_thing[label[on_stuff]]]
    if settings.void_instance is not None:
        is_object &= overlaps.instance != settings.void_instance
    on_object = counted[is_object[counted]]
    stuff = _present(category[on_stuff], images * classes)
    ids = _present(identity[on_object], images * below)
    total = len(stuff) + len(ids)
    table = np.full(images * below, total)
    table[ids] = np.arange(len(stuff), total)
    record = np.where(is_object, table[identity], total)
    table = np.empty(images * classes, np.int64)
    table[stuff] = np.arange(len(stuff))
    record[on_stuff] = table[category[on_stuff]]
    # Any overlap of a record tells its image and instance, any valid one its class.
    member = np.empty(total + 1, np.int64)
    member[record[counted]] = counted
    member = member[:total]
    area = sum_by(record, count, total + 1)[:total]
    if len(stuff):
        # The void of the instance map belongs to the area of stuff, as it does to the others'.
        everywhere = sum_by(category[counted], count[counted], images * classes)
        area[: len(stuff)] = everywhere[stuff]
    instance_id = overlaps.instance[member]
    instance_id[: len(stuff)] = 0
    return {
        "image": overlaps.image[member],
        "instance_id": instance_id,
        "category_id": label[member],
        "area": area,
        "pixels": sum_by(record[counted], count[counted], total + 1)[:total],
    }, record


def _present(values: np.ndarray, length: int) -> np.ndarray:
    """Distinct values of 0..length-1, ascending."""
    seen = np.zeros(length, bool)
    seen[values] = True
    return seen.nonzero()[0]
