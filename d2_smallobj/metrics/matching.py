"""From label maps to one record per instance: the instance-aware IoU of images.

The runs of an image, or of several at once, are connected to components and counted by what they
lie on; the rest is arithmetic on these few counts. The steps: number the components, count
overlaps, find the instances, charge components to them, make the records.
docs/method.md#instance-aware-iou tells the definition.

Shapes: H, W image height and width; C number of classes; R number of runs; K number of predicted
components, number 0 for "no class" included; E number of overlaps, i.e. of pairs of a component
and a region (label and instance) that occur; T number of records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from d2_smallobj.metrics.charging import charge_pairs
from d2_smallobj.metrics.image_runs import (
    ImageRuns,
    MatchSettings,
    match_settings,
    predicted_components,
    read_image,
)
from d2_smallobj.metrics.overlaps import (
    Components,
    Overlaps,
    count_overlaps,
    number_components,
    overlaps_of,
    sum_by,
)
from d2_smallobj.metrics.records import BlobTable, InstanceTable, PixelTable
from d2_smallobj.metrics.runs import changes
from d2_smallobj.metrics.validation import VOID_INSTANCE

# Largest table of instance ids, or of regions and classes.
_LARGEST_TABLE = 1 << 22


@dataclasses.dataclass(frozen=True)
class ImageMatch:
    """What images contribute to the figures.

    Attributes:
        num_classes: C.
        cells: int64 (N, 3), the cells of the confusion matrix that are not 0: ground truth,
            prediction, number of pixels. Semantic ignore is left out (instance void is not: mIoU
            knows no instances).
        pixels: the margins of that matrix, by image and class.
        table: one record per instance that has a valid pixel, and one per image and stuff class
            that has.
        blobs: the predicted components of thing classes that overlap no instance of their class
            and have a valid pixel.
    """

    num_classes: int
    cells: np.ndarray
    pixels: PixelTable
    table: InstanceTable
    blobs: BlobTable

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, int64 (C, C), rows ground truth, columns prediction."""
        confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        confusion[self.cells[:, 0], self.cells[:, 1]] = self.cells[:, 2]
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
            are the instances, numbered as :func:`.image_runs.component_instances` does.
        num_classes: C.
        stuff: ids of the classes whose pixels are no objects; all others are things.
        ignore_label: semantic value that is left out.
        void_instance: value of instance pixels that are left out; ``None``: there are none.
        mode: ``"exact"``, or ``"official"`` for the authors' code: components are filled outer
            contours (a blob in another blob's hole belongs to it), and the share of pixels
            beyond the overlap, ``a_jt − n_jt``, is cut to an integer (computed as there:
            the double-precision product ``n_jt / Σ_s n_js · (|P_j| − Σ_s n_js)``).
        image_id: name that the records carry.

    Returns:
        The image's confusion matrix, pixel counts, records and blobs.

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

    Args:
        prediction: (H, W) integers.
        semantic: (H, W) integers.
        instances: (H, W) integers, or ``None``.
        settings: how to match.
        image_id: name that the records carry.

    Raises:
        TypeError, ValueError: as :func:`match_image`.
    """
    image = read_image(prediction, semantic, instances, settings, image_id)
    few = len(image.label) * (settings.num_classes + 1) <= _LARGEST_TABLE
    return _match_short(image, prediction, settings) if image.is_short and few else image


def match_images(images: Sequence[ImageRuns], settings: MatchSettings) -> ImageMatch:
    """Match several images at once: what :func:`match_image` finds in each, one after the other.

    Numpy's calls cost more than the arithmetic on a single image's few counts.

    Args:
        images: at least one, read with these settings.
        settings: how to match.
    """
    components = number_components(images, settings)
    overlaps = count_overlaps(components, images)
    valid = overlaps.label != settings.ignore_label
    cells, pixels = _confusion(overlaps, valid, components, len(images), settings.num_classes)
    records, index = _find_records(overlaps, valid, len(images), settings)
    if settings.void_instance is not None:
        valid &= overlaps.instance != settings.void_instance
    cut = settings.mode == "official"
    table, blobs = _charge(overlaps, valid, components, records, index, cut=cut)
    return _finish(images, settings, cells, pixels, table, blobs)


def _match_short(image: ImageRuns, prediction: np.ndarray, settings: MatchSettings) -> ImageMatch:
    """Match an image whose components are about as many as its pixels.

    Overlaps are counted by class, not by component; the few pixels that are right tell the rest.
    """
    number, class_of = predicted_components(image, prediction, settings)
    regions, length = len(image.label), image.runs.length
    classes = Components(
        image.guess + 1,
        np.append(0, np.arange(settings.num_classes)),
        np.zeros(settings.num_classes + 1, np.int64),
        0,
    )
    key = classes.of_run * regions
    key += image.region
    sums = sum_by(key, length, regions * len(classes.category))
    present = sums.nonzero()[0]
    guess, region = np.divmod(present, regions)
    overlaps = overlaps_of(guess, region, sums.take(present), [image])
    valid = overlaps.label != settings.ignore_label
    cells, pixels = _confusion(overlaps, valid, classes, 1, settings.num_classes)
    records, index = _find_records(overlaps, valid, 1, settings)
    # What is true of a region, and of a predicted class in it, looked up by the runs.
    counted = image.label != settings.ignore_label
    if settings.void_instance is not None:
        counted &= image.instance != settings.void_instance
    total = len(records["pixels"])
    record_of = np.full(regions, total)
    record_of[overlaps.region] = index
    is_hit = np.zeros(len(sums), bool)
    is_hit[present] = (guess - 1 == overlaps.label) & (counted & (record_of < total)).take(region)
    stuff = len(settings.stuff)
    of_run = settings.stuff_number.take(image.guess)
    of_run += number
    of_run += (number > 0) * stuff
    components = Components(
        of_run,
        np.concatenate([[0], settings.stuff, class_of]).astype(np.int64),
        np.zeros(1 + stuff + len(class_of), np.int64),
        1 + stuff,
    )
    size = sum_by(of_run, length * counted.take(image.region), len(components.category))
    hit = is_hit.take(key).nonzero()[0]
    pair = of_run.take(hit) * total + record_of.take(image.region.take(hit))
    order = pair.argsort(kind="stable")
    pair = pair.take(order)
    heads = changes(pair)
    count = np.add.reduceat(length.take(hit.take(order)), heads) if len(heads) else heads
    component, index = np.divmod(pair.take(heads), max(total, 1))
    cut = settings.mode == "official"
    table, blobs = charge_pairs(size, (component, index, count), components, records, cut=cut)
    return _finish([image], settings, cells, pixels, table, blobs)


def _finish(
    images: Sequence[ImageRuns],
    settings: MatchSettings,
    cells: np.ndarray,
    pixels: dict[str, np.ndarray],
    table: dict[str, np.ndarray],
    blobs: dict[str, np.ndarray],
) -> ImageMatch:
    """Put names and areas of the images in the columns, and make the tables."""
    names = np.array([image.image_id for image in images])
    areas = np.array([image.area for image in images])
    for part in (pixels, table, blobs):
        part["image_id"] = names.take(part["image"])
    for part in (table, blobs):
        part["image_area"] = areas.take(part["image"])
    for part in (pixels, table, blobs):
        del part["image"]
    return ImageMatch(
        settings.num_classes,
        cells,
        PixelTable(**pixels),
        InstanceTable(**table),
        BlobTable(**blobs),
    )


def _confusion(
    overlaps: Overlaps,
    valid: np.ndarray,
    components: Components,
    images: int,
    num_classes: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cells (N, 3) of the confusion matrix that are not 0, and its margins by image and class."""
    chosen = valid.nonzero()[0]
    truth, count = overlaps.label.take(chosen), overlaps.count.take(chosen)
    guess = components.category.take(overlaps.component.take(chosen))
    place = truth * num_classes + guess
    # A matrix of all classes would cost more than all the rest where they are many.
    if num_classes**2 <= 4 * len(place) + 4096:
        sums = sum_by(place, count, num_classes**2)
        place = sums.nonzero()[0]
        sums = sums.take(place)
    else:
        place, index = np.unique(place, return_inverse=True)
        sums = sum_by(index.ravel(), count, len(place))
    cells = np.empty((len(place), 3), np.int64)
    cells[:, 0], cells[:, 1] = np.divmod(place, num_classes)
    cells[:, 2] = sums
    same = (truth == guess).nonzero()[0]
    if images > 1:
        first = overlaps.image.take(chosen) * num_classes
        truth, guess = first + truth, first + guess
    length = images * num_classes
    rows, columns = sum_by(truth, count, length), sum_by(guess, count, length)
    hits = sum_by(truth.take(same), count.take(same), length)
    present = (rows + columns).nonzero()[0]
    image, category = np.divmod(present, num_classes)
    return cells, {
        "image": image,
        "category_id": category,
        "intersection": hits.take(present),
        "ground_truth": rows.take(present),
        "predicted": columns.take(present),
    }


def _find_records(
    overlaps: Overlaps, valid: np.ndarray, images: int, settings: MatchSettings
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Find the stuff classes and the instances that have a valid pixel, in each image.

    Args:
        overlaps: of the images.
        valid: bool (E,), overlaps that the semantic map does not ignore.
        images: their number.
        settings: how to match.

    Returns:
        Their columns image, instance_id, category_id, area and pixels, int64 (T,) each, stuff
        first; and int64 (E,), which of them each overlap belongs to, T for none.
    """
    identity, label, count = overlaps.instance, overlaps.label, overlaps.count
    classes, below = settings.num_classes, int(overlaps.instance.max(initial=0)) + 1
    if images * below > max(_LARGEST_TABLE, len(identity)):
        distinct, identity = np.unique(identity, return_inverse=True)
        below = len(distinct)
    # An instance's image and id as one number; those without one are 0.
    if images > 1:
        identity = overlaps.image * below + identity
    is_object = overlaps.instance != 0
    counted = valid.nonzero()[0]
    # A stuff class is here by its valid pixels outside every instance.
    on_stuff = counted[~is_object.take(counted)]
    on_stuff = on_stuff[~settings.is_thing.take(label.take(on_stuff))]
    if settings.void_instance is not None:
        is_object &= overlaps.instance != settings.void_instance
    on_object = counted[is_object.take(counted)]
    # Numbers of the records by image and class, and by image and instance; T where there is none.
    kind = overlaps.image * classes + label if images > 1 else label
    kinds = _present(kind.take(on_stuff), images * classes)
    ids = _present(identity.take(on_object), images * below)
    total = len(kinds) + len(ids)
    table = np.full(images * below, total)
    table[ids] = np.arange(len(kinds), total)
    index = np.where(is_object, table.take(identity), total)
    table = np.empty(images * classes, np.int64)
    table[kinds] = np.arange(len(kinds))
    index[on_stuff] = table.take(kind.take(on_stuff))
    # Any overlap of a record tells its image and instance, any valid one its class.
    member = np.empty(total + 1, np.int64)
    member[index.take(counted)] = counted
    member = member[:total]
    area = sum_by(index, count, total + 1)[:total]
    if len(kinds):
        # The void of the instance map belongs to the area of stuff, as it does to the others'.
        everywhere = sum_by(kind.take(counted), count.take(counted), images * classes)
        area[: len(kinds)] = everywhere.take(kinds)
    instance_id = overlaps.instance.take(member)
    instance_id[: len(kinds)] = 0
    records = {
        "image": overlaps.image.take(member),
        "instance_id": instance_id,
        "category_id": label.take(member),
        "area": area,
        "pixels": sum_by(index.take(counted), count.take(counted), total + 1)[:total],
    }
    return records, index


def _present(values: np.ndarray, length: int) -> np.ndarray:
    """Distinct values of 0..length-1, ascending."""
    seen = np.zeros(length, bool)
    seen[values] = True
    return seen.nonzero()[0]


def _charge(
    overlaps: Overlaps,
    counted: np.ndarray,
    components: Components,
    records: dict[str, np.ndarray],
    index: np.ndarray,
    *,
    cut: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Charge the predicted components to the instances that they overlap.

    Args:
        overlaps: of the images.
        counted: bool (E,), overlaps that neither map leaves out.
        components: the predicted components.
        records: columns of the records.
        index: int64 (E,), record of each overlap.
        cut: truncate the share beyond the overlap.

    Returns:
        Columns of the records and of the blobs.
    """
    chosen = counted.nonzero()[0]
    component, count = overlaps.component.take(chosen), overlaps.count.take(chosen)
    index = index.take(chosen)
    size = sum_by(component, count, len(components.category))
    # An instance of another class is only more of the component's surplus. What is left is one
    # overlap for each component and instance, as an instance has one label.
    category = np.append(records["category_id"], -1)
    same = (category.take(index) == components.category.take(component)).nonzero()[0]
    pairs = (component.take(same), index.take(same), count.take(same))
    return charge_pairs(size, pairs, components, records, cut=cut)
