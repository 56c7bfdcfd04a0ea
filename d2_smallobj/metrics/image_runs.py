"""Check the label maps of an image and cut them into runs of equal pixels.

Shapes: H, W image height and width; C number of classes; R number of runs; G number of regions,
i.e. of pairs of a label and an instance that occur.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import numpy as np

from d2_smallobj.metrics import validation
from d2_smallobj.metrics.components import class_components
from d2_smallobj.metrics.runs import (
    Runs,
    find_runs,
    pixel_components,
    run_components,
    stack_runs,
)
from d2_smallobj.metrics.validation import VOID_INSTANCE
from d2_smallobj.utils.options import look_up_option

MODES = ("exact", "official")

# Pixels of a run, on average, below which an image is looked at pixel by pixel.
_SHORT_RUN = 4
_SMALLEST_AREA = 1 << 12
# Largest table of labels and instances; a larger one costs more than numbering the instances first.
_LARGEST_TABLE = 1 << 14


@dataclasses.dataclass(frozen=True)
class MatchSettings:
    """Settings of matching; checked when they are made.

    Attributes:
        num_classes: C.
        stuff: ids of the classes whose pixels are no objects, ascending.
        ignore_label: semantic value that is left out.
        void_instance: value of instance pixels that are left out; ``None``: there are none.
        mode: ``"exact"`` or ``"official"``.

    Raises:
        TypeError, ValueError: a value is of the wrong kind or out of range.
    """

    num_classes: int
    stuff: tuple[int, ...] = (0,)
    ignore_label: int = 255
    void_instance: int | None = VOID_INSTANCE
    mode: str = "exact"

    def __post_init__(self) -> None:
        """Check the values and bring them to plain ints."""
        validation.check_classes(self.num_classes, self.ignore_label)
        checked = {
            "num_classes": int(self.num_classes),
            "stuff": validation.check_stuff(self.stuff, self.num_classes),
            "ignore_label": int(self.ignore_label),
            "void_instance": validation.check_void_instance(self.void_instance),
            "mode": look_up_option("mode", self.mode, MODES),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @functools.cached_property
    def is_thing(self) -> np.ndarray:
        """Mark the classes of objects, bool (C + 1,); index -1, no class, is none."""
        things = np.ones(self.num_classes + 1, bool)
        things[[*self.stuff, -1]] = False
        return things

    @functools.cached_property
    def stuff_number(self) -> np.ndarray:
        """Number the stuff classes from 1, int64 (C + 1,); 0 for things and no class (-1)."""
        number = np.zeros(self.num_classes + 1, np.int64)
        number[list(self.stuff)] = np.arange(1, len(self.stuff) + 1)
        return number


match_settings = functools.lru_cache(maxsize=8, typed=True)(MatchSettings)
"""Make settings, or take those that were made with the same arguments before."""


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
        instance = _component_ids(
            runs, label, (*settings.stuff, settings.ignore_label), settings.void_instance
        )
    else:
        instance = runs.sample(instances)
        if _has_negative(instances, instance):
            validation.raise_for_values("instances", instances, np.iinfo(np.int64).max)
    # What is no class is ignored here, and the numbers of regions are kept small.
    np.minimum(label, limit, out=label)
    region, label, instance = _regions(label, instance, limit + 1)
    label[label == limit] = settings.ignore_label
    image = ImageRuns(image_id, semantic.size, runs, predicted, region, label, instance)
    _check_instances(image, settings)
    if settings.mode == "official":
        image.number, image.class_of = predicted_components(image, prediction, settings)
    return image


def component_instances(
    semantic: np.ndarray,
    *,
    stuff: Collection[int] = (0,),
    ignore_label: int = 255,
    void_instance: int | None = VOID_INSTANCE,
) -> np.ndarray:
    """Number the components that stand in for missing instance annotation (paper, Sec. 2.2).

    Args:
        semantic: (H, W) integers.
        stuff: ids of the classes that have no instances.
        ignore_label: semantic value that is left out.
        void_instance: number that no component gets; ``None``: none is passed over.

    Returns:
        int64 (H, W), 0 on stuff and ignored pixels, elsewhere the ids that
        :func:`.matching.match_image` gives records without an instance map: from 1, ascending
        with the class, then with the first pixel in raster order.

    Raises:
        TypeError: if ``semantic`` is not an integer array.
        ValueError: if it is not two-dimensional.
    """
    validation.check_maps(semantic=semantic)
    runs = find_runs(semantic)
    ids = _component_ids(runs, runs.sample(semantic), (*stuff, ignore_label), void_instance)
    return np.repeat(ids, runs.length).reshape(semantic.shape)


def _has_negative(labels: np.ndarray, sample: np.ndarray) -> bool:
    """Look for a value below 0 among a map's values at the runs."""
    return labels.dtype.kind == "i" and bool(sample.min(initial=0) < 0)


def _out_of_range(values: np.ndarray, limit: int) -> np.ndarray:
    """Mark int64 values outside 0..limit-1; negative ones are large without their sign."""
    return values.view(np.uint64) >= limit


def _component_ids(
    runs: Runs, label: np.ndarray, skipped: Collection[int], void_instance: int | None
) -> np.ndarray:
    """Take the components of the semantic map for instances: their ids at the runs (R,)."""
    chosen = (~np.isin(label, list(skipped))).nonzero()[0]
    start, end, width = stack_runs([(runs, chosen)])
    label = label[chosen]
    tree, first = run_components(start, end, label, width)
    class_of = label[first]
    number = np.zeros(len(runs), np.int64)
    number[chosen] = tree + 1
    # The first run of a component holds its first pixel. Of several values the last one written
    # stays, so they are written backwards.
    first = np.zeros(len(class_of) + 1, np.int64)
    first[number[::-1]] = np.arange(len(number))[::-1]
    rank = np.zeros(len(class_of) + 1, np.int64)
    rank[np.lexsort((first[1:], class_of)) + 1] = np.arange(1, len(class_of) + 1)
    ids = rank[number]
    return ids if void_instance is None else ids + (ids >= void_instance)


def _regions(
    label: np.ndarray, instance: np.ndarray, labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the pairs of label, in 0..labels-1, and instance.

    Returns:
        int64 (R,), number of each run's pair; label and instance of each pair, int64 (G,).
    """
    below, ids = int(instance.max(initial=0)) + 1, None
    if below * labels > _LARGEST_TABLE:
        ids, instance = _numbered(instance, below)
        below = len(ids)
    pair = instance * labels
    pair += label
    pairs, region = _numbered(pair, below * labels)
    instance, label = np.divmod(pairs, labels)
    return region, label, instance if ids is None else ids[instance]


def _numbered(values: np.ndarray, below: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct values of 0..below-1, ascending, and each one's position (R,) there."""
    if below > 8 * _LARGEST_TABLE:
        distinct, place = np.unique(values, return_inverse=True)
        return distinct, place.ravel()
    seen = np.zeros(below, bool)
    seen[values] = True
    distinct = seen.nonzero()[0]
    number = np.empty(below, np.int64)
    number[distinct] = np.arange(len(distinct))
    return distinct, number[values]


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
