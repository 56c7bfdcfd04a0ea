"""Sensitivity of mIoU and IA-mIoU to small and to large objects (paper, Fig. 4 and 5).

The paper gives these experiments as drawings only. Here they are exact, on drawn scenes or on the
ground truth of any data set; no model predicts anything.

Legend: H, W height and width of a map; N points of a curve.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2_smallobj.metrics import COCO_SIZE_BINS, InstanceTable, PixelTable, match_image, summarize
from d2_smallobj.report.drawing import hide_frame, new_figure, save_figure
from d2_smallobj.report.labelled_images import (
    IGNORE,
    PAIR_IDS,
    ImpossibleExperimentError,
    LabelledImage,
    Pair,
    class_index,
    growth_order,
    perfect_match,
)
from d2_smallobj.utils.files import write_csv
from d2_smallobj.utils.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CORNER_CASES: Mapping[str, tuple[str, ...]] = {
    "A": ("large",),
    "B": ("small",),
    "C": ("small", "large"),
    "D": ("large", "small"),
}
"""Instances that the prediction fills, one after the other, by case."""
_FIGURES = (
    ("IoU", "#6b7280", "IoU, pixels pooled"),
    ("IA-IoU", "#d9480f", "IA-IoU, by instance"),
)
_SIZE_COLORS = ("#5c7cfa", "#22b8cf", "#51cf66")
_DASH = "#e03131"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Figures along an experiment.

    Attributes:
        name: of the case or of the class.
        columns: what was done, by column name, N values each.
        figures: percent, by figure name, N values each; NaN where undefined. ``IoU`` and
            ``IA-IoU`` (``_S``, ...) are those of the class of the experiment.
    """

    name: str
    columns: Mapping[str, Sequence[object]]
    figures: Mapping[str, np.ndarray]


