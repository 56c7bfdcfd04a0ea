"""From three label maps to one record per instance: the instance-aware IoU of SPEC 1.

Pixels are looked at once, to cut the maps into runs. The runs are connected to components and
counted by what they lie on; the rest is arithmetic on these few counts.

Shapes: H, W image height and width; C number of classes, background included; R number of runs;
K number of predicted components, background as number 0 included; E number of distinct meetings
of a component with an instance and a label; T number of instances, background as first included.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from d2_smallobj.metrics import validation
from d2_smallobj.metrics.charging import Cells, charge, pixel_sums
from d2_smallobj.metrics.components import class_components
from d2_smallobj.metrics.records import BACKGROUND, BlobTable, InstanceTable
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
        confusion: int64 (C, C), rows ground truth, columns prediction; semantic ignore left out
            (instance void is not: mIoU knows no instances).
        table: one record per instance that has a valid pixel, and one for the background.
        blobs: the predicted components of foreground classes that overlap no instance of their
            class and have a valid pixel.
    """

    confusion: np.ndarray
    table: InstanceTable
    blobs: BlobTable


def match_image(
    prediction: np.ndarray,
    semantic: np.ndarray,
    instances: np.ndarray | None = None,
    *,
    num_classes: int,
    ignore_label: int = 255,
    mode: str = "exact",
    image_id: str = "",
) -> ImageMatch:
    """Match the predicted components of one image with its ground-truth instances.

    Components P_j of each class are 8-connected and found on the raw prediction; all counts then
    leave out pixels where ``semantic == ignore_label`` or ``instances == 255``. With
    ``n_jt = |P_j ∩ G_t|`` for instances of the component's class, instance t is charged
    ``Σ_j |P_j| n_jt / Σ_s n_js`` and has ``IoU_t = Σ_j n_jt / (|G_t| + charged_t − Σ_j n_jt)``.

    Args:
        prediction: (H, W) integers in 0..C-1; pixels that ``semantic`` ignores may hold anything.
        semantic: (H, W) integers in 0..C-1, or ``ignore_label``.
        instances: (H, W) integers, 0 = none, 255 = void, any other id >= 1 (gaps allowed);
            ``None``: the 8-connected components of ``semantic``, class by class, are the
            instances, numbered as :func:`component_instances` does.
        num_classes: C, background included.
        ignore_label: semantic value that is left out.
        mode: ``"exact"``, or ``"official"`` for the authors' code: components are filled outer
            contours (a blob in another blob's hole belongs to it), and the share of pixels
            beyond the overlap, ``a_jt − n_jt``, is cut to an integer (computed as there:
            the double-precision product ``n_jt / Σ_s n_js · (|P_j| − Σ_s n_js)``).
        image_id: name that the records carry.

    Returns:
        The image's confusion matrix, records and blobs.

    Raises:
        TypeError: if a map is not an integer array.
        ValueError: if shapes differ, a value is out of range, ``mode`` is unknown, or an
            instance lies on background or on two classes.
    """
    look_up_option("mode", mode, MODES)
    validation.check_classes(num_classes, ignore_label)
    validation.check_maps(prediction=prediction, semantic=semantic, instances=instances)
    maps = (prediction, semantic) if instances is None else (prediction, semantic, instances)
    runs = find_runs(*maps)
    guess, label = runs.sample(prediction), runs.sample(semantic)
    wrong = _out_of_range(guess, num_classes) | _out_of_range(label, num_classes)
    if (wrong & (label != ignore_label)).any():
        kept = semantic != ignore_label
        validation.raise_for_values("semantic", semantic[kept], num_classes)
        validation.raise_for_values("prediction", prediction[kept], num_classes)
    if instances is None:
        owner = _component_ids(runs, label, ignore_label)
    else:
        owner = runs.sample(instances)
        if owner.min(initial=0) < 0:
            validation.raise_for_values("instances", instances, np.iinfo(np.int64).max)
    component, class_of = _predicted(runs, guess, prediction, num_classes, mode)
    cells = _count(component, owner, label, runs.length)
    valid = cells.label != ignore_label
    confusion = _confusion(cells, valid, class_of, num_classes)
    truth, slot = _read_instances(cells, valid)
    columns, blobs = charge(cells, valid, class_of, truth, slot, cut=mode == "official")
    # Background without a counted pixel is no record.
    rows = columns if truth["pixels"][0] else {name: part[1:] for name, part in columns.items()}
    for part in (rows, blobs):
        part["image_id"] = np.full(len(part["category_id"]), image_id)
        part["image_area"] = np.full(len(part["category_id"]), semantic.size)
    return ImageMatch(confusion, InstanceTable(**rows), BlobTable(**blobs))


