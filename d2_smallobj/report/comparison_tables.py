"""A comparison of methods as Markdown, as CSV, and as tables of the HTML report."""

from __future__ import annotations

import csv
import io
import math

from d2_smallobj.metrics.summary import split_headline
from d2_smallobj.report.page_tables import PageTable, TableCell, TableColumn, text_cell
from d2_smallobj.statistics.comparison import Comparison, PairedDifference
from d2_smallobj.statistics.intervals import Interval, few_instances_warnings
from d2_smallobj.statistics.ranking import format_rank_table
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


def format_interval(interval: Interval) -> str:
    """Write a figure and its interval, if any: ``45.21 [40.33, 50.29]``."""
    text = number(interval.estimate)
    return text + ("" if math.isnan(interval.low) else f" {_ends(interval.low, interval.high)}")


def comparison_csv(comparison: Comparison) -> str:
    """Write a comparison as one long table.

    Returns:
        CSV with a header; ``kind`` is ``figure`` (value, ends, rank of a method), ``difference``
        (``method`` minus ``other``), ``spearman`` or ``kendall`` (between ``figure`` and
        ``other_figure``). Numbers keep every bit; an undefined one is empty.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    ranks = comparison.ranks
    for row, (name, figures) in enumerate(comparison.intervals.items()):
        for column, (figure, interval) in enumerate(figures.items()):
            cells = _cells(interval.estimate, interval.low, interval.high)
            rank = _cell(float(ranks.ranks[row, column]))
            writer.writerow(
                {"kind": "figure", "method": name, "figure": figure, "rank": rank, **cells}
            )
    for item in comparison.differences:
        gap = item.difference
        writer.writerow(
            {
                **{"kind": "difference", "method": item.second, "other": item.first},
                **{"figure": item.figure, **_cells(gap.estimate, gap.low, gap.high)},
                **{"p_value": _cell(gap.p_value), "p_adjusted": _cell(item.p_adjusted)},
            }
        )
    for kind, matrix in (("spearman", ranks.spearman), ("kendall", ranks.kendall)):
        for row, figure in enumerate(ranks.figures):
            for column, other in enumerate(ranks.figures[:row]):
                value = _cell(float(matrix[row, column]))
                writer.writerow(
                    {"kind": kind, "figure": other, "other_figure": figure, "value": value}
                )
    return text.getvalue()


def difference_table(comparison: Comparison) -> PageTable:
    """Paired differences of mIoU and IA-mIoU, a row for each pair of methods."""
    figures = split_headline(dict.fromkeys(one.figure for one in comparison.differences))[0]
    pairs: dict[str, dict[str, PairedDifference]] = {}
    for one in comparison.differences:
        pairs.setdefault(f"{one.second} − {one.first}", {})[one.figure] = one
    rows = []
    for pair, found in pairs.items():
        cells = (_difference_cell(found[name], below=_span(found[name])) for name in figures)
        rows.append([text_cell(pair), *cells])
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
        gap, adjusted, span = one.difference, one.p_adjusted, _span(one)
        rows.append(
            [
                text_cell(one.figure),
                text_cell(f"{one.second} − {one.first}"),
                _difference_cell(one),
                TableCell(span or "–", gap.low if span else ""),
                TableCell(_probability(gap.p_value), gap.p_value),
                TableCell(_probability(adjusted), adjusted, bold=adjusted < _SIGNIFICANT),
            ]
        )
    caption = "Differences in percentage points, intervals and p-values"
    return PageTable("paired-all", caption, columns, rows)


def _figures(comparison: Comparison, level: str) -> str:
    """Lay out every method's figures."""
    tables = []
    for names in split_headline(comparison.ranks.figures):
        rows = [
            [method, *(format_interval(figures[name]) for name in names)]
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
            _ends(item.difference.low, item.difference.high),
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


def _ends(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"


def _cells(value: float, low: float, high: float) -> dict[str, str]:
    return {"value": _cell(value), "low": _cell(low), "high": _cell(high)}


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _difference_cell(one: PairedDifference, below: str = "") -> TableCell:
    """The difference, bold where it is significant: an undefined p-value never is."""
    gap = one.difference.estimate
    return TableCell(_signed(gap), gap, below=below, bold=one.p_adjusted < _SIGNIFICANT)


def _span(one: PairedDifference) -> str:
    """The interval of a difference; empty where it is undefined."""
    low, high = one.difference.low, one.difference.high
    return "" if math.isnan(low) else f"{_signed(low)} to {_signed(high)}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def _probability(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
