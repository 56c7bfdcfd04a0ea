"""Data sets by class and size: sorted bars (Fig. 1b of the paper) and box plots (Fig. 6).

Legend: C object classes; B size bins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2_smallobj.report.sensitivity_plots import new_figure, save_figure
from d2_smallobj.statistics.counts import SizeStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#d9480f", "#f08c00", "#2f9e44", "#1971c2", "#6741d9", "#c2255c")
_OUTLIER = "0.55"
_MOST_NAMES = 40
"""More classes than this are drawn without their names, which could not be read."""
_NAMED_OUTLIERS = 5
_EMPTY = "#c92a2a"


def draw_class_bars(
    path: str | os.PathLike[str], sets: Sequence[SizeStatistics], *, log: bool = False
) -> None:
    """Draw the instances of every class, sorted, a panel for each data set and size.

    Args:
        path: PNG to write, atomically.
        sets: with the same size bins; one row of panels each.
        log: logarithmic axis; empty cells stay visible as 0.

    Raises:
        ImportError: matplotlib is missing.
    """
    num_bins = len(sets[0].size_names)
    longest = max(min(len(one.class_names), _MOST_NAMES) for one in sets)
    width = max(2.2, 0.14 * longest)
    figure = new_figure(width * num_bins + 0.8, 2.9 * len(sets))
    axes = figure.subplots(len(sets), num_bins, squeeze=False, sharey="row")
    for one, row in zip(sets, axes):
        for column, axis in enumerate(row):
            _sorted_bars(axis, one, column)
            _count_axis(axis, int(one.counts.max(initial=0)), log)
        row[0].set_ylabel("instances", fontsize=9)
    save_figure(figure, path)


def _sorted_bars(axis: Axes, one: SizeStatistics, column: int) -> None:
    """The classes of one size, most frequent first; empty ones are marked."""
    counts = one.counts[:, column]
    order = np.argsort(-counts, kind="stable")
    places = np.arange(len(order))
    axis.bar(places, counts[order], color=_color(column), width=0.8)
    title = f"{one.name}, {one.size_names[column]}: {int(counts.sum()):,}"
    axis.set_title(title, fontsize=9, parse_math=False)
    axis.set_xlim(-0.7, len(order) - 0.3)
    if len(order) <= _MOST_NAMES:
        names = [one.class_names[number] for number in order]
        axis.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
        for label, number in zip(axis.get_xticklabels(), order):
            if counts[number] == 0:
                label.set_color(_EMPTY)
    else:
        axis.set_xticks([])
        axis.set_xlabel(f"{len(order)} classes, {int((counts == 0).sum())} empty", fontsize=8)


def draw_size_boxes(
    path: str | os.PathLike[str], sets: Sequence[SizeStatistics], *, log: bool = False
) -> None:
    """Draw how the instances of the classes spread, a box for each size, a panel for each set.

    Boxes span the quartiles over the C classes, whiskers reach 1.5 interquartile ranges at most,
    classes beyond are grey points with their names. All panels share one axis.

    Args:
        path: PNG to write, atomically.
        sets: with the same size bins.
        log: logarithmic axis.

    Raises:
        ImportError: matplotlib is missing.
    """
    num_bins = len(sets[0].size_names)
    figure = new_figure((0.85 * num_bins + 0.7) * len(sets) + 0.6, 4.0)
    axes = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    highest = max(int(one.counts.max(initial=0)) for one in sets)
    for one, axis in zip(sets, axes):
        boxes = axis.boxplot(
            list(one.counts.T),
            widths=0.6,
            patch_artist=True,
            medianprops={"color": "black"},
            flierprops={"marker": "o", "ms": 4, "mfc": _OUTLIER, "mec": "none"},
        )
        for column, box in enumerate(boxes["boxes"]):
            box.set_facecolor(_color(column))
            box.set_alpha(0.65)
        _name_outliers(axis, one, boxes["fliers"])
        axis.set_xticks(range(1, num_bins + 1), one.size_names, fontsize=9, parse_math=False)
        balance = f"entropy {one.entropy:.3f}, variation {one.variation:.2f}"
        axis.set_title(f"{one.name}\n{balance}", fontsize=9, parse_math=False)
        _count_axis(axis, highest, log)
    axes[0].set_ylabel("instances of a class", fontsize=9)
    save_figure(figure, path)


def _name_outliers(axis: Axes, one: SizeStatistics, fliers: Sequence) -> None:
    """Write the classes beside the highest points."""
    for column, points in enumerate(fliers):
        names: dict[int, list[str]] = {}
        beyond = {int(count) for count in points.get_ydata()}
        for name, count in zip(one.class_names, one.counts[:, column].tolist()):
            if count in beyond:
                names.setdefault(count, []).append(name)
        for count in sorted(names, reverse=True)[:_NAMED_OUTLIERS]:
            equal = names[count]
            axis.annotate(
                ", ".join(equal) if len(equal) < 3 else f"{len(equal)} classes",
                (column + 1, count),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=6.5,
                va="center",
                color="0.3",
                parse_math=False,
            )


def _color(column: int) -> str:
    return _COLORS[column % len(_COLORS)]


def _count_axis(axis: Axes, highest: int, log: bool) -> None:
    """The axis of counts from 0; a logarithmic one is linear below 1, so that 0 has a place."""
    if log:
        axis.set_yscale("symlog", linthresh=1, linscale=0.3)
    # Limits by hand: panels share an axis, which would stop growing at the first one's.
    axis.set_ylim(0, max(highest, 1) * (1.6 if log else 1.06))
    axis.tick_params(axis="y", labelsize=8)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