def component_instances(semantic: np.ndarray, *, ignore_label: int = 255) -> np.ndarray:
    """Number the instances that stand in for missing annotation: components [P §2.2].

    Args:
        semantic: (H, W) integers, 0 = background.
        ignore_label: semantic value that is left out.

    Returns:
        int64 (H, W), 0 on background and ignored pixels, elsewhere the ids that
        :func:`match_image` gives records without an instance map: from 1, ascending with the
        class, then with the first pixel in raster order; 255, which means void, is passed over.

    Raises:
        TypeError: if ``semantic`` is not an integer array.
        ValueError: if it is not two-dimensional.
    """
    validation.check_maps(semantic=semantic)
    runs = find_runs(semantic)
    ids = _component_ids(runs, runs.sample(semantic), ignore_label)
    return np.repeat(ids, runs.length).reshape(semantic.shape)


def _out_of_range(values: np.ndarray, limit: int) -> np.ndarray:
    """Where int64 ``values`` are not in 0..limit-1; negative ones are large without their sign."""
    return values.view(np.uint64) >= limit


def _component_ids(runs: Runs, label: np.ndarray, ignore_label: int) -> np.ndarray:
    """Instance ids of the runs (R,) from the components of the semantic map."""
    wanted = (label != BACKGROUND) & (label != ignore_label)
    number, class_of = run_components(runs, label, wanted)
    # The first run of a component holds its first pixel. Of several values the last one written
    # stays, so they are written backwards.
    first = np.zeros(len(class_of) + 1, np.int64)
    first[number[::-1]] = np.arange(len(number))[::-1]
    rank = np.zeros(len(class_of) + 1, np.int64)
    rank[np.lexsort((first[1:], class_of)) + 1] = np.arange(1, len(class_of) + 1)
    ids = rank[number]
    return ids + (ids >= VOID_INSTANCE)


def _predicted(
    runs: Runs, guess: np.ndarray, prediction: np.ndarray, num_classes: int, mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Number the predicted components.

    Returns:
        int64 (R,), component of each run; int64 (K,), class of each component. Number 0 is the
        background, together with what is no class below ignored pixels.
    """
    foreground = (guess != BACKGROUND) & ~_out_of_range(guess, num_classes)
    if mode == "exact":
        component, class_of = run_components(runs, guess, foreground)
    else:
        present = np.unique(guess[foreground]).tolist()
        parts = class_components(prediction, skip=(), only=present, filled=True)
        component, class_of = runs.sample(parts.map), parts.class_of
    return component, np.append(BACKGROUND, class_of)


def _count(
    component: np.ndarray, owner: np.ndarray, label: np.ndarray, length: np.ndarray
) -> Cells:
    """Count the pixels of runs (R,) by component, instance and label."""
    # Key and length share a number, as sorting numbers is faster than finding their order.
    bits = int(length.max(initial=0)).bit_length()
    labels, owners = int(label.max(initial=0)) + 1, int(owner.max(initial=0)) + 1
    names = None
    if (int(component.max(initial=0)) + 1) * owners * labels > _LARGEST_NUMBER >> bits:
        names, owner = np.unique(owner, return_inverse=True)
        owners = len(names)
    numbers = (((component * owners + owner) * labels + label) << bits) | length
    numbers.sort()
    key = numbers >> bits
    first = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    heads = first.nonzero()[0]
    count = np.add.reduceat(numbers & ((1 << bits) - 1), heads) if len(heads) else heads
    rest, label = np.divmod(key.take(heads), labels)
    component, owner = np.divmod(rest, owners)
    return Cells(component, owner if names is None else names[owner], label, count)


def _confusion(
    cells: Cells, valid: np.ndarray, class_of: np.ndarray, num_classes: int
) -> np.ndarray:
    """Confusion matrix (C, C) of the valid cells."""
    place = cells.label * num_classes + class_of[cells.component]
    counts = pixel_sums(place[valid], cells.count[valid], num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _read_instances(cells: Cells, valid: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Find the instances that have a valid pixel, background first.

    Returns:
        Their columns instance_id, category_id, area and pixels, int64 (T,) each; and int64 (E,),
        which of them each cell belongs to, T for none.
    """
    owner, label, count = cells.owner, cells.label, cells.count
    real = (owner != 0) & (owner != VOID_INSTANCE)
    ids = np.append(0, np.unique(owner[real & valid]))
    total = len(ids)
    # Ids without a valid pixel are none of these; -1 keeps those beyond the last from a match.
    slot = ids.searchsorted(owner)
    known = (np.append(ids, -1)[slot] == owner) & (real | (label == BACKGROUND))
    slot = np.where(known, slot, total)
    fixed = (real & valid).nonzero()[0]
    category = np.zeros(total, np.int64)
    category[slot[fixed]] = label[fixed]
    if (label[fixed] == BACKGROUND).any() or (category[slot[fixed]] != label[fixed]).any():
        validation.raise_for_classes(owner[fixed], label[fixed], count[fixed])
    area = pixel_sums(slot, count, total + 1)[:total]
    # The void of the instance map belongs to the background's area, as it does to the others'.
    area[0] = count[label == BACKGROUND].sum()
    pixels = pixel_sums(slot[valid], count[valid], total + 1)[:total]
    return {"instance_id": ids, "category_id": category, "area": area, "pixels": pixels}, slot
