"""Results as tables that people can read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from tabulate import tabulate

HEADLINE = ("mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_S", "IA-mIoU_M", "IA-mIoU_L")


def format_results(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table with one row a task and data set.

    Args:
        results: ``{task: {data set: {figure: percent}}}``.

    Returns:
        The table in plain text; empty when there is no result.
    """
    rows = [
        [f"task {task}", dataset, *(figures.get(name, float("nan")) for name in HEADLINE)]
        for task, by_dataset in sorted(results.items())
        for dataset, figures in by_dataset.items()
    ]
    if not rows:
        return ""
    return tabulate(rows, headers=["", "data set", *HEADLINE], floatfmt=".2f", tablefmt="github")


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Mean ± sample standard deviation over seeds, as the paper's Table 4.

    Args:
        rows: from :meth:`.ablation.Ablation.rows`.
    """
    groups: dict[tuple[object, object], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["data set"], row["variant"]), []).append(row)
    lines = [
        "| data set | variant | " + " | ".join(HEADLINE) + " | seeds |",
        "|---|---|" + "---|" * (len(HEADLINE) + 1),
    ]
    for (dataset, variant), members in groups.items():
        cells = [_mean_and_deviation([float(row[key]) for row in members]) for key in HEADLINE]
        lines.append(f"| {dataset} | {variant} | {' | '.join(cells)} | {len(members)} |")
    return "\n".join(lines) + "\n"


def _mean_and_deviation(values: Sequence[float]) -> str:
    """The cell of one figure; a dash where it is undefined (no instance of that size)."""
    if any(math.isnan(value) for value in values):
        return "–"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}"
