"""Data sets by class and size: bars (Fig. 1b of the paper), box plots (Fig. 6), CSV and text.

Legend: C object classes; B size bins.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2_smallobj.annotations.classes import short_name
from d2_smallobj.annotations.coco_maps import FATES, Accounting
from d2_smallobj.report.drawing import hide_frame, new_figure, save_figure
from d2_smallobj.statistics.balance import SizeStatistics
from d2_smallobj.utils.files import write_csv
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.tables import markdown_table, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#d9480f", "#f08c00", "#2f9e44", "#1971c2", "#6741d9", "#c2255c")
_OUTLIER = "0.55"
_MOST_NAMES = 40
"""Of more classes than this, those with the most instances are drawn: LVIS has 1,230."""
_NAMED_OUTLIERS = 5
_EMPTY = "#c92a2a"


def draw_class_bars(
    path: str | os.PathLike[str], sets: Sequence[SizeStatistics], *, log: bool = False
) -> None:
    """Draw sorted bars of the classes' instances, a panel for each data set and size.

    Args:
        path: PNG to write, atomically.
        sets: with the same size bins; one row of panels each.
        log: logarithmic axis; 0 keeps its place.

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
    """Draw the classes of one size, most frequent first; names of empty ones are red."""
    counts = one.counts[:, column]
    ranked = np.argsort(-counts, kind="stable")
    order, left_out = ranked[:_MOST_NAMES], counts[ranked[_MOST_NAMES:]]
    places = np.arange(len(order))
    axis.bar(places, counts[order], color=_color(column), width=0.8)
    title = f"{one.name}, {one.size_names[column]}: {int(counts.sum()):,}"
    axis.set_title(title, fontsize=9, parse_math=False)
    axis.set_xlim(-0.7, len(order) - 0.3)
    names = [short_name(one.class_names[place]) for place in order]
    axis.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
    for label, count in zip(axis.get_xticklabels(), counts[order]):
        if count == 0:
            label.set_color(_EMPTY)
    if len(left_out):
        text = f"{len(left_out):,} more classes with {int(left_out.sum()):,} instances"
        axis.set_xlabel(f"{text} (all: counts.csv)", fontsize=8)


def draw_size_boxes(
    path: str | os.PathLike[str], sets: Sequence[SizeStatistics], *, log: bool = False
) -> None:
    """Draw box plots of the classes' instances, a box for each size, a panel for each set.

    Boxes span the quartiles over the C classes, whiskers reach at most 1.5 interquartile ranges;
    outliers are grey points with their names. All panels share one axis.

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
    """Write the classes' names beside the highest outliers."""
    for column, points in enumerate(fliers):
        names: dict[int, list[str]] = {}
        outliers = {int(count) for count in points.get_ydata()}
        for name, count in zip(one.class_names, one.counts[:, column].tolist()):
            if count in outliers:
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
    """Scale the axis of counts from 0; a logarithmic one is linear below 1, where 0 lies."""
    if log:
        axis.set_yscale("symlog", linthresh=1, linscale=0.3)
    # Panels share an axis, so that automatic limits would be those of the first panel.
    axis.set_ylim(0, max(highest, 1) * (1.6 if log else 1.06))
    axis.tick_params(axis="y", labelsize=8)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    hide_frame(axis)


def write_counts(path: str | os.PathLike[str], sets: Sequence[SizeStatistics]) -> None:
    """Write the instances of all data sets as CSV: a row for each class, a column for each size."""
    rows = [
        [one.name, name, *counts, sum(counts)]
        for one in sets
        for name, counts in zip(one.class_names, one.counts.tolist())
    ]
    write_csv(path, ["data set", "class", *sets[0].size_names, "all"], rows)


