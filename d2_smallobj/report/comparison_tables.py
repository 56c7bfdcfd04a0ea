"""A comparison of methods as Markdown, as CSV, and as tables of the HTML report."""

from __future__ import annotations

import math
from typing import Any

from d2_smallobj.metrics.summary import split_headline
from d2_smallobj.report.page_tables import PageTable, TableCell, TableColumn, text_cell
from d2_smallobj.statistics.comparison import Comparison, PairedDifference
from d2_smallobj.statistics.intervals import Interval, few_instances_warnings
from d2_smallobj.statistics.pairing import Difference
from d2_smallobj.statistics.ranking import format_rank_table
from d2_smallobj.utils.files import csv_text
from d2_smallobj.utils.tables import markdown_table, number

_SIGNIFICANT = 0.05
_CSV_COLUMNS = (
    *("kind", "method", "other", "figure", "other_figure"),
    *("value", "low", "high", "rank", "p_value", "p_adjusted"),
)


def format_comparison(comparison: Comparison) -> str:
    """Lay out a comparison as Markdown: figures, paired differences, ranks, warnings."""
    level = f"{100 * comparison.level:g} %"
    sections = [_figures(comparison, level)]
    if comparison.differences:
        sections.append(_differences(comparison, level))
    ranks = comparison.ranks.only(split_headline(comparison.ranks.figures)[0])
    sections.append(f"## Ranks\n\n{format_rank_table(ranks)}")
    warnings = [*few_instances_warnings(comparison.few_instances), *comparison.remarks]
    if warnings:
        sections.append("## Beware\n\n" + "\n".join(f"- {line}" for line in warnings))
    return "\n\n".join(sections) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """Write a comparison as one long table.

    Returns:
        CSV with a header; ``kind`` is ``figure`` (value, ends, rank of a method), ``difference``
        (``method`` minus ``other``), ``spearman`` or ``kendall`` (between ``figure`` and
        ``other_figure``). Numbers keep every bit; an undefined one is empty.
    """
    rows: list[dict[str, Any]] = []
    ranks = comparison.ranks
    for (name, figures), places in zip(comparison.intervals.items(), ranks.ranks.tolist()):
        for (figure, interval), rank in zip(figures.items(), places):
            row = {"kind": "figure", "method": name, "figure": figure, "rank": rank}
            rows.append({**row, **_values(interval)})
    for one in comparison.differences:
        row = {"kind": "difference", "method": one.second, "other": one.first}
        p_values = {"p_value": one.difference.p_value, "p_adjusted": one.p_adjusted}
        rows.append({**row, "figure": one.figure, **_values(one.difference), **p_values})
    for kind, matrix in (("spearman", ranks.spearman), ("kendall", ranks.kendall)):
        for place, figure in enumerate(ranks.figures):
            for other, value in zip(ranks.figures[:place], matrix[place].tolist()):
                row = {"kind": kind, "figure": other, "other_figure": figure}
                rows.append({**row, "value": value})
    lines = [[_cell(row.get(column, "")) for column in _CSV_COLUMNS] for row in rows]
    return csv_text(_CSV_COLUMNS, lines)


def difference_table(comparison: Comparison) -> PageTable:
    """Paired differences of mIoU and IA-mIoU, a row for each pair of methods."""
    figures = split_headline(dict.fromkeys(one.figure for one in comparison.differences))[0]
    pairs: dict[str, dict[str, PairedDifference]] = {}
    for one in comparison.differences:
        pairs.setdefault(f"{one.second} − {one.first}", {})[one.figure] = one
    rows = [
        [text_cell(pair), *(_difference_cell(found[name], spanned=True) for name in figures)]
        for pair, found in pairs.items()
    ]
    columns = [TableColumn("Methods", text=True), *map(TableColumn, figures)]
    return PageTable("paired", "Differences between methods", columns, rows)


def p_value_table(comparison: Comparison) -> PageTable:
    """All paired differences with intervals and p-values."""
    columns = [
        TableColumn("Figure", text=True),
        TableColumn("Methods", text=True),
        TableColumn("difference", hint="percentage points"),
        TableColumn("interval", text=True),
        TableColumn("p", hint="permutation test on the same images, two-sided"),
        TableColumn("p adjusted", hint="Holm; mIoU and IA-mIoU apart from the other figures"),
    ]
    rows = []
    for one in comparison.differences:
        p, adjusted, span = one.difference.p_value, one.p_adjusted, _span(one.difference)
        row = [text_cell(one.figure), text_cell(f"{one.second} − {one.first}")]
        row += [_difference_cell(one), TableCell(span or "–", one.difference.low if span else "")]
        row.append(TableCell(_probability(p), p))
        row.append(TableCell(_probability(adjusted), adjusted, bold=adjusted < _SIGNIFICANT))
        rows.append(row)
    caption = "Differences in percentage points, intervals and p-values"
    return PageTable("paired-all", caption, columns, rows)


def _figures(comparison: Comparison, level: str) -> str:
    """Lay out every method's figures."""
    tables = []
    for names in split_headline(comparison.ranks.figures):
        rows = [
            [method, *(_interval(figures[name]) for name in names)]
            for method, figures in comparison.intervals.items()
        ]
        tables.append(markdown_table(["method", *names], rows))
    return (
        f"## Figures\n\nPercent, with {level} intervals (percentile bootstrap over"
        f" {comparison.images} images, {comparison.samples} resamples, seed {comparison.seed}).\n\n"
        + "\n\n".join(tables)
    )


def _differences(comparison: Comparison, level: str) -> str:
    """Lay out the paired differences."""
    rows = [
        [
            f"{item.second} − {item.first}",
            item.figure,
            number(item.difference.estimate, "+.2f"),
            _ends(item.difference),
            number(item.difference.p_value, ".4f"),
            number(item.p_adjusted, ".4f"),
        ]
        for item in comparison.differences
    ]
    figures = dict.fromkeys(item.figure for item in comparison.differences)
    headline, further = (
        sum(
            one.figure in names and not math.isnan(one.p_adjusted) for one in comparison.differences
        )
        for names in split_headline(figures)
    )
    return (
        "## Paired differences\n\nPercentage points, on the same resampled images. p: two-sided,"
        " by swapping images between the two methods at random; adjusted: for"
        f" {headline} tests (Holm) of mIoU and IA-mIoU, and for {further} of the other figures.\n\n"
        + markdown_table(
            ["methods", "figure", "difference", f"{level} interval", "p", "p adjusted"],
            rows,
            text_columns=2,
        )
    )


def _interval(found: Interval) -> str:
    """A figure and its interval, if any: ``45.21 [40.33, 50.29]``."""
    return number(found.estimate) + ("" if math.isnan(found.low) else f" {_ends(found)}")


def _ends(found: Interval | Difference) -> str:
    return "-" if math.isnan(found.low) else f"[{found.low:.2f}, {found.high:.2f}]"


def _values(found: Interval | Difference) -> dict[str, float]:
    return {"value": found.estimate, "low": found.low, "high": found.high}


def _cell(value: str | float) -> str | float:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _difference_cell(one: PairedDifference, *, spanned: bool = False) -> TableCell:
    """The difference, bold where it is significant: an undefined p-value never is."""
    gap = one.difference.estimate
    below = _span(one.difference) if spanned else ""
    return TableCell(_signed(gap), gap, below=below, bold=one.p_adjusted < _SIGNIFICANT)


def _span(gap: Difference) -> str:
    """The interval of a difference; empty where it is undefined."""
    return "" if math.isnan(gap.low) else f"{_signed(gap.low)} to {_signed(gap.high)}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def _probability(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
