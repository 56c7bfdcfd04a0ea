"""The curves of :mod:`d2_smallobj.report.sensitivity` as PNG and CSV.

Legend: H, W height and width of a map.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2_smallobj.report.pairs import Pair, growth_order
from d2_smallobj.report.sensitivity import CORNER_CASES, Curve
from d2_smallobj.utils.files import atomic_write, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXEL_COLOR, INSTANCE_COLOR = "#6b7280", "#d9480f"
"""mIoU and IA-mIoU in every drawing."""
_SIZE_COLORS = ("#5c7cfa", "#22b8cf", "#51cf66")
_DASH = "#e03131"


def new_figure(width: float, height: float) -> Figure:
    """A figure with a canvas of its own: pyplot would keep global state and may open a display.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"drawing needs matplotlib ({error}): pip install 'd2_smallobj[report]'"
        ) from error

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 100) -> None:
    """Write a figure as PNG, atomically; the same bytes for the same figure and matplotlib."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def write_curves(path: str | os.PathLike[str], curves: Sequence[Curve]) -> None:
    """Write curves as one CSV: their name, what was done, and the figures in percent.

    Undefined figures are empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["curve", *curves[0].columns, *curves[0].figures])
    for curve in curves:
        for row in zip(*curve.columns.values(), *curve.figures.values()):
            writer.writerow([curve.name, *(_cell(value) for value in row)])
    atomic_write_text(path, text.getvalue())


def _cell(value: object) -> str:
    """A CSV cell: floats to six places, NaN empty."""
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6f}"


def draw_corner_cases(path: str | os.PathLike[str], pair: Pair, curves: Sequence[Curve]) -> None:
    """Draw the cases side by side: above how the prediction grows, below the two figures.

    Args:
        path: PNG to write, atomically.
        pair: the two instances.
        curves: of :func:`d2_smallobj.report.sensitivity.corner_cases`.
    """
    figure = new_figure(2.5 * len(curves), 4.3)
    axes = figure.subplots(
        2, len(curves), squeeze=False, sharey="row", gridspec_kw={"height_ratios": [1, 1.25]}
    )
    for curve, scene, plot in zip(curves, axes[0], axes[1]):
        stages = CORNER_CASES[curve.name]
        scene.imshow(_growth(pair, stages), interpolation="nearest")
        scene.set_axis_off()
        scene.set_title(f"{curve.name}: {', then '.join(stages)}", fontsize=10)
        x = np.linspace(0, len(stages), len(curve.figures["IoU"]))
        plot.plot(x, curve.figures["IoU"], color=PIXEL_COLOR, lw=2, label="IoU, pixels pooled")
        plot.plot(
            x, curve.figures["IA-IoU"], color=INSTANCE_COLOR, lw=2, label="IA-IoU, by instance"
        )
        for edge in range(1, len(stages)):
            plot.axvline(edge, color=_DASH, ls="--", lw=1)
        middles = [0, *(k + 0.5 for k in range(len(stages))), len(stages)]
        plot.set_xticks(middles, ["none", *stages, "full"], fontsize=8)
        plot.set_xlim(0, len(stages))
        _percent_axis(plot)
    axes[1][0].set_ylabel(f"{pair.class_name}, percent", fontsize=9)
    axes[1][0].legend(fontsize=7.5, loc="upper left", frameon=False)
    areas = pair.areas
    figure.suptitle(
        f"{pair.image_id}: {pair.class_name} of {areas['small']} px and of {areas['large']} px; "
        "the prediction grows from bright to dark",
        fontsize=9,
    )
    save_figure(figure, path)


def _growth(pair: Pair, stages: Sequence[str]) -> np.ndarray:
    """Picture of the order in which the prediction grows: float (H, W, 3), cut to the pair."""
    picture = np.full((*pair.instances.shape, 3), 0.965)
    picture[pair.instances == 255] = 1.0
    flat = picture.reshape(-1, 3)
    start, end = np.array([1.0, 0.87, 0.75]), np.array([0.75, 0.22, 0.03])
    for number, name in ((1, "small"), (2, "large")):
        mask = pair.instances == number
        if name not in stages:
            picture[mask] = 0.75
            continue
        order = growth_order(mask)
        # Ten bands show the growth better than a smooth ramp.
        share = np.floor(np.linspace(0, 10, len(order), endpoint=False))[:, None] / 9
        done = (stages.index(name) + share) / len(stages)
        flat[order] = start + done * (end - start)
    rows, columns = np.nonzero((pair.instances == 1) | (pair.instances == 2))
    height, width = pair.instances.shape
    top, bottom = max(rows.min() - 12, 0), min(rows.max() + 13, height)
    left, right = max(columns.min() - 12, 0), min(columns.max() + 13, width)
    return picture[top:bottom, left:right]


def draw_removal(
    path: str | os.PathLike[str], curve: Curve, *, sizes: Sequence[str] = ("S", "M", "L")
) -> None:
    """Draw the removal curve, with red dashes between the sizes.

    Args:
        path: PNG to write, atomically.
        curve: of :func:`d2_smallobj.report.sensitivity.removal_curve`.
        sizes: names of the size bins, ascending.
    """
    figure = new_figure(6.4, 3.7)
    axis = figure.subplots()
    removed = np.array(curve.columns["removed"])
    for size, color in zip(sizes, _SIZE_COLORS):
        values = curve.figures[f"IA-IoU_{size}"]
        if not np.all(np.isnan(values)):
            axis.plot(removed, values, color=color, lw=1, label=f"IA-IoU_{size}")
    axis.plot(removed, curve.figures["IoU"], color=PIXEL_COLOR, lw=2.2, label="IoU, pixels pooled")
    axis.plot(
        removed, curve.figures["IA-IoU"], color=INSTANCE_COLOR, lw=2.2, label="IA-IoU, by instance"
    )
    _mark_sizes(axis, removed, curve.columns["size"])
    axis.set_xlim(0, removed[-1])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("instances deleted, the smallest first", fontsize=9)
    axis.set_ylabel(f"{curve.name}, percent", fontsize=9)
    _percent_axis(axis)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], fontsize=8, loc="lower left", frameon=False)
    save_figure(figure, path)


def _mark_sizes(axis: Axes, removed: np.ndarray, sizes: Sequence[object]) -> None:
    """Put a red dash where one size ends, and the name of each size above its part."""
    start = 0.0
    for position in range(1, len(sizes) + 1):
        last = position == len(sizes)
        if not last and (sizes[position] == sizes[position - 1] or not sizes[position - 1]):
            continue
        # A recorded point may jump over the border; the dash lies at the last one before it.
        end = float(removed[position - 1])
        axis.text((start + end) / 2, 102, str(sizes[position - 1]), ha="center", color=_DASH)
        if not last:
            axis.axvline(end, color=_DASH, ls="--", lw=1)
        start = end


def _percent_axis(axis: Axes) -> None:
    """What all percent plots share."""
    axis.set_ylim(0, 110)
    axis.set_yticks(range(0, 101, 25))
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="0.9", lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
