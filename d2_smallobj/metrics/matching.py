"""Match predicted components with ground-truth instances: the instance-aware IoU of images.

Every image is cut into runs of equal pixels. The steps: check and read the maps, number the
predicted components, count their overlaps with the ground truth, find the instances, charge
components to them, make the records. docs/method.md#instance-aware-iou has the definition.

Shapes: H, W image height and width; C number of classes; K number of predicted components; E number
of overlaps (see :mod:`.image_runs`); T number of records.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np

from d2_smallobj.metrics.image_runs import (
    LARGEST_TABLE,
    ImageRuns,
    Overlaps,
    PredictedComponents,
    count_overlaps,
    find_records,
    number_components,
    overlaps_of,
    predicted_components,
    read_image,
    sum_by,
)
from d2_smallobj.metrics.records import BlobTable, InstanceTable, PixelTable
from d2_smallobj.metrics.runs import changes
from d2_smallobj.metrics.validation import VOID_INSTANCE, MatchSettings, match_settings


@dataclasses.dataclass(frozen=True)
class ImageMatch:
    """Contribution of one or more images to the figures.

    Attributes:
        num_classes: C.
        entries: int64 (N, 3), entries of the confusion matrix that are not 0: ground truth,
            prediction, number of pixels. Pixels with the ignore label are left out (void
            instances are not: mIoU knows no instances).
        pixels: row sums, column sums and diagonal of that matrix, by image and class.
        table: one record per instance that has a valid pixel, and one per image and stuff class
            that has.
        blobs: the unmatched components: predicted, of thing classes, with a valid pixel, and
            overlapping no instance of their class.
    """

    num_classes: int
    entries: np.ndarray
    pixels: PixelTable
    table: InstanceTable
    blobs: BlobTable

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, int64 (C, C), rows ground truth, columns prediction."""
        confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        confusion[self.entries[:, 0], self.entries[:, 1]] = self.entries[:, 2]
        return confusion


def match_image(
    prediction: np.ndarray,
    semantic: np.ndarray,
    instances: np.ndarray | None = None,
    *,
    num_classes: int,
    stuff: Collection[int] = (0,),
    ignore_label: int = 255,
    void_instance: int | None = VOID_INSTANCE,
    mode: str = "exact",
    image_id: str = "",
) -> ImageMatch:
    """Match the predicted components of one image with its ground-truth instances.

    Components P_j of each thing class are 8-connected and found on the raw prediction; all counts
    then leave out pixels where ``semantic == ignore_label`` or ``instances == void_instance``.
    With ``n_jt = |P_j ∩ G_t|`` for instances of the component's class, instance t is charged
    ``Σ_j |P_j| n_jt / Σ_s n_js`` and has ``IoU_t = Σ_j n_jt / (|G_t| + charged_t − Σ_j n_jt)``.
    All pixels of a stuff class are one component and one record.

    Args:
        prediction: (H, W) integers in 0..C-1; pixels that ``semantic`` ignores may hold anything.
        semantic: (H, W) integers in 0..C-1, or ``ignore_label``.
        instances: (H, W) integers, 0 = none, ``void_instance`` = void, any other id >= 1 (gaps
            allowed); ``None``: the 8-connected components of the thing classes of ``semantic``
            are the instances, numbered as :func:`.components.component_instances` does.
        num_classes: C.
        stuff: ids of the classes whose pixels are no objects; all others are things.
        ignore_label: semantic value that is left out.
        void_instance: value of instance pixels that are left out; ``None``: there are none.
        mode: ``"exact"``, or ``"official"`` for the authors' code: components are filled outer
            contours (one inside another's hole belongs to it), and each share of the pixels
            outside the overlap, ``n_jt / Σ_s n_js · (|P_j| − Σ_s n_js)``, is cut to an integer.
        image_id: name that the records carry.

    Returns:
        The image's confusion matrix, pixel counts, records and unmatched components.

    Raises:
        TypeError: if a map is not an integer array.
        ValueError: if shapes differ, a value is out of range, ``mode`` is unknown, or an
            instance lies on stuff or on two classes.
    """
    settings = match_settings(num_classes, tuple(stuff), ignore_label, void_instance, mode)
    read = read_or_match(prediction, semantic, instances, settings, image_id)
    return read if isinstance(read, ImageMatch) else match_images([read], settings)


