"""From three label maps to one record per instance: the instance-aware IoU of an image.

Pixels are looked at once, to cut the maps into runs. The runs are connected to components and
counted by what they lie on; the rest is arithmetic on these few counts. The steps: check the
maps, count overlaps, find the instances, charge components to them, make the records.
docs/method.md#instance-aware-iou tells the definition.

Shapes: H, W image height and width; C number of classes; R number of runs; K number of predicted
components, number 0 for "no class" included; E number of overlaps, i.e. of combinations of
component, instance and label that occur; T number of records of the image, stuff first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from fractions import Fraction

import numpy as np

from d2_smallobj.metrics import validation
from d2_smallobj.metrics.components import class_components
from d2_smallobj.metrics.records import BlobTable, InstanceTable, PixelTable
from d2_smallobj.metrics.runs import Runs, find_runs, run_components
from d2_smallobj.metrics.validation import VOID_INSTANCE
from d2_smallobj.utils.options import look_up_option

MODES = ("exact", "official")

# What int64 holds. Beyond it, instance ids are numbered anew before they become part of a key.
_LARGEST_NUMBER = (1 << 63) - 1


@dataclasses.dataclass(frozen=True)
class ImageMatch:
    """What one image contributes to the figures.

    Attributes:
        cells: int64 (N, 3), the cells of the confusion matrix that are not 0: ground truth,
            prediction, number of pixels. Semantic ignore is left out (instance void is not: mIoU
            knows no instances).
        pixels: the margins of that matrix, class by class.
        table: one record per instance that has a valid pixel, and one per stuff class that has.
        blobs: the predicted components of thing classes that overlap no instance of their class
            and have a valid pixel.
        num_classes: C.
    """

    cells: np.ndarray
    pixels: PixelTable
    table: InstanceTable
    blobs: BlobTable
    num_classes: int

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, int64 (C, C), rows ground truth, columns prediction."""
        confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        confusion[self.cells[:, 0], self.cells[:, 1]] = self.cells[:, 2]
        return confusion


@dataclasses.dataclass(frozen=True)
class _Overlaps:
    """What lies on what in an image, all int64 (E,).

    Attributes:
        component: number of the predicted component.
        instance: value of the instance map.
        label: value of the semantic map.
        count: number of pixels.
    """

    component: np.ndarray
    instance: np.ndarray
    label: np.ndarray
    count: np.ndarray


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
            are the instances, numbered as :func:`component_instances` does.
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
    look_up_option("mode", mode, MODES)
    validation.check_classes(num_classes, ignore_label)
    validation.check_maps(prediction=prediction, semantic=semantic, instances=instances)
    stuff = validation.check_stuff(stuff, num_classes)
    void_instance = validation.check_void_instance(void_instance)
    maps = (prediction, semantic) if instances is None else (prediction, semantic, instances)
    runs = find_runs(*maps)
    guess, label = runs.sample(prediction), runs.sample(semantic)
    outside = _out_of_range(guess, num_classes)
    wrong = outside | _out_of_range(label, num_classes)
    if (wrong & (label != ignore_label)).any():
        kept = semantic != ignore_label
        validation.raise_for_values("semantic", semantic[kept], num_classes)
        validation.raise_for_values("prediction", prediction[kept], num_classes)
    if instances is None:
        instance = _component_ids(runs, label, (*stuff, ignore_label), void_instance)
    else:
        instance = runs.sample(instances)
        if instance.min(initial=0) < 0:
            validation.raise_for_values("instances", instances, np.iinfo(np.int64).max)
    component, class_of = _predicted(runs, guess, outside, prediction, stuff, mode)
    overlaps = _count(component, instance, label, runs.length)
    valid = overlaps.label != ignore_label
    cells, pixels = _confusion(overlaps, valid, class_of, num_classes)
    records, index = _find_records(overlaps, valid, stuff, void_instance)
    if void_instance is not None:
        valid &= overlaps.instance != void_instance
    columns, blobs = _charge(
        overlaps, valid, class_of, records, index, stuff=stuff, cut=mode == "official"
    )
    for part in (pixels, columns, blobs):
        part["image_id"] = np.full(len(part["category_id"]), image_id)
    for part in (columns, blobs):
        part["image_area"] = np.full(len(part["category_id"]), semantic.size)
    return ImageMatch(
        cells, PixelTable(**pixels), InstanceTable(**columns), BlobTable(**blobs), num_classes
    )


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
        int64 (H, W), 0 on stuff and ignored pixels, elsewhere the ids that :func:`match_image`
        gives records without an instance map: from 1, ascending with the class, then with the
        first pixel in raster order.

    Raises:
        TypeError: if ``semantic`` is not an integer array.
        ValueError: if it is not two-dimensional.
    """
    validation.check_maps(semantic=semantic)
    runs = find_runs(semantic)
    ids = _component_ids(runs, runs.sample(semantic), (*stuff, ignore_label), void_instance)
    return np.repeat(ids, runs.length).reshape(semantic.shape)


def sum_by(index: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Sum pixel counts by ``index``, int64 (length,); exact, as bincount is up to 2**53."""
    return np.bincount(index, values, length).astype(np.int64)


