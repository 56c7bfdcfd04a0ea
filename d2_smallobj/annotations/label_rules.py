"""Translate stored label values to classes, and make instance maps fit semantic maps.

Most data sets store class ids and need no rule. Cityscapes stores the ids of its 34 labels, and a
binary task keeps one class of a data set that has more. Legend: H, W height and width of a map.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.annotations.coco import IGNORE_LABEL, Annotation, instance_id
from d2_smallobj.utils.messages import listed

VOID = 255
"""Instance id of pixels whose instance is unknown."""
_UNKNOWN = -1
_LARGEST_LABEL = 65535
_NEGLIGIBLE = 0.01
"""Share of an image below which even a complete disagreement may be an annotator's slip."""


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """Translates semantic and instance maps when they are read; picklable.

    Attributes:
        classes: class of every stored value from 0 on: 0 background, 1.., 255 ignored. Values
            beyond its end are no labels of the data set.
        groups_below: stored instance values below it name a label, not an instance: regions of
            objects that are not separated, void (255) in the instance map. 0: there are none.
    """

    classes: tuple[int, ...]
    groups_below: int = 0

    def __post_init__(self) -> None:
        wrong = [value for value in self.classes if not 0 <= value <= IGNORE_LABEL]
        if wrong:
            raise ValueError(f"classes: must be in 0..{IGNORE_LABEL}, got {wrong[:10]}")

    def semantic(self, stored: np.ndarray, path: object) -> np.ndarray:
        """Return the classes, uint8 (H, W), of a stored semantic map; 255 stays ignored.

        Raises:
            ValueError: a value has no class; names the file and up to ten values.
        """
        table = np.full(max(int(stored.max(initial=0)), IGNORE_LABEL) + 1, -1, np.int16)
        table[: len(self.classes)] = self.classes
        table[IGNORE_LABEL] = IGNORE_LABEL
        classes = table[stored]
        if (classes < 0).any():
            raise ValueError(
                f"{path}: label values must be 0..{len(self.classes) - 1} or {IGNORE_LABEL}, "
                f"found {listed(np.unique(stored[classes < 0]))}"
            )
        return classes.astype(np.uint8)

    def instances(self, stored: np.ndarray, semantic: np.ndarray) -> np.ndarray:
        """Return the int32 instance map (H, W) that fits the map of :meth:`semantic`.

        It is 0 on background, 255 on ignored pixels and on groups, and has the stored ids on
        objects.
        """
        objects = (semantic != 0) & (semantic != IGNORE_LABEL)
        identities = np.where(objects, stored, 0).astype(np.int32)
        void = semantic == IGNORE_LABEL
        if self.groups_below:
            void |= objects & (identities < self.groups_below)
        identities[void] = IGNORE_LABEL
        return identities

    def only(self, class_id: int | None) -> LabelRule:
        """Return the rule of a binary task: one class (``None``: any) becomes 1, others 0."""
        table = {0: 0, IGNORE_LABEL: IGNORE_LABEL}
        kept = 1 if class_id is None else 0
        if class_id is not None:
            table[class_id] = 1
        return dataclasses.replace(self, classes=tuple(table.get(c, kept) for c in self.classes))


def identity_rule(num_classes: int) -> LabelRule:
    """The rule of files that store class ids 0..num_classes-1."""
    return LabelRule(tuple(range(num_classes)))