def read_or_match(
    prediction: np.ndarray,
    semantic: np.ndarray,
    instances: np.ndarray | None,
    settings: MatchSettings,
    image_id: str = "",
) -> ImageRuns | ImageMatch:
    """Read an image for :func:`match_images`; one of noise, which has no long runs, is matched.

    Arguments and errors are those of :func:`match_image`.
    """
    image = read_image(prediction, semantic, instances, settings, image_id)
    few = len(image.label) * (settings.num_classes + 1) <= LARGEST_TABLE
    return _match_noise(image, prediction, settings) if image.is_noise and few else image


def match_images(images: Sequence[ImageRuns], settings: MatchSettings) -> ImageMatch:
    """Match images read with these settings, at least one: faster than one by one.

    Numpy's calls cost more than the arithmetic on a single image's few counts.
    """
    components = number_components(images, settings)
    overlaps = count_overlaps(components, images)
    valid = overlaps.label != settings.ignore_label
    entries, pixels = _confusion(overlaps, valid, components, len(images), settings.num_classes)
    records, record = find_records(overlaps, valid, len(images), settings)
    if settings.void_instance is not None:
        valid &= overlaps.instance != settings.void_instance
    chosen = valid.nonzero()[0]
    component, count = overlaps.component[chosen], overlaps.count[chosen]
    record = record[chosen]
    size = sum_by(component, count, len(components.category))
    # Pixels on an instance of another class are surplus. What is left is one overlap for each
    # component and instance, as an instance has one label.
    category = np.append(records["category_id"], -1)
    same = (category[record] == components.category[component]).nonzero()[0]
    pairs = (component[same], record[same], count[same])
    table, unmatched = _charge_instances(size, pairs, components, records, settings)
    return _make_match(images, settings, entries, pixels, table, unmatched)


def _match_noise(image: ImageRuns, prediction: np.ndarray, settings: MatchSettings) -> ImageMatch:
    """Match an image of about as many components as pixels: count overlaps by class, then hits."""
    number, class_of = predicted_components(image, prediction, settings)
    regions, length = len(image.label), image.runs.length
    classes = PredictedComponents(
        image.predicted + 1,
        np.append(0, np.arange(settings.num_classes)),
        np.zeros(settings.num_classes + 1, np.int64),
        0,
    )
    key = classes.of_run * regions
    key += image.region
    sums = sum_by(key, length, regions * len(classes.category))
    present = sums.nonzero()[0]
    predicted, region = np.divmod(present, regions)
    overlaps = overlaps_of(predicted, region, sums[present], [image])
    valid = overlaps.label != settings.ignore_label
    entries, pixels = _confusion(overlaps, valid, classes, 1, settings.num_classes)
    records, record = find_records(overlaps, valid, 1, settings)
    # What is true of a region, and of a predicted class in it, looked up by the runs.
    counted = image.label != settings.ignore_label
    if settings.void_instance is not None:
        counted &= image.instance != settings.void_instance
    total = len(records["pixels"])
    record_of = np.full(regions, total)
    record_of[overlaps.region] = record
    is_hit = np.zeros(len(sums), bool)
    is_hit[present] = (predicted - 1 == overlaps.label) & (counted & (record_of < total))[region]
    stuff = len(settings.stuff)
    of_run = settings.stuff_number[image.predicted]
    of_run += number
    of_run += (number > 0) * stuff
    components = PredictedComponents(
        of_run,
        np.concatenate([[0], settings.stuff, class_of]).astype(np.int64),
        np.zeros(1 + stuff + len(class_of), np.int64),
        1 + stuff,
    )
    size = sum_by(of_run, length * counted[image.region], len(components.category))
    hit = is_hit[key].nonzero()[0]
    pair = of_run[hit] * total + record_of[image.region[hit]]
    order = pair.argsort(kind="stable")
    pair = pair[order]
    heads = changes(pair)
    count = np.add.reduceat(length[hit[order]], heads) if len(heads) else heads
    pairs = (*np.divmod(pair[heads], max(total, 1)), count)
    table, unmatched = _charge_instances(size, pairs, components, records, settings)
    return _make_match([image], settings, entries, pixels, table, unmatched)


