"""Lay out the figures of a scored run as text tables for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from d2_smallobj.annotations.classes import short_name
from d2_smallobj.metrics import OUTCOMES, blob_summary, outcome_summary
from d2_smallobj.metrics.summary import split_headline
from d2_smallobj.scoring.scored_run import ScoredRun
from d2_smallobj.statistics.intervals import Interval
from d2_smallobj.utils.tables import markdown_table, number


def format_figures(figures: Mapping[str, float], class_names: Sequence[str]) -> str:
    """Lay out figures as text tables: the headline, those by image, a row for every class present.

    ``-`` stands for an undefined figure; long names are cut.
    """
    names = list(figures)
    first = names.index("images")
    headline, further = split_headline(names[:first])
    counts = [name for name in names[first:] if name == "images" or name.startswith("instances")]
    counts = [name for name in counts if "-" not in name]
    tops = [
        _table(shown, [[_cell(name, figures[name]) for name in shown]])
        for shown in ([*headline, *counts], further)
    ]
    sizes = [name[len("IA-mIoU") :] for name in headline if name.startswith("IA-mIoU_")]
    groups = ["", *(size for size in sizes if f"instances{size}" in figures)]
    header = ["class", "IoU", *(f"IA-IoU{group}" for group in groups)]
    header += [f"instances{group}" for group in groups]

    def row(name: str) -> list[str]:
        values = (figures.get(f"{column}-{name}", math.nan) for column in header[1:])
        return [short_name(name), *map(_cell, header[1:], values)]

    rows = [
        row(name)
        for name in class_names
        if figures[f"instances-{name}"] > 0 or not math.isnan(figures[f"IoU-{name}"])
    ]
    return "\n\n".join([*tops, _table(header, rows)])


def format_run(run: ScoredRun) -> str:
    """Lay out a run: its figures, intervals, and what happened to the instances by size.

    The last row counts false-positive components, predicted where no instance of their class
    is, by their own size.
    """
    parts = [format_figures(run.figures, run.class_names)]
    if run.intervals:
        level = 100 * float(run.options.get("level", 0.95))
        for names in split_headline(list(run.intervals)):
            ends = [_ends(run.intervals[name]) for name in names]
            parts.append(_table([f"{level:g} %", *names], [["interval", *ends]]))
    bins = run.size_bins
    outcomes = outcome_summary(run.table, run.class_names, bins, stuff=run.stuff)
    blobs = blob_summary(run.blobs, run.class_names, bins, stuff=run.stuff)
    header = ["instances", "all", *bins, "IoU lost"]
    rows = [
        [
            outcome,
            str(outcomes["all"][outcome]["instances"]),
            *(str(outcomes["sizes"][size][outcome]["instances"]) for size in bins),
            f"{outcomes['all'][outcome]['lost']:.1f}",
        ]
        for outcome in OUTCOMES
    ]
    sizes = [str(blobs["sizes"][size]["blobs"]) for size in bins]
    rows.append(["false-positive components", str(blobs["all"]["blobs"]), *sizes, "-"])
    parts.append(_table(header, rows))
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, rows, text_columns=len(header))


def _ends(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "-"
    return f"{interval.low:.2f} .. {interval.high:.2f}"


def _cell(name: str, value: float) -> str:
    """A figure as text: two decimals for percentages, none for counts."""
    return number(value, ".0f" if name.startswith(("images", "instances")) else ".2f")
