"""Sensitivity of mIoU and IA-mIoU to small and to large objects (paper, Fig. 4 and 5).

The paper gives these experiments as drawings only. Here they are exact, and run on drawn scenes
or on the ground truth of any data set: nothing is predicted by a model.

Legend: H, W height and width of a map; N points of a curve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from d2_smallobj.metrics import (
    COCO_SIZE_BINS,
    InstanceTable,
    PixelTable,
    match_image,
    summarize,
)
from d2_smallobj.report.labelled_images import IGNORE, LabelledImage
from d2_smallobj.report.pairs import Pair, class_index, growth_order, perfect_match

CORNER_CASES: Mapping[str, tuple[str, ...]] = {
    "A": ("large",),
    "B": ("small",),
    "C": ("small", "large"),
    "D": ("large", "small"),
}
"""Which instance the prediction fills, one after the other."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Figures along an experiment.

    Attributes:
        name: of the case or of the class.
        columns: what was done, by column name, each of N values.
        figures: percent, by figure name, each of N values; NaN where undefined. ``IoU`` and
            ``IA-IoU`` (``_S``, ...) are those of the one class the experiment is about.
    """

    name: str
    columns: Mapping[str, Sequence[object]]
    figures: Mapping[str, np.ndarray]


def corner_case(pair: Pair, stages: Sequence[str], *, steps: int = 20, name: str = "") -> Curve:
    """Let the prediction grow over the instances of a pair, one stage after the other.

    Every step of a stage fills the same number of pixels, so the IoU of the instance rises
    evenly. What one stage has filled stays filled in the next.

    Args:
        pair: the two instances.
        stages: ``"small"`` or ``"large"``, in the order in which they are filled.
        steps: steps of one stage, >= 1.
        name: of the curve.

    Returns:
        ``steps * len(stages) + 1`` points; columns ``stage``, ``small`` and ``large`` (percent
        filled), first point the empty prediction.

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    numbers = {"small": 1, "large": 2}
    orders = {key: growth_order(pair.instances == number) for key, number in numbers.items()}
    truth = np.where(pair.instances == IGNORE, IGNORE, pair.instances > 0).astype(np.uint8)
    prediction = np.zeros_like(truth)
    filled = {"small": 0.0, "large": 0.0}
    columns: dict[str, list[object]] = {"stage": [], "small": [], "large": []}
    points = []
    for position in range(steps * len(stages) + 1):
        stage = stages[max(position - 1, 0) // steps]
        if position:
            share = (position - 1) % steps + 1
            order = orders[stage]
            prediction.ravel()[order[: share * len(order) // steps]] = 1
            filled[stage] = 100.0 * share / steps
        for key, value in (("stage", stage), *filled.items()):
            columns[key].append(value)
        match = match_image(prediction, truth, pair.instances, num_classes=2)
        names = ["background", pair.class_name]
        points.append(_figures(match.table, match.confusion, names, 1))
    return Curve(name, columns, _stack(points))


def corner_cases(pair: Pair, *, steps: int = 20) -> list[Curve]:
    """The four cases of Fig. 4, A to D; see :data:`CORNER_CASES` and :func:`corner_case`."""
    return [
        corner_case(pair, stages, steps=steps, name=name) for name, stages in CORNER_CASES.items()
    ]


def removal_curve(
    images: Sequence[LabelledImage],
    class_names: Sequence[str],
    class_name: str,
    *,
    points: int = 200,
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
) -> Curve:
    """Start from the perfect prediction and delete a class's instances, the smallest first.

    Deleted pixels become background; ignored pixels are background in the prediction from the
    start. Other classes stay perfect.

    Args:
        images: the data set; each is read once, and again whenever it loses an instance.
        class_names: background first.
        class_name: the class to remove.
        points: record at most this many points besides the first, evenly spaced; >= 1.
        size_bins: see :meth:`d2_smallobj.metrics.records.InstanceTable.size_of`.

    Returns:
        The curve, first point before any deletion; columns ``removed`` (number of instances),
        ``area`` (pixels of the one deleted last, 0 at first) and ``size`` (its bin).

    Raises:
        ValueError: if the class is unknown or has no instance, or ``points`` is below 1.
    """
    category = class_index(class_name, class_names)
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    truth = _Eraser(images, category, len(class_names))
    queue = _smallest_first(truth.tables, category, size_bins)
    if not queue:
        raise ValueError(f"class {class_name!r} has no instance in these {len(images)} images")
    stops = np.unique(np.linspace(0, len(queue), min(points, len(queue)) + 1).round().astype(int))
    columns: dict[str, list[object]] = {"removed": [], "area": [], "size": []}
    found, done = [], 0
    for stop in stops.tolist():
        truth.erase([(where, identity) for _, where, identity, _ in queue[done:stop]])
        done = stop
        columns["removed"].append(stop)
        columns["area"].append(queue[stop - 1][0] if stop else 0)
        columns["size"].append(queue[stop - 1][3] if stop else "")
        table = InstanceTable.concatenate(truth.tables)
        found.append(_figures(table, truth.confusion, class_names, category, size_bins))
    return Curve(class_name, columns, _stack(found))


class _Eraser:
    """A perfect prediction that loses instances; keeps its records and confusion matrix."""

    def __init__(self, images: Sequence[LabelledImage], category: int, num_classes: int) -> None:
        self._images, self._category, self._num_classes = images, category, num_classes
        self._gone: dict[int, list[int]] = {}
        self.tables: list[InstanceTable] = []
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        for image in images:
            table, confusion = perfect_match(*image.load(), num_classes)
            self.tables.append(table)
            self.confusion += confusion

    def erase(self, instances: Sequence[tuple[int, int]]) -> None:
        """Delete instances, given as (position of the image, instance id)."""
        changed: dict[int, list[int]] = {}
        for where, identity in instances:
            changed.setdefault(where, []).append(identity)
        for where, ids in changed.items():
            maps = self._images[where].load()
            before = self._gone.get(where, [])
            self._gone[where] = before + ids
            old, new = (
                perfect_match(*maps, self._num_classes, self._category, without)
                for without in (before, self._gone[where])
            )
            self.tables[where] = new[0]
            self.confusion += new[1] - old[1]


def _smallest_first(
    tables: Sequence[InstanceTable], category: int, size_bins: Mapping[str, float]
) -> list[tuple[int, int, int, str]]:
    """(area, position of the image, instance id, size) of a class's instances, ascending."""
    names = [*size_bins, ""]
    queue = []
    for where, table in enumerate(tables):
        chosen = table.select(table.category_id == category)
        sizes = [names[position] for position in chosen.size_of(size_bins).tolist()]
        for area, identity, size in zip(chosen.area.tolist(), chosen.instance_id.tolist(), sizes):
            queue.append((area, where, identity, size))
    return sorted(queue)


def _figures(
    table: InstanceTable,
    confusion: np.ndarray,
    class_names: Sequence[str],
    category: int,
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
) -> dict[str, float]:
    """The class's own figures, then those over all classes."""
    pixels = PixelTable.from_confusion(confusion)
    figures = summarize(table, pixels, class_names, size_bins=size_bins)
    name = class_names[category]
    sizes = ["", *(f"_{size}" for size in size_bins)]
    own = {"IoU": figures[f"IoU-{name}"]}
    own |= {f"IA-IoU{size}": figures[f"IA-IoU{size}-{name}"] for size in sizes}
    over_all = ["mIoU", "IA-mIoU", "IA-mIoU_fg", *(f"IA-mIoU{size}" for size in sizes[1:])]
    return own | {key: figures[key] for key in over_all}


def _stack(points: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Figures of all points, float64 (N,) by name."""
    return {key: np.array([point[key] for point in points]) for key in points[0]}