def write_balance(path: str | os.PathLike[str], sets: Sequence[SizeStatistics]) -> None:
    """Write size and balance of all data sets as CSV, a row each; undefined figures are empty."""
    header = ["data set", "images", "instances", *sets[0].size_names, "beyond", "classes"]
    header += ["cells", "empty_cells", "normalized_entropy", "coefficient_of_variation"]
    rows = [
        [
            *(one.name, one.num_images, int(one.counts.sum()), *one.counts.sum(axis=0).tolist()),
            *(one.num_beyond, len(one.class_names), one.counts.size, one.num_empty),
            *(number(x, ".6f", "") for x in (one.entropy, one.variation)),
        ]
        for one in sets
    ]
    write_csv(path, header, rows)


def format_counts(statistics: SizeStatistics) -> str:
    """Lay out the instances of one data set as a Markdown table, most frequent classes first.

    Several classes without an instance share one row: LVIS has hundreds.
    """
    counts = statistics.counts
    order = sorted(range(len(counts)), key=lambda row: (-int(counts[row].sum()), row))
    empty = [row for row in order if not counts[row].any()]
    shown = order if len(empty) < 2 else order[: -len(empty)]
    rows = [[statistics.class_names[row], *_cells(counts[row].tolist())] for row in shown]
    if len(shown) < len(order):
        rows.append([f"{len(empty)} more classes", *_cells(counts[empty].sum(axis=0).tolist())])
    rows.append(["all classes", *_cells(counts.sum(axis=0).tolist())])
    return markdown_table([statistics.name, *statistics.size_names, "all"], rows)


def format_balance(sets: Sequence[SizeStatistics]) -> str:
    """Lay out size and balance of the data sets as a Markdown table with its legend."""
    header = ["data set", "images", "instances", "empty cells", "entropy", "variation"]
    rows = [
        [
            *(one.name, f"{one.num_images:,}", f"{int(one.counts.sum()):,}"),
            *(f"{one.num_empty} of {one.counts.size}", number(one.entropy, ".4f")),
            number(one.variation, ".3f"),
        ]
        for one in sets
    ]
    legend = (
        "Balance over class × size: normalised entropy (1 = all cells equal), coefficient of"
        " variation (0 = all cells equal)."
    )
    beyond = [
        f"{one.name}: {one.num_beyond:,} instances lie beyond the last size and are not counted."
        for one in sets
        if one.num_beyond
    ]
    return "\n".join([markdown_table(header, rows), "", legend, *beyond])


def _cells(counts: Sequence[int]) -> list[str]:
    return [f"{count:,}" for count in (*counts, sum(counts))]


def format_accounting(result: Accounting) -> str:
    """Lay out the fates as a Markdown table: a row for each category with annotations, and all."""
    total = result.total
    fates = [fate for fate in FATES if total[fate]]
    rows = [
        [f"{result.names[category]} ({category})", *_fate_cells(counts, fates)]
        for category, counts in result.counts.items()
    ]
    rows.append(["all", *_fate_cells(total, fates)])
    empty = len(result.names) - len(result.counts)
    text = (
        f"{markdown_table(['category', *fates, 'annotations'], rows)}\n\n{result.num_images:,} "
        f"images, {result.num_unannotated:,} without annotations; {empty:,} of "
        f"{len(result.names):,} categories have none."
    )
    if result.malformed:
        text += f"\n\n{itemized('malformed mask(s)', result.malformed)}"
    return text


def write_accounting(path: str | os.PathLike[str], result: Accounting) -> None:
    """Write the fates of all categories of the file as CSV."""
    header = ["category_id", "category", *(fate.replace(" ", "_") for fate in FATES)]
    rows = []
    for category, name in result.names.items():
        counts = result.counts.get(category, Counter())
        rows.append([category, name, *(counts.get(fate, 0) for fate in FATES)])
    write_csv(path, header, rows)


def _fate_cells(counts: Counter[str], fates: Sequence[str]) -> list[str]:
    """The counts of some fates, and their sum."""
    return [*(str(counts[fate]) for fate in fates), str(sum(counts.values()))]