def corner_cases(pair: Pair, *, steps: int = 20) -> list[Curve]:
    """Let the prediction grow over the instances of a pair, in the four ways of Fig. 4.

    Every step fills the same number of pixels, so that the IoU of the instance rises evenly.

    Args:
        pair: the two instances.
        steps: steps of one instance, >= 1.

    Returns:
        The cases of :data:`CORNER_CASES`, with ``steps`` points for every instance that is filled,
        after one of the empty prediction; columns ``stage``, ``small`` and ``large`` (percent
        filled).

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return [_corner_case(pair, *case, steps) for case in CORNER_CASES.items()]


def _corner_case(pair: Pair, name: str, stages: Sequence[str], steps: int) -> Curve:
    """One case: its stages, one after the other."""
    orders = {key: growth_order(pair.instances == place) for key, place in PAIR_IDS.items()}
    truth = np.where(pair.instances == IGNORE, IGNORE, pair.instances > 0).astype(np.uint8)
    prediction = np.zeros_like(truth)
    filled = {"small": 0.0, "large": 0.0}
    done, points = [], []
    for position in range(steps * len(stages) + 1):
        stage = stages[max(position - 1, 0) // steps]
        if position:
            share = (position - 1) % steps + 1
            order = orders[stage]
            prediction.ravel()[order[: share * len(order) // steps]] = 1
            filled[stage] = 100.0 * share / steps
        done.append({"stage": stage, **filled})
        match = match_image(prediction, truth, pair.instances, num_classes=2)
        points.append(_figures(match.table, match.confusion, ["", pair.class_name], 1))
    columns = {key: [one[key] for one in done] for key in done[0]}
    return Curve(name, columns, _stack(points))


def removal_curve(
    images: Sequence[LabelledImage],
    class_names: Sequence[str],
    class_name: str,
    *,
    points: int = 200,
    size_bins: Mapping[str, float] = COCO_SIZE_BINS,
) -> Curve:
    """Delete a class's instances from the perfect prediction, the smallest first.

    Deleted pixels become background, as ignored ones are from the start; other classes stay
    perfect.

    Args:
        images: the data set; each is read once, and again whenever it loses an instance.
        class_names: background first.
        class_name: the class to remove.
        points: record at most this many points besides the first, evenly spaced; >= 1.
        size_bins: see :meth:`d2_smallobj.metrics.records.InstanceTable.size_of`.

    Returns:
        The curve, its first point before any deletion; columns ``removed`` (number of instances),
        ``area`` (pixels of the one deleted last, 0 at first) and ``size`` (its bin).

    Raises:
        ValueError: if the class is unknown, or ``points`` is below 1; ImpossibleExperimentError:
            the class has no instance.
    """
    category = class_index(class_name, class_names)
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    truth = _Eraser(images, category, len(class_names))
    queue = _smallest_first(truth.tables, category, size_bins)
    if not queue:
        raise ImpossibleExperimentError(
            f"class {class_name!r} has no instance in these {len(images)} images"
        )
    evenly = np.linspace(0, len(queue), min(points, len(queue)) + 1)
    stops = np.unique(evenly.round().astype(int)).tolist()
    found = []
    for start, stop in zip([0, *stops], stops):
        truth.erase([(where, identity) for _, where, identity, _ in queue[start:stop]])
        table = InstanceTable.concatenate(truth.tables)
        found.append(_figures(table, truth.confusion, class_names, category, size_bins))
    last = [queue[stop - 1] if stop else (0, 0, 0, "") for stop in stops]
    columns = {"removed": stops, "area": [x[0] for x in last], "size": [x[3] for x in last]}
    return Curve(class_name, columns, _stack(found))


class _Eraser:
    """A perfect prediction that loses instances, with its records and confusion matrix."""

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
            _, old = perfect_match(*maps, self._num_classes, self._category, before)
            table, new = perfect_match(*maps, self._num_classes, self._category, before + ids)
            self.tables[where] = table
            self.confusion += new - old


def _smallest_first(
    tables: Sequence[InstanceTable], category: int, size_bins: Mapping[str, float]
) -> list[tuple[int, int, int, str]]:
    """(area, position of the image, instance id, size) of a class's instances, ascending."""
    names, queue = [*size_bins, ""], []
    for where, table in enumerate(tables):
        chosen = table.select(table.category_id == category)
        columns = chosen.area, chosen.instance_id, chosen.size_of(size_bins)
        for area, identity, size in zip(*(column.tolist() for column in columns)):
            queue.append((area, where, identity, names[size]))
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
    sizes = ["", *(f"_{size}" for size in size_bins)]
    own = ["IoU", *(f"IA-IoU{size}" for size in sizes)]
    over_all = ["mIoU", "IA-mIoU", "IA-mIoU_fg", *(f"IA-mIoU{size}" for size in sizes[1:])]
    found = {key: figures[f"{key}-{class_names[category]}"] for key in own}
    return found | {key: figures[key] for key in over_all}


def _stack(points: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Figures of all points, float64 (N,) by name."""
    return {key: np.array([point[key] for point in points]) for key in points[0]}


def write_curves(path: str | os.PathLike[str], curves: Sequence[Curve]) -> None:
    """Write curves as one CSV: name, what was done, figures in percent (undefined: empty)."""
    rows = [
        [curve.name, *(number(x, ".6f", "") if isinstance(x, float) else x for x in row)]
        for curve in curves
        for row in zip(*curve.columns.values(), *curve.figures.values())
    ]
    write_csv(path, ["curve", *curves[0].columns, *curves[0].figures], rows)


def draw_corner_cases(path: str | os.PathLike[str], pair: Pair, curves: Sequence[Curve]) -> None:
    """Draw the :func:`corner_cases` side by side as PNG: growing prediction above, figures below.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = new_figure(2.5 * len(curves), 4.3)
    heights = {"height_ratios": [1, 1.25]}
    axes = figure.subplots(2, len(curves), squeeze=False, sharey="row", gridspec_kw=heights)
    for curve, scene, plot in zip(curves, axes[0], axes[1]):
        stages = CORNER_CASES[curve.name]
        scene.imshow(_growth(pair, stages), interpolation="nearest")
        scene.set_axis_off()
        scene.set_title(f"{curve.name}: {', then '.join(stages)}", fontsize=10)
        x = np.linspace(0, len(stages), len(curve.figures["IoU"]))
        _plot_figures(plot, x, curve, width=2)
        for edge in range(1, len(stages)):
            plot.axvline(edge, color=_DASH, ls="--", lw=1)
        middles = [0, *(k + 0.5 for k in range(len(stages))), len(stages)]
        plot.set_xticks(middles, ["none", *stages, "full"], fontsize=8)
        plot.set_xlim(0, len(stages))
        _percent_axis(plot)
    axes[1][0].set_ylabel(f"{pair.class_name}, percent", fontsize=9)
    axes[1][0].legend(fontsize=7.5, loc="upper left", frameon=False)
    sizes = "{small} px and of {large} px; the prediction grows from bright to dark"
    title = f"{pair.image_id}: {pair.class_name} of {sizes.format(**pair.areas)}"
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path)


