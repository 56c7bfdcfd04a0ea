"""The paper's Fig. 8 from our own results: what the size-balanced loss gains, method by method."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2_smallobj.experiments.paper_tables import Gain, set_title
from d2_smallobj.experiments.published import PUBLISHED_FIGURES
from d2_smallobj.report.drawing import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BASELINE = "#adb5bd"
_COLORS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#f08c00", "#0b7285")
_MOST_LABELS = 30


def draw_gains(
    path: str | os.PathLike[str], gains: Sequence[Gain], *, baseline: str = "CE"
) -> None:
    """Draw the baseline and the other variants as bars: a row a data set, a column a figure.

    The number on a bar is the mean gain over seeds, the whisker its standard error. (The paper's
    text tells what Fig. 8 shows, not how it is drawn.)

    Args:
        path: PNG to write, atomically.
        gains: of :func:`.paper_tables.measure_gains`, at least one.
        baseline: its name for the legend.

    Raises:
        ValueError: without a gain.
        ImportError: matplotlib is missing.
    """
    if not gains:
        raise ValueError(f"no gain to draw: no variant shares a seed with {baseline!r}")
    sets = list(dict.fromkeys(gain.data_set for gain in gains))
    methods = list(dict.fromkeys(gain.method for gain in gains))
    variants = list(dict.fromkeys(gain.variant for gain in gains))
    width = max(3.0, 0.22 * len(methods) * (len(variants) + 1.5) + 0.6)
    figure = new_figure(width * len(PUBLISHED_FIGURES), 2.6 * len(sets) + 0.4)
    axes = figure.subplots(len(sets), len(PUBLISHED_FIGURES), squeeze=False)
    for data_set, row in zip(sets, axes):
        for name, axis in zip(PUBLISHED_FIGURES, row):
            here = [g for g in gains if (g.data_set, g.figure) == (data_set, name)]
            _draw_panel(axis, here, methods, variants)
            axis.set_title(f"{set_title(data_set)}: {name}", fontsize=9, parse_math=False)
        row[0].set_ylabel("percent", fontsize=8)
    _add_legend(figure, [(baseline, _BASELINE), *((v, _color(n)) for n, v in enumerate(variants))])
    save_figure(figure, path, dpi=120)


def _add_legend(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    legend = figure.legend(
        [Patch(color=color) for _, color in entries],
        [name for name, _ in entries],
        loc="outside upper center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_panel(
    axis: Axes, gains: Sequence[Gain], methods: Sequence[str], variants: Sequence[str]
) -> None:
    """The bars of one data set and figure."""
    bar = 0.8 / (len(variants) + 1)
    labelled = len(methods) * len(variants) <= _MOST_LABELS
    for place, method in enumerate(methods):
        of_method = {gain.variant: gain for gain in gains if gain.method == method}
        for gain in list(of_method.values())[:1]:
            axis.bar(place - 0.4 + bar / 2, gain.baseline, bar, color=_BASELINE)
        for number, variant in enumerate(variants):
            if variant in of_method:
                x = place - 0.4 + bar * (number + 1.5)
                _draw_bar(axis, x, bar, of_method[variant], _color(number), labelled)
    axis.set_xticks(range(len(methods)), methods, fontsize=7, parse_math=False)
    axis.tick_params(axis="y", labelsize=7)
    axis.margins(y=0.15)


def _draw_bar(axis: Axes, x: float, width: float, gain: Gain, color: str, labelled: bool) -> None:
    if math.isnan(gain.value):
        return
    spread = 0.0
    if len(gain.gains) > 1:
        spread = statistics.stdev(gain.gains) / len(gain.gains) ** 0.5
    axis.bar(x, gain.value, width, color=color, yerr=spread or None, error_kw={"lw": 0.8})
    if labelled:
        axis.annotate(
            f"{statistics.fmean(gain.gains):+.1f}",
            (x, gain.value + spread),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6,
            rotation=90,
        )


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]
