"""Train methods × losses × seeds: one ablation per training set, and the paper's tables of all."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2_smallobj.data.catalog import canonical_name
from d2_smallobj.engine.setup import build_config
from d2_smallobj.engine.trainer import HEADLINE
from d2_smallobj.experiments.ablation import Ablation, run_all, write_tables
from d2_smallobj.experiments.paper_tables import (
    BASELINE,
    PUBLISHED_FIGURES,
    Gain,
    RunResult,
    measure_gains,
    set_title,
    write_paper_tables,
)
from d2_smallobj.experiments.scheduling import visible_devices
from d2_smallobj.experiments.seed_gains import measure_seed_gains, write_seed_gains
from d2_smallobj.report.drawing import new_figure, save_figure
from d2_smallobj.utils.installation import explain_missing
from d2_smallobj.utils.messages import look_up_option
from detectron2.data import DatasetCatalog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[\w.-]*\w[\w.-]*")
_BASELINE_COLOR = "#adb5bd"
_COLORS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#f08c00", "#0b7285")
_MOST_LABELS = 30


def run_and_report(
    args: argparse.Namespace, ablations: Sequence[Ablation], write: Callable[[], str]
) -> None:
    """Run all incomplete runs, then write the tables of the complete ones, also after a failure.

    ``args`` are those of the command line; ``write`` writes the tables and returns the one
    to print. Raises SystemExit with a message for the user if a run failed.
    """
    failure = None
    cpu = build_config(args.config_file, args.opts).MODEL.DEVICE == "cpu"
    try:
        run_all(ablations, args.jobs, [] if cpu else visible_devices())
    except RuntimeError as error:
        failure = str(error)
    sys.stdout.write(write() + "\n")
    if failure:
        sys.exit(f"error: {failure}")


def split_by_method(ablation: Ablation, methods: Sequence[str]) -> list[Ablation]:
    """Copy an ablation to the training set of every method, each in a folder of its own.

    A method is ``NAME=DATA_SET``, or ``NAME`` alone: a registered data set, or the last part of its
    name (``amn`` where the config has ``voc_2012_trainaug_irn``). Raises ValueError for an unknown
    data set, or a name that is given twice or is no folder's name.
    """
    split: list[Ablation] = []
    for argument in methods:
        name, _, data_set = argument.partition("=")
        if not _NAME.fullmatch(name) or name in [other.method for other in split]:
            raise ValueError(
                f"--methods takes different names of letters, digits, '_', '-' and '.', got "
                f"{name!r} in {list(methods)}"
            )
        if not data_set and canonical_name(name) not in DatasetCatalog.list():
            configured = build_config(ablation.config_file, ablation.options).DATASETS.TRAIN[0]
            data_set = f"{configured.rpartition('_')[0]}_{name}"
        data_set = canonical_name(data_set or name)
        look_up_option("--methods", data_set, DatasetCatalog.list())
        split.append(
            dataclasses.replace(
                ablation,
                method=name,
                output_dir=ablation.output_dir / name,
                options=(*ablation.options, "DATASETS.TRAIN", repr((data_set,))),
            )
        )
    return split


def write_all_tables(ablations: Sequence[Ablation], folder: Path) -> str:
    """Write all tables and plots of the complete runs.

    ``ablation.csv`` and ``ablation.md`` (returned) with all figures, ``gains.csv`` and ``gains.md``
    with paired intervals against CE, ``paper_tables.md`` with its CSVs in the layout of the paper,
    and ``fig8.png`` where two variants can be compared.
    """
    table = write_tables(ablations, folder)
    results = [result for ablation in ablations for result in _results(ablation)]
    write_paper_tables(folder, results)
    write_seed_gains(folder, "gains", measure_seed_gains(ablations, "ce"))
    gains = measure_gains(results)
    if gains:
        try:
            draw_gains(folder / "fig8.png", gains)
        except ImportError as error:
            logger.warning(f"fig8.png is left out: {explain_missing(error) or error}")
    return table


def _results(ablation: Ablation) -> list[RunResult]:
    rows = list(ablation.rows())
    method = ablation.method
    if rows and not method:
        method = build_config(ablation.config_file, ablation.options).DATASETS.TRAIN[0]
    return [
        RunResult(
            method,
            str(row["variant"]),
            int(row["seed"]),
            str(row["data set"]),
            {key: float(row[key]) for key in HEADLINE},
        )
        for row in rows
    ]


def draw_gains(path: str | os.PathLike[str], gains: Sequence[Gain]) -> None:
    """Draw Fig. 8: baseline and other variants as bars, a row per data set, a column per figure.

    The number on a bar is the mean gain over seeds, the whisker its standard error. (The paper's
    text says what Fig. 8 shows, not how it is drawn.) Raises ImportError without matplotlib.
    """
    sets = list(dict.fromkeys(gain.data_set for gain in gains))
    methods = list(dict.fromkeys(gain.method for gain in gains))
    variants = dict.fromkeys(gain.variant for gain in gains)
    colors = {BASELINE: _BASELINE_COLOR, **dict(zip(variants, itertools.cycle(_COLORS)))}
    width = max(3.0, 0.22 * len(methods) * (len(variants) + 1.5) + 0.6)
    figure = new_figure(width * len(PUBLISHED_FIGURES), 2.6 * len(sets) + 0.4)
    axes = figure.subplots(len(sets), len(PUBLISHED_FIGURES), squeeze=False)
    for data_set, row in zip(sets, axes):
        for name, axis in zip(PUBLISHED_FIGURES, row):
            here = [g for g in gains if (g.data_set, g.figure) == (data_set, name)]
            _draw_panel(axis, here, methods, colors)
            axis.set_title(f"{set_title(data_set)}: {name}", fontsize=9, parse_math=False)
        row[0].set_ylabel("percent", fontsize=8)
    _add_legend(figure, colors)
    save_figure(figure, path, dpi=120)


def _add_legend(figure: Figure, colors: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    legend = figure.legend(
        [Patch(color=color) for color in colors.values()],
        list(colors),
        loc="outside upper center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_panel(
    axis: Axes, gains: Sequence[Gain], methods: Sequence[str], colors: Mapping[str, str]
) -> None:
    """Draw the bars of one data set and figure."""
    bar = 0.8 / len(colors)
    labelled = len(methods) * (len(colors) - 1) <= _MOST_LABELS
    for place, method in enumerate(methods):
        of_method = {gain.variant: gain for gain in gains if gain.method == method}
        for gain in list(of_method.values())[:1]:
            axis.bar(place - 0.4 + bar / 2, gain.baseline, bar, color=colors[BASELINE])
        for number, (variant, color) in enumerate(colors.items()):
            if variant in of_method:
                x = place - 0.4 + bar * (number + 0.5)
                _draw_bar(axis, x, bar, of_method[variant], color, labelled)
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