def _make_match(
    images: Sequence[ImageRuns],
    settings: MatchSettings,
    entries: np.ndarray,
    pixels: dict[str, np.ndarray],
    table: dict[str, np.ndarray],
    unmatched: dict[str, np.ndarray],
) -> ImageMatch:
    """Make the tables, with names and areas of the images instead of their positions."""
    names = np.array([image.image_id for image in images])
    areas = np.array([image.area for image in images])
    for part in (table, unmatched):
        part["image_area"] = areas[part["image"]]
    for part in (pixels, table, unmatched):
        part["image_id"] = names[part.pop("image")]
    return ImageMatch(
        settings.num_classes,
        entries,
        PixelTable(**pixels),
        InstanceTable(**table),
        BlobTable(**unmatched),
    )


def _confusion(
    overlaps: Overlaps,
    valid: np.ndarray,
    components: PredictedComponents,
    images: int,
    num_classes: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Entries (N, 3) of the confusion matrix that are not 0; its sums by image and class."""
    chosen = valid.nonzero()[0]
    truth, count = overlaps.label[chosen], overlaps.count[chosen]
    predicted = components.category[overlaps.component[chosen]]
    place = truth * num_classes + predicted
    # A matrix of all classes would cost more than all the rest where they are many.
    if num_classes**2 <= 4 * len(place) + 4096:
        sums = sum_by(place, count, num_classes**2)
        place = sums.nonzero()[0]
        sums = sums[place]
    else:
        place, index = np.unique(place, return_inverse=True)
        sums = sum_by(index.ravel(), count, len(place))
    entries = np.empty((len(place), 3), np.int64)
    entries[:, 0], entries[:, 1] = np.divmod(place, num_classes)
    entries[:, 2] = sums
    same = (truth == predicted).nonzero()[0]
    if images > 1:
        first = overlaps.image[chosen] * num_classes
        truth, predicted = first + truth, first + predicted
    length = images * num_classes
    rows, columns = sum_by(truth, count, length), sum_by(predicted, count, length)
    hits = sum_by(truth[same], count[same], length)
    present = (rows + columns).nonzero()[0]
    image, category = np.divmod(present, num_classes)
    return entries, {
        "image": image,
        "category_id": category,
        "intersection": hits[present],
        "ground_truth": rows[present],
        "predicted": columns[present],
    }


def _charge_instances(
    size: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    components: PredictedComponents,
    records: dict[str, np.ndarray],
    settings: MatchSettings,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Charge components to the instances of their class that they overlap.

    ``size``, int64 (K,), are counted pixels of each component; ``pairs`` component, record and
    pixels of each overlap with an instance of the component's class, ascending by component.
    Returns columns of the records and of the unmatched components.
    """
    component, record, count = pairs
    total = len(records["pixels"])
    overlap = sum_by(component, count, len(size))
    surplus, overlapped = (size - overlap)[component], overlap[component]
    whole, rest = np.divmod(surplus * count, overlapped)
    exact = settings.mode == "exact"
    if not exact:
        # The authors cut a floating-point product, which may be just short of a whole number.
        whole = (count / overlapped * surplus).astype(np.int64)
    intersection = sum_by(record, count, total)
    charged = (intersection + sum_by(record, whole, total)).astype(np.float64)
    if exact:
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
    """Count the other instances that each one (T,) shares a component with; those ascend."""
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

    Integer arithmetic makes the sum independent of the order of components. Only components that
    several instances share have a rest.
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