def _out_of_range(values: np.ndarray, limit: int) -> np.ndarray:
    """Where int64 ``values`` are not in 0..limit-1; negative ones are large without their sign."""
    return values.view(np.uint64) >= limit


def _is_any(values: np.ndarray, wanted: Collection[int]) -> np.ndarray:
    """Where ``values`` are one of a few numbers: bool, of their shape."""
    if len(wanted) > 4:
        return np.isin(values, list(wanted))
    found = np.zeros(values.shape, bool)
    for number in wanted:
        found |= values == number
    return found


def _component_ids(
    runs: Runs, label: np.ndarray, skipped: Collection[int], void_instance: int | None
) -> np.ndarray:
    """Instance ids of the runs (R,) from the components of the semantic map."""
    number, class_of = run_components(runs, label, ~_is_any(label, skipped))
    # The first run of a component holds its first pixel. Of several values the last one written
    # stays, so they are written backwards.
    first = np.zeros(len(class_of) + 1, np.int64)
    first[number[::-1]] = np.arange(len(number))[::-1]
    rank = np.zeros(len(class_of) + 1, np.int64)
    rank[np.lexsort((first[1:], class_of)) + 1] = np.arange(1, len(class_of) + 1)
    ids = rank[number]
    return ids if void_instance is None else ids + (ids >= void_instance)


