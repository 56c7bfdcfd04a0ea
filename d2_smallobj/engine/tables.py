"""Results as tables that people can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from d2_smallobj.experiments.paper_tables import mean_and_deviation

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


def markdown_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = HEADLINE) -> str:
    """Mean ± sample standard deviation over seeds, as the paper's Table 4.

    Args:
        rows: from :meth:`.ablation.Ablation.rows`; all with a method, or none.
        columns: the figures to show.
    """
    names = ["data set", *(["method"] if rows and "method" in rows[0] else []), "variant"]
    groups: dict[tuple[object, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    lines = [
        f"| {' | '.join((*names, *columns))} | seeds |",
        "|---" * (len(names) + len(columns) + 1) + "|",
    ]
    for group, members in groups.items():
        cells = [mean_and_deviation([float(row[key]) for row in members]) for key in columns]
        lines.append(f"| {' | '.join([*map(str, group), *cells])} | {len(members)} |")
    return "\n".join(lines) + "\n"
