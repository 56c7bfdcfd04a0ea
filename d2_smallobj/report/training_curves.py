"""The curves of several trainings in one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2_smallobj.report.sensitivity_plots import new_figure, save_figure
from d2_smallobj.report.training_runs import FIGURES, Series, TrainingRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PENALTY, RATE = "loss_ewc", "lr"
_COLORS = ("#1971c2", "#d9480f", "#2f9e44", "#9c36b5", "#0b7285", "#e8590c", "#5c940d", "#c2255c")
"""Distinct in hue and, mostly, in lightness; more runs go on with other line styles."""
_STYLES = ("-", "--", ":", "-.")
_COLUMNS = 3
_FEW = 30


def draw_training_curves(path: str | os.PathLike[str], runs: Sequence[TrainingRun]) -> None:
    """Draw loss, EWC penalty, learning rate and every evaluated figure against iterations.

    The dotted lines are the beginnings of task B.

    Args:
        path: PNG to write, atomically.
        runs: what to draw, in the order of the legend.

    Raises:
        ValueError: if there is nothing to draw.
        ImportError: matplotlib is missing.
    """
    curves = [run_curves(run) for run in runs]
    titles = list(dict.fromkeys(title for panels in curves for title in panels))
    if not titles:
        raise ValueError(
            f"nothing to draw: no loss, rate or figure in {[run.name for run in runs]}"
        )
    columns = min(_COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = new_figure(4.2 * columns, 2.9 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, title in zip(axes, titles):
        for number, (run, panels) in enumerate(zip(runs, curves)):
            _draw_run(axis, run, panels.get(title, Series()), number)
        axis.set_title(title, fontsize=10, parse_math=False)
        axis.set_xlabel("iteration", fontsize=8)
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.grid(alpha=0.25)
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    handles = [axes[0].plot([], [], **_style(number))[0] for number in range(len(runs))]
    names = [run.name for run in runs]
    place = {"loc": "outside upper center", "ncols": min(4, len(runs))}
    legend = figure.legend(handles, names, fontsize=8, frameon=False, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def run_curves(run: TrainingRun) -> dict[str, Series]:
    """What is drawn of a run, by the title of the panel."""
    curves = {
        "loss without penalty": task_loss(run),
        "EWC penalty": run.scalars.get(PENALTY, Series()),
        "learning rate": run.scalars.get(RATE, Series()),
    }
    for data_set, figure in sorted(run.evaluations, key=lambda x: (FIGURES.index(x[1]), x[0])):
        title = f"{figure}, percent{f', {data_set}' if data_set else ''}"
        curves[title] = run.evaluations[data_set, figure]
    return {title: series for title, series in curves.items() if series.iterations}


def task_loss(run: TrainingRun) -> Series:
    """The loss of the task that is on, without the EWC penalty.

    detectron2 notes the single losses only where there are several, their sum always.
    """
    penalty = run.scalars.get(PENALTY, Series())
    penalties = dict(zip(penalty.iterations, penalty.values))
    total = run.scalars.get("total_loss", Series())
    values = [value - penalties.get(i, 0.0) for i, value in zip(total.iterations, total.values)]
    return Series(list(total.iterations), values)


def _draw_run(axis: Axes, run: TrainingRun, series: Series, number: int) -> None:
    """One curve, its points marked where they are few."""
    if not series.iterations:
        return
    marker = "o" if len(series.iterations) <= _FEW else None
    axis.plot(series.iterations, series.values, marker=marker, ms=3.5, **_style(number))
    if run.task_b is not None:
        axis.axvline(run.task_b, color=_style(number)["color"], lw=1, ls=":", alpha=0.7)


def _style(number: int) -> dict[str, object]:
    return {
        "color": _COLORS[number % len(_COLORS)],
        "ls": _STYLES[number // len(_COLORS) % len(_STYLES)],
        "lw": 1.4,
    }