def _predicted(
    runs: Runs,
    guess: np.ndarray,
    outside: np.ndarray,
    prediction: np.ndarray,
    stuff: tuple[int, ...],
    mode: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Number the predicted components.

    Returns:
        int64 (R,), component of each run; int64 (K,), class of each component. Number 0 is what
        is no class below ignored pixels, of class 0 for want of one; then things, then one for
        every stuff class.
    """
    is_stuff = _is_any(guess, stuff)
    things = ~(is_stuff | outside)
    if mode == "exact":
        component, class_of = run_components(runs, guess, things)
    else:
        present = np.unique(guess[things]).tolist()
        parts = class_components(prediction, skip=(), only=present, filled=True)
        component, class_of = runs.sample(parts.map), parts.class_of
    for number, category in enumerate(stuff, start=len(class_of) + 1):
        component[guess == category] = number
    return component, np.concatenate([[0], class_of, stuff]).astype(np.int64)


def _count(
    component: np.ndarray, instance: np.ndarray, label: np.ndarray, length: np.ndarray
) -> _Overlaps:
    """Count the pixels of runs (R,) by component, instance and label."""
    # Key and length share a number, as sorting numbers is faster than finding their order.
    bits = int(length.max(initial=0)).bit_length()
    labels, ids = int(label.max(initial=0)) + 1, int(instance.max(initial=0)) + 1
    names = None
    if (int(component.max(initial=0)) + 1) * ids * labels > _LARGEST_NUMBER >> bits:
        names, instance = np.unique(instance, return_inverse=True)
        ids = len(names)
    numbers = (((component * ids + instance) * labels + label) << bits) | length
    numbers.sort()
    key = numbers >> bits
    first = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    heads = first.nonzero()[0]
    count = np.add.reduceat(numbers & ((1 << bits) - 1), heads) if len(heads) else heads
    rest, label = np.divmod(key.take(heads), labels)
    component, instance = np.divmod(rest, ids)
    return _Overlaps(component, instance if names is None else names[instance], label, count)


def _confusion(
    overlaps: _Overlaps, valid: np.ndarray, class_of: np.ndarray, num_classes: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cells (N, 3) of the confusion matrix that are not 0, and its margins by class."""
    truth, count = overlaps.label[valid], overlaps.count[valid]
    guess = class_of[overlaps.component[valid]]
    # A dense matrix would cost more than all the rest where classes are many.
    place, index = np.unique(truth * num_classes + guess, return_inverse=True)
    cells = np.stack([*np.divmod(place, num_classes), sum_by(index, count, len(place))], axis=1)
    hit = sum_by(truth[truth == guess], count[truth == guess], num_classes)
    rows, columns = (sum_by(labels, count, num_classes) for labels in (truth, guess))
    present = np.flatnonzero(rows + columns)
    return cells, {
        "category_id": present,
        "intersection": hit[present],
        "ground_truth": rows[present],
        "predicted": columns[present],
    }


def _find_records(
    overlaps: _Overlaps, valid: np.ndarray, stuff: tuple[int, ...], void_instance: int | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Find the stuff classes and the instances that have a valid pixel.

    Args:
        overlaps: of the image.
        valid: bool (E,), overlaps that the semantic map does not ignore.
        stuff: ids of the stuff classes.
        void_instance: value of void pixels of the instance map, if there are any.

    Returns:
        Their columns instance_id, category_id, area and pixels, int64 (T,) each; and int64 (E,),
        which of them each overlap belongs to, T for none.
    """
    instance, label, count = overlaps.instance, overlaps.label, overlaps.count
    is_object = instance != 0
    if void_instance is not None:
        is_object &= instance != void_instance
    on_object = (is_object & valid).nonzero()[0]
    ids = np.unique(instance[on_object])
    uncounted = valid & (instance == 0)
    kinds = [one for one in stuff if (uncounted & (label == one)).any()]
    total = len(kinds) + len(ids)
    index = np.full(len(count), total)
    if len(ids):
        # Ids without a valid pixel are none of these.
        place = ids.searchsorted(instance)
        place[place == len(ids)] = 0
        known = is_object & (ids[place] == instance)
        index[known] = place[known] + len(kinds)
    category = np.zeros(total, np.int64)
    category[: len(kinds)] = kinds
    category[index[on_object]] = label[on_object]
    mixed = category[index[on_object]] != label[on_object]
    if mixed.any() or _is_any(category[len(kinds) :], stuff).any():
        validation.raise_for_classes(instance[on_object], label[on_object], count[on_object], stuff)
    area = sum_by(index, count, total + 1)[:total]
    for number, kind in enumerate(kinds):
        # The void of the instance map belongs to the area of stuff, as it does to the others'.
        area[number] = count[label == kind].sum()
        index[(instance == 0) & (label == kind)] = number
    pixels = sum_by(index[valid], count[valid], total + 1)[:total]
    names = np.append(np.zeros(len(kinds), np.int64), ids)
    return {"instance_id": names, "category_id": category, "area": area, "pixels": pixels}, index


def _charge(
    overlaps: _Overlaps,
    counted: np.ndarray,
    class_of: np.ndarray,
    records: dict[str, np.ndarray],
    index: np.ndarray,
    *,
    stuff: tuple[int, ...],
    cut: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Charge the predicted components to the instances that they overlap.

    Args:
        overlaps: of the image.
        counted: bool (E,), overlaps that neither map leaves out.
        class_of: int64 (K,), class of each component.
        records: columns of the records.
        index: int64 (E,), record of each overlap.
        stuff: ids of the stuff classes.
        cut: truncate the share beyond the overlap.

    Returns:
        Columns of the records and of the blobs; image_id and image_area are still missing.
    """
    total, number = len(records["pixels"]), len(class_of)
    chosen = counted.nonzero()[0]
    component, index, count = overlaps.component[chosen], index[chosen], overlaps.count[chosen]
    size = sum_by(component, count, number)
    # An instance of another class is only more of the component's surplus. What is left is one
    # overlap for each component and instance, as an instance has one label.
    same = (np.append(records["category_id"], -1)[index] == class_of[component]).nonzero()[0]
    component, index, count = component[same], index[same], count[same]
    overlap = sum_by(component, count, number)
    surplus, overlapped = (size - overlap)[component], overlap[component]
    whole, rest = np.divmod(surplus * count, overlapped)
    if cut:
        # The authors cut a floating-point product, which may be just short of a whole number.
        whole = (count / overlapped * surplus).astype(np.int64)
    intersection = sum_by(index, count, total)
    charged = (intersection + sum_by(index, whole, total)).astype(np.float64)
    if not cut:
        _add_fractions(charged, index, rest, overlapped)
    unmatched = (overlap == 0) & (size > 0)
    unmatched[0] = False
    unmatched[number - len(stuff) :] = False
    unmatched = unmatched.nonzero()[0]
    return {
        **records,
        "intersection": intersection,
        "charged": charged,
        "components": np.bincount(index, minlength=total),
        "shared": _sharing(component, index, total),
    }, {"category_id": class_of[unmatched], "area": size[unmatched]}


def _sharing(component: np.ndarray, index: np.ndarray, length: int) -> np.ndarray:
    """Count the other instances that each instance (T,) shares a component with.

    Args:
        component: int64 (E,), ascending, component of each overlap with its own class.
        index: int64 (E,), instance of each.
        length: T.
    """
    shared = np.zeros(length, np.int64)
    size = np.bincount(component, minlength=1)
    joint = (size[component] > 1).nonzero()[0]
    if len(joint) == 0:
        return shared
    component, index = component[joint], index[joint]
    shared[index] = size[component] - 1
    # Through several shared components, two instances may share more than once.
    groups: dict[int, set[int]] = {}
    for pair in np.flatnonzero(np.bincount(index, minlength=length)[index] > 1).tolist():
        start, end = np.searchsorted(component, [component[pair], component[pair] + 1]).tolist()
        groups.setdefault(int(index[pair]), set()).update(index[start:end].tolist())
    for one, group in groups.items():
        shared[one] = len(group) - 1
    return shared


def _add_fractions(
    charged: np.ndarray, index: np.ndarray, rest: np.ndarray, overlap: np.ndarray
) -> None:
    """Add Σ rest / overlap to ``charged``, in place and rounded once.

    Rational arithmetic makes the sum independent of the order of components, so that a mirrored
    image gets the same bits; only components shared by several instances come here.
    """
    shared: dict[int, Fraction] = {}
    for where in rest.nonzero()[0].tolist():
        part = Fraction(int(rest[where]), int(overlap[where]))
        shared[int(index[where])] = shared.get(int(index[where]), Fraction(0)) + part
    for where, part in shared.items():
        charged[where] = float(int(charged[where]) + part)