def _growth(pair: Pair, stages: Sequence[str]) -> np.ndarray:
    """The order in which the prediction grows, as colours: float (H, W, 3), cut to the pair."""
    picture = np.full((*pair.instances.shape, 3), 0.965)
    picture[pair.instances == 255] = 1.0
    flat = picture.reshape(-1, 3)
    start, end = np.array([1.0, 0.87, 0.75]), np.array([0.75, 0.22, 0.03])
    for name, place in PAIR_IDS.items():
        mask = pair.instances == place
        if name not in stages:
            picture[mask] = 0.75
            continue
        order = growth_order(mask)
        # Ten bands show the growth better than a smooth ramp.
        share = np.floor(np.linspace(0, 10, len(order), endpoint=False))[:, None] / 9
        done = (stages.index(name) + share) / len(stages)
        flat[order] = start + done * (end - start)
    rows, columns = np.nonzero((pair.instances == 1) | (pair.instances == 2))
    top, left = max(rows.min() - 12, 0), max(columns.min() - 12, 0)
    return picture[top : rows.max() + 13, left : columns.max() + 13]


def draw_removal(path: str | os.PathLike[str], curve: Curve) -> None:
    """Draw a :func:`removal_curve` as PNG, with red dashes between the sizes.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = new_figure(6.4, 3.7)
    axis = figure.subplots()
    removed = np.array(curve.columns["removed"])
    by_size = [key for key in curve.figures if key.startswith("IA-IoU_")]
    for key, color in zip(by_size, _SIZE_COLORS):
        if not np.all(np.isnan(curve.figures[key])):
            axis.plot(removed, curve.figures[key], color=color, lw=1, label=key)
    _plot_figures(axis, removed, curve, width=2.2)
    _mark_sizes(axis, removed, curve.columns["size"])
    axis.set_xlim(0, removed[-1])
    axis.locator_params("x", integer=True)
    axis.set_xlabel("instances deleted, the smallest first", fontsize=9)
    axis.set_ylabel(f"{curve.name}, percent", fontsize=9)
    _percent_axis(axis)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], fontsize=8, loc="lower left", frameon=False)
    save_figure(figure, path)


def _plot_figures(axis: Axes, x: np.ndarray, curve: Curve, *, width: float) -> None:
    """Plot IoU and IA-IoU of the experiment's class."""
    for key, color, label in _FIGURES:
        axis.plot(x, curve.figures[key], color=color, lw=width, label=label)


def _mark_sizes(axis: Axes, removed: np.ndarray, sizes: Sequence[object]) -> None:
    """Draw a red dash where one size ends, and the name of each size above its part."""
    start = 0.0
    for position in range(1, len(sizes) + 1):
        last = position == len(sizes)
        if not last and (sizes[position] == sizes[position - 1] or not sizes[position - 1]):
            continue
        # A point may lie beyond the border; the dash is at the last one before it.
        end = float(removed[position - 1])
        axis.text((start + end) / 2, 102, str(sizes[position - 1]), ha="center", color=_DASH)
        if not last:
            axis.axvline(end, color=_DASH, ls="--", lw=1)
        start = end


def _percent_axis(axis: Axes) -> None:
    """Show 0 to 100 percent on the y axis."""
    axis.set_ylim(0, 110)
    axis.set_yticks(range(0, 101, 25))
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    hide_frame(axis)
