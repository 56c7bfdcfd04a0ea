"""Pseudo labels compared with the true instances by size: as text, as CSV and as a picture."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from d2_smallobj.metrics import OUTCOMES
from d2_smallobj.pseudo_labels.misses import ALL, LabelSummary
from d2_smallobj.report.drawing import hide_frame, new_figure, save_figure
from d2_smallobj.utils.files import write_csv
from d2_smallobj.utils.tables import markdown_table, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {
    "good": "#2f9e44",
    "partial": "#94d82d",
    "fragmented": "#fcc419",
    "merged": "#f08c00",
    "missed": "#c92a2a",
}
_SHARES = ("IA-IoU", "labelled", "ignored")
_MOST_CLASSES = 40


def format_label_summary(summary: LabelSummary) -> str:
    """Lay out the summary as text: figures, sizes, and the classes at the smallest size."""
    sizes = tuple(summary.size_bins)
    shown = ["mIoU", "IA-mIoU", *(f"IA-mIoU_{size}" for size in sizes)]
    figures = ", ".join(f"{name} {number(summary.figures[name])}" for name in shown)
    rows = summary.rows()
    header = ["size", "instances", *OUTCOMES, "missed %", "IA-IoU", "labelled %", "ignored %"]
    by_size = [[row["size"], *_cells(row)] for row in rows if row["class"] == ALL]
    smallest = [row for row in rows if row["class"] != ALL and row["size"] == sizes[0]]
    by_class = [[row["class"], *_cells(row)] for row in smallest if row["instances"]]
    header_2 = [f"class, size {sizes[0]}", *header[1:]]
    return (
        f"{summary.name} against the true instances of {summary.num_images} images, percent: "
        f"{figures}\n\n{markdown_table(header, by_size)}\n\n"
        f"{markdown_table(header_2, by_class)}\n\n"
        "missed: not one of its pixels has its class; IA-IoU: mean over instances; labelled: "
        "pixels of instances with the right class; ignored: 255, which counts as background "
        "in all other columns.\n"
    )


def write_label_summary(path: str | os.PathLike[str], summary: LabelSummary) -> None:
    """Write one row per class and size as CSV; undefined figures are empty."""
    rows = summary.rows()
    lines = []
    for row in rows:
        shares = {name: number(row[name], ".4f", "") for name in _SHARES}
        lines.append([summary.name, *{**row, **shares}.values()])
    write_csv(path, ["labels", *rows[0]], lines)


def draw_label_summary(path: str | os.PathLike[str], summary: LabelSummary) -> None:
    """Draw the outcomes by size, and the share of missed smallest objects by class, as PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = summary.rows()
    smallest = next(iter(summary.size_bins))
    classes = [
        row for row in rows if row["class"] != ALL and row["size"] == smallest and row["instances"]
    ]
    classes.sort(key=lambda row: -row["missed"] / row["instances"])
    classes = classes[:_MOST_CLASSES]
    widths = [4.6, max(2.4, 0.24 * len(classes))]
    figure = new_figure(sum(widths), 3.4)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": widths})
    _draw_sizes(left, [row for row in rows if row["class"] == ALL], summary.name)
    _draw_classes(right, classes, smallest)
    save_figure(figure, path)


def _draw_sizes(axis: Axes, rows: list[dict[str, Any]], name: str) -> None:
    """Draw one stacked bar of outcomes for each size."""
    labels = [f"{row['size']} ({row['instances']:,})" for row in rows]
    totals = np.array([max(row["instances"], 1) for row in rows])
    start = np.zeros(len(rows))
    for outcome in OUTCOMES:
        share = 100 * np.array([row[outcome] for row in rows]) / totals
        axis.barh(labels, share, left=start, color=_COLORS[outcome], label=outcome, height=0.7)
        for place, (width, left) in enumerate(zip(share, start)):
            if width >= 8:
                middle = left + width / 2
                axis.text(middle, place, f"{width:.0f}", ha="center", va="center", fontsize=7)
        start += share
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of the instances", fontsize=8)
    axis.set_title(f"{name}: what became of the objects", fontsize=9, parse_math=False)
    below = (0.45, -0.16)
    axis.legend(fontsize=7, ncols=5, frameon=False, loc="upper center", bbox_to_anchor=below)
    axis.tick_params(labelsize=7, length=0)
    hide_frame(axis)


def _draw_classes(axis: Axes, rows: list[dict[str, Any]], size: str) -> None:
    """Draw the share of missed objects by class, highest first."""
    places = np.arange(len(rows))
    share = [100 * row["missed"] / row["instances"] for row in rows]
    axis.bar(places, share, color=_COLORS["missed"], width=0.75)
    names = [f"{row['class']} ({row['instances']})" for row in rows]
    axis.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
    axis.set_ylim(0, 100)
    axis.set_title(f"% missed, size {size}", fontsize=9)
    axis.tick_params(labelsize=7, length=0)
    hide_frame(axis)


def _cells(row: dict[str, Any]) -> list[str]:
    """The cells of a row of the text tables after its name."""
    missed = 100 * row["missed"] / row["instances"] if row["instances"] else math.nan
    counts = [str(row[name]) for name in ("instances", *OUTCOMES)]
    return [*counts, number(missed, ".1f"), *(number(row[name], ".1f") for name in _SHARES)]
