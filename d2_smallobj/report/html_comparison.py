"""The report's section on paired differences between methods."""

from __future__ import annotations

import math

from d2_smallobj.metrics.summary import split_headline
from d2_smallobj.report.html_markup import Child, Markup, count, tag
from d2_smallobj.report.html_sections import section
from d2_smallobj.report.html_tables import Cell, Column, sortable_table, text_cell
from d2_smallobj.statistics.comparison import Comparison, PairedDifference

_SIGNIFICANT = 0.05


def compared(comparison: Comparison) -> Markup:
    """Paired differences of the methods: a row for every pair, and all numbers below."""
    figures = split_headline(dict.fromkeys(one.figure for one in comparison.differences))[0]
    pairs: dict[tuple[str, str], dict[str, PairedDifference]] = {}
    for one in comparison.differences:
        pairs.setdefault((one.second, one.first), {})[one.figure] = one
    rows = [
        [text_cell(f"{second} − {first}"), *(_difference_cell(found[name]) for name in figures)]
        for (second, first), found in pairs.items()
    ]
    lead = (
        f"Differences in percentage points, paired on the same {count(comparison.images)} images"
        f" so that difficult images cancel; {100 * comparison.level:g} % bootstrap intervals,"
        f" {count(comparison.samples)} resamples and permutations. Bold: the p-value is below"
        " 0.05 even when adjusted for the number of differences (Holm; the figures under “With"
        " p-values” that are not in this table are adjusted among themselves)."
    )
    short = sortable_table(
        "Differences between methods",
        [Column("Methods", text=True), *(Column(name) for name in figures)],
        rows,
        identifier="paired",
    )
    more = tag("details", tag("summary", "With p-values"), _difference_table(comparison))
    return section("compared", "Method against method", lead, short, more)


def _difference_cell(one: PairedDifference) -> Cell:
    gap = one.difference
    shown: list[Child] = [tag("strong" if _is_clear(one) else "span", _signed(gap.estimate))]
    if not math.isnan(gap.low):
        shown.append(tag("small", f"{_signed(gap.low)} to {_signed(gap.high)}", class_="span"))
    return Cell(shown, gap.estimate)


def _difference_table(comparison: Comparison) -> Markup:
    columns = [
        Column("Figure", text=True),
        Column("Methods", text=True),
        Column("difference", hint="percentage points"),
        Column("interval", text=True),
        Column("p", hint="permutation test on the same images, two-sided"),
        Column(
            "p adjusted",
            hint="Holm; mIoU and IA-mIoU apart from the other figures",
        ),
    ]
    rows = []
    for one in comparison.differences:
        gap = one.difference
        span = Cell("–", "")
        if not math.isnan(gap.low):
            span = Cell(f"{_signed(gap.low)} to {_signed(gap.high)}", gap.low)
        rows.append(
            [
                text_cell(one.figure),
                text_cell(f"{one.second} − {one.first}"),
                Cell(_signed(gap.estimate), gap.estimate, best=_is_clear(one)),
                span,
                Cell(_probability(gap.p_value), gap.p_value),
                Cell(_probability(one.p_adjusted), one.p_adjusted, best=_is_clear(one)),
            ]
        )
    caption = "Differences in percentage points, intervals and p-values"
    return sortable_table(caption, columns, rows, identifier="paired-all")


def _is_clear(one: PairedDifference) -> bool:
    return not math.isnan(one.p_adjusted) and one.p_adjusted < _SIGNIFICANT


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def _probability(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
