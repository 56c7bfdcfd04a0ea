"""Sortable tables and the content of their cells."""

from __future__ import annotations

import math

import pytest

from d2_smallobj.report.page import template_environment
from d2_smallobj.report.page_tables import (
    PageTable,
    TableColumn,
    best_positions,
    count_cell,
    figure_cell,
    text_cell,
)


def render(columns, rows, **options):
    macros = template_environment().get_template("macros.html.j2").module
    return str(macros.sortable_table(PageTable("t", "Caption", columns, rows, **options)))


def test_a_table_has_what_sorting_needs():
    columns = [TableColumn("Class", text=True), TableColumn("IoU")]
    rows = [[text_cell("b"), figure_cell(12.34)], [text_cell("a"), figure_cell(math.nan)]]
    table = render(columns, rows)
    assert table.count('aria-sort="none"') == 2
    assert table.count('<button type="button"') == 2
    assert '<th scope="row" class="text" data-value="b">b</th>' in table
    assert '<td class="number heat" data-value="12.34" style="--v:12">12.3</td>' in table
    # Undefined: a dash that sorts last, with no shade.
    assert '<td class="number" data-value="">–</td>' in table
    assert "<caption>Caption</caption>" in table


def test_a_chooser_only_where_there_is_something_to_choose():
    choices = [TableColumn("x", group="one"), TableColumn("y", group="two")]
    columns = [TableColumn("Class", text=True), *choices]
    rows = [[text_cell("a"), count_cell(1), count_cell(2)]]
    assert "<select" not in render(columns, rows, choices=["one"])
    chosen = render(columns, rows, choices=["one", "two"], chosen="two")
    assert '<option value="two" selected>two</option>' in chosen
    assert chosen.count(" selected") == 1
    assert chosen.count('data-group="one"') == 2


@pytest.mark.parametrize(
    ("values", "lowest", "expected"),
    [
        ([1.0, 3.0, 2.0], False, {1}),
        ([1.0, 3.0, 3.0], False, {1, 2}),
        ([1.0, 3.0, math.nan], True, {0}),
        ([3.0, math.nan], False, set()),
        ([3.0, 3.0], False, set()),
    ],
)
def test_best(values, lowest, expected):
    assert best_positions(values, lowest=lowest) == expected


def test_notes_and_counts():
    column = [TableColumn("x")]
    assert "<strong>5.0</strong>" in render(column, [[figure_cell(5.0, bold=True)]])
    noted = render(column, [[figure_cell(5.0, note="n=3")]])
    assert '<small class="few">n=3 </small>5.0' in noted
    assert (count_cell(math.nan).text, count_cell(1200.0).text) == ("–", "1,200")