def unique_by_runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``np.unique`` with inverse and counts, fast where neighbours are mostly equal.

    For integers (N,): the ascending values, the index of each element among them, int64 (N,), and
    the counts, int64.
    """
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]][: len(values)])
    lengths = np.diff(np.r_[starts, len(values)])
    found, place = np.unique(values[starts], return_inverse=True)
    counts = np.bincount(place, lengths, minlength=len(found)).astype(np.int64)
    return found, np.repeat(place, lengths), counts


def thing_pixels(semantic: np.ndarray, stuff: Collection[int], ignore_label: int) -> np.ndarray:
    """Return the thing pixels of a semantic map: bool (H, W)."""
    table = np.ones(max([int(semantic.max(initial=0)), ignore_label, *stuff]) + 1, bool)
    table[[*stuff, ignore_label]] = False
    return table[semantic]


def without_stuff(
    semantic: np.ndarray,
    instances: np.ndarray | None,
    stuff: Collection[int],
    ignore_label: int,
) -> np.ndarray | None:
    """Remove the instances (0 = none, 255 = void) that lie on stuff alone, ignored pixels aside.

    An instance that lies on other classes, too, contradicts the semantic map and is left for the
    metric to refuse. The same array is returned if nothing is removed or the maps are malformed.
    """
    if instances is None or not len(stuff) or not _are_maps(semantic, instances):
        return instances
    marked = (instances != 0) & (instances != VOID)
    on_stuff = ~thing_pixels(semantic, stuff, ignore_label) & (semantic != ignore_label) & marked
    if not on_stuff.any():
        return instances
    elsewhere = marked & ~on_stuff & (semantic != ignore_label)
    candidates, others = (unique_by_runs(instances[part])[0] for part in (on_stuff, elsewhere))
    removed = np.setdiff1d(candidates, others)
    return np.where(np.isin(instances, removed), 0, instances)


def _are_maps(semantic: np.ndarray, instances: np.ndarray) -> bool:
    """Return whether two maps of a user's reader are valid; the metric reports invalid ones."""
    maps = (semantic, instances)
    if not all(isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" for labels in maps):
        return False
    known = semantic.min(initial=0) >= 0 and semantic.max(initial=0) <= _LARGEST_LABEL
    return known and semantic.shape == instances.shape


def fit_instances(
    semantic: np.ndarray,
    instances: np.ndarray,
    classes: Mapping[int, int] | None = None,
    *,
    stuff: Collection[int],
    ignore_label: int,
    source: str,
) -> np.ndarray:
    """Make an instance map agree with a semantic map that was annotated separately.

    Pixels of an instance whose label is neither the instance's class nor ignored become void.
    Instances of a stuff class, or without a pixel of their class, are removed.

    Args:
        semantic: (H, W) labels 0..C-1 and ``ignore_label``.
        instances: (H, W) ids, 0 = none, 255 = void.
        classes: class of every instance; ``None``: its most frequent class that is no stuff.
        stuff: classes that have no instances.
        ignore_label: label of ignored pixels.
        source: the file or files, for messages.

    Returns:
        int32 (H, W): 0 = none, ids as they were, 255 = void.

    Raises:
        ValueError: the maps differ in size, most pixels of the instances lie on other classes than
            theirs, or an id has no class.
    """
    if semantic.shape != instances.shape:
        raise ValueError(
            f"{source}: the semantic map is {size_text(semantic.shape)} (height x width), the "
            f"instance map {size_text(instances.shape)}; do the files belong to the same image?"
        )
    fitted = instances.astype(np.int32)
    inside = (fitted != 0) & (fitted != VOID)
    if not inside.any():
        return fitted
    base = max(int(semantic.max()), ignore_label) + 1
    pairs = fitted[inside].astype(np.int64) * base + semantic[inside]
    pairs, place, pixels = unique_by_runs(pairs)
    ids, labels = pairs // base, pairs % base
    ignored = labels == ignore_label
    own = _own_classes(ids, labels, pixels, ignored, classes, stuff, source)
    no_instance = np.isin(own, list(stuff))
    agree = labels == own
    _check_agreement(pixels, agree & ~no_instance, ~ignored & ~no_instance, inside.size, source)
    kept = np.isin(ids, ids[agree & ~no_instance])
    values = np.where(agree | ignored, np.where(kept, ids, 0), VOID)
    values[no_instance] = 0
    fitted[inside] = values[place]
    return fitted


def _own_classes(
    ids: np.ndarray,
    labels: np.ndarray,
    pixels: np.ndarray,
    ignored: np.ndarray,
    classes: Mapping[int, int] | None,
    stuff: Collection[int],
    source: str,
) -> np.ndarray:
    """Class of the instance of every pair of instance and label."""
    if classes is not None:
        unknown = sorted(set(ids.tolist()) - set(classes))
        if unknown:
            raise ValueError(f"{source}: instance(s) {unknown[:10]} are of no known class")
        return np.array([classes[identity] for identity in ids.tolist()], np.int64)
    likely = np.where(ignored | np.isin(labels, list(stuff)), 0, pixels)
    # The last one of each instance in this order covers most of it; the lowest class of equals.
    order = np.lexsort((-labels, likely, ids))
    last = np.flatnonzero(np.r_[np.diff(ids[order]) != 0, True])
    chosen = np.where(likely[order][last] > 0, labels[order][last], _UNKNOWN)
    return chosen[np.searchsorted(ids[order][last], ids)]


def _check_agreement(
    pixels: np.ndarray, agree: np.ndarray, valid: np.ndarray, total: int, source: str
) -> None:
    """Refuse an instance map that lies on other classes than its own."""
    own, all_pixels = int(pixels[agree].sum()), int(pixels[valid].sum())
    if 2 * own < all_pixels and all_pixels - own > _NEGLIGIBLE * total:
        raise ValueError(
            f"{source}: only {own} of the {all_pixels} pixels of its instances lie on their own "
            "class in the semantic map; do the files belong to the same image?"
        )


def annotation_classes(annotations: Sequence[Annotation]) -> dict[int, int]:
    """Class of every instance id that :func:`.coco.paint` gives."""
    instances = [annotation for annotation in annotations if not annotation.crowd]
    return {instance_id(rank): a.class_id for rank, a in enumerate(instances, start=1)}


def dict_annotations(
    entries: Sequence[Mapping[str, Any]], classes: Sequence[int | None], source: str
) -> tuple[Annotation, ...]:
    """Read the ``annotations`` of a detectron2 dict: category_id, segmentation and iscrowd.

    ``classes`` gives the class id by category id; categories of class ``None`` are left out. Raises
    ValueError, beginning with ``source``, for an entry without a mask or with another category.
    """
    found = []
    for number, entry in enumerate(entries):
        category = entry.get("category_id")
        if not isinstance(category, (int, np.integer)) or not 0 <= category < len(classes):
            raise ValueError(
                f"{source}: annotation {number} has category_id {category!r}, but thing_classes "
                f"has 0..{len(classes) - 1}"
            )
        if "segmentation" not in entry:
            raise ValueError(
                f"{source}: annotation {number} has no 'segmentation', which others have"
            )
        class_id = classes[int(category)]
        if class_id is not None:
            crowd, mask = bool(entry.get("iscrowd", 0)), entry["segmentation"]
            found.append(Annotation(number, int(category), class_id, crowd, mask))
    return tuple(found)


def size_text(shape: Sequence[int]) -> str:
    """Height and width for messages."""
    return " x ".join(map(str, shape))


def check_label_values(
    labels: np.ndarray, num_classes: int, ignore_label: int, path: str | os.PathLike[str]
) -> None:
    """Check that a semantic map holds nothing but class indices and the ignore label.

    Raises:
        ValueError: other values than 0..num_classes-1 and ``ignore_label`` occur; names the file,
            the first ten of them and their number of pixels.
    """
    bad = (labels < 0) | (labels >= num_classes)
    bad &= labels != ignore_label
    if not bad.any():
        return
    raise ValueError(
        f"{path}: label values must be 0..{num_classes - 1} or {ignore_label} (ignored); "
        f"found {listed(np.unique(labels[bad]))} in {np.count_nonzero(bad)} of {labels.size} pixels"
    )
