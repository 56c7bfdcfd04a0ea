"""Sortable tables and what stands in their cells."""

from __future__ import annotations

import math

import pytest

from d2_smallobj.report.html_tables import (
    Cell,
    Column,
    best_of,
    count_cell,
    figure_cell,
    sortable_table,
    text_cell,
)


def test_a_table_has_what_sorting_needs():
    columns = [Column("Class", text=True), Column("IoU")]
    rows = [[text_cell("b"), figure_cell(12.34)], [text_cell("a"), figure_cell(math.nan)]]
    table = sortable_table("Caption", columns, rows, identifier="t")
    assert table.count('aria-sort="none"') == 2
    assert table.count('<button type="button"') == 2
    assert '<th scope="row" class="text" data-value="b">b</th>' in table
    assert '<td class="number heat" data-value="12.34" style="--v:12">12.3</td>' in table
    # Undefined: a dash that sorts last, with no shade.
    assert '<td class="number" data-value="">–</td>' in table
    assert "<caption>Caption</caption>" in table


def test_a_chooser_only_where_there_is_something_to_choose():
    columns = [Column("Class", text=True), Column("x", group="one"), Column("y", group="two")]
    rows = [[text_cell("a"), count_cell(1), count_cell(2)]]
    plain = sortable_table("c", columns, rows, identifier="t", choose=["one"])
    assert "<select" not in plain
    chosen = sortable_table("c", columns, rows, identifier="t", choose=["one", "two"], chosen="two")
    assert '<option value="two" selected>two</option>' in chosen
    assert chosen.count(" selected") == 1
    assert chosen.count('data-group="one"') == 2


def test_rows_must_fit():
    with pytest.raises(ValueError, match="a row must have 1 cells, got 2"):
        sortable_table("c", [Column("x")], [[count_cell(1), count_cell(2)]], identifier="t")


def test_best():
    assert best_of([1.0, 3.0, 2.0]) == {1}
    assert best_of([1.0, 3.0, 3.0]) == {1, 2}
    assert best_of([1.0, 3.0, math.nan], lowest=True) == {0}
    assert best_of([3.0, math.nan]) == set()
    assert best_of([3.0, 3.0]) == set()
    assert "<strong>5.0</strong>" in sortable_table(
        "c", [Column("x")], [[figure_cell(5.0, best=True)]], identifier="t"
    )


def test_notes_and_counts():
    note = sortable_table("c", [Column("x")], [[figure_cell(5.0, note="n=3")]], identifier="t")
    assert '<small class="few">n=3 </small>5.0' in note
    assert count_cell(math.nan) == Cell("–", count_cell(math.nan).value)
    assert count_cell(1200.0).shown == "1,200"
