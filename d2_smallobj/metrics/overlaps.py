"""What predicted components lie on: counts of pixels by component and region of the ground truth.

Shapes: C number of classes; R number of runs; K number of predicted components, number 0 for "no
class" included; E number of overlaps, i.e. of pairs of a component and a region that occur.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from d2_smallobj.metrics.image_runs import ImageRuns, MatchSettings
from d2_smallobj.metrics.runs import RunStarts, changes, run_components

# Bits of an int64 that is not negative.
_KEY_BITS = 63


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """What lies on what, all int64 (E,), ascending by component.

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
class Components:
    """The predicted components of the images; number 0 is what is no class.

    Attributes:
        of_run: int64 (R,), component of each run.
        category: int64 (K,), class of each component.
        image: int64 (K,), its image.
        first_thing: number of the first one that is no stuff.
    """

    of_run: np.ndarray
    category: np.ndarray
    image: np.ndarray
    first_thing: int


def sum_by(index: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Sum pixel counts by ``index``, int64 (length,); exact, as bincount is up to 2**53."""
    return np.bincount(index, values, length).astype(np.int64)


def number_components(images: Sequence[ImageRuns], settings: MatchSettings) -> Components:
    """Number the predicted components of all images: no class, stuff, things."""
    guess = join([image.guess for image in images])
    number = np.empty_like(guess)
    stuff = len(settings.stuff)
    category = [np.zeros(1, np.int64), np.tile(np.array(settings.stuff, np.int64), len(images))]
    image_of = [np.zeros(1, np.int64), np.arange(len(images)).repeat(stuff)]
    first_thing = total = 1 + stuff * len(images)
    things = settings.is_thing.take(guess)
    starts = np.cumsum([0, *(len(image.runs) for image in images)])
    for place, image in enumerate(images):
        part = slice(starts[place], starts[place + 1])
        table = settings.stuff_number + (settings.stuff_number > 0) * (place * stuff)
        # -1, what is no class, takes the value of the last class and is corrected below.
        table.take(image.guess, out=number[part], mode="wrap")
        if image.number is not None:
            # Found in the pixels; the others are found from the runs, all at once.
            number[part] += np.where(image.number > 0, image.number + (total - 1), 0)
            things[part] = False
            category.append(image.class_of)
            image_of.append(np.full(len(image.class_of), place))
            total += len(image.class_of)
    if guess.min(initial=0) < 0:
        things[guess < 0], number[guess < 0] = False, 0
    found, first = run_components(_stacked(images), guess, things, offset=total - 1)
    number += found
    category.append(guess.take(first))
    image_of.append(starts.searchsorted(first, side="right") - 1)
    return Components(number, np.concatenate(category), np.concatenate(image_of), first_thing)


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate; a single array is taken as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _stacked(images: Sequence[ImageRuns]) -> RunStarts:
    """Put the runs of the images below one another, with an empty row between them."""
    width, row = 1 + max(image.runs.width for image in images), 0
    start = np.empty(sum(len(image.runs) for image in images), np.int64)
    end = 0
    for image in images:
        first, end = end, end + len(image.runs)
        image.runs.place(width, row, start[first:end])
        row += image.area // max(image.runs.width, 1) + 1
    return RunStarts(width, start, join([image.runs.length for image in images]))


def count_overlaps(components: Components, images: Sequence[ImageRuns]) -> Overlaps:
    """Count the pixels of runs (R,) by component and region."""
    sizes = [len(image.label) for image in images]
    first = np.cumsum([0, *sizes]).tolist()
    of_region, of_length = (
        int(top).bit_length() for top in (first[-1], max(image.runs.width for image in images))
    )
    numbers = components.of_run << of_region
    end = 0
    for image, offset in zip(images, first):
        start, end = end, end + len(image.runs)
        numbers[start:end] += image.region
        if offset:
            numbers[start:end] += offset
    length = join([image.runs.length for image in images])
    if len(components.category).bit_length() + of_region + of_length <= _KEY_BITS:
        # Everything in one number, as sorting numbers is faster than finding their order.
        numbers <<= of_length
        numbers |= length
        numbers.sort()
        key = numbers >> of_length
        numbers &= (1 << of_length) - 1
    else:
        order = numbers.argsort(kind="stable")
        key, numbers = numbers.take(order), length.take(order)
    heads = changes(key)
    count = np.add.reduceat(numbers, heads) if len(heads) else heads
    key = key.take(heads)
    return overlaps_of(key >> of_region, key & ((1 << of_region) - 1), count, images)


def overlaps_of(
    component: np.ndarray, region: np.ndarray, count: np.ndarray, images: Sequence[ImageRuns]
) -> Overlaps:
    """Look up what the regions are; all int64 (E,)."""
    label, instance = (join([getattr(x, name) for x in images]) for name in ("label", "instance"))
    image = np.arange(len(images)).repeat([len(image.label) for image in images])
    return Overlaps(
        component, region, image.take(region), instance.take(region), label.take(region), count
    )
