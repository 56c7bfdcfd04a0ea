"""No text enters a page as anything but text; tables have what sorting needs."""

import html.parser
import math

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from d2_smallobj.report.page import percent, template_environment, thousands
from d2_smallobj.report.page_tables import (
    PageTable,
    TableColumn,
    best_positions,
    count_cell,
    figure_cell,
    text_cell,
)

_TEXT = st.text(st.characters(blacklist_categories=("Cc", "Cn", "Cs")), max_size=40)


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes, and text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def render(template, **values):
    return template_environment().from_string(template).render(values)


CELL = template_environment().from_string('<td title="{{ attribute }}">{{ text }}</td>')


@settings(max_examples=200, deadline=None)
@given(_TEXT, _TEXT)
def test_text_and_attributes_come_back_as_they_were(text, attribute):
    reader = Reader()
    reader.feed(CELL.render(text=text, attribute=attribute))
    reader.close()
    assert reader.tags == [("td", {"title": attribute})]
    assert reader.text == text


@pytest.mark.parametrize("text", ["<script>", "</td>", '"', "'", "&amp;", "a\x00b", "\ud800"])
def test_escaped_text_holds_nothing_special(text):
    for template in ("{{ text }}", "{% set copy %}{{ text }}{% endset %}{{ copy }}"):
        escaped = render(template, text=text)
        assert not set("<>\"'\x00\ud800") & set(escaped)
        escaped.encode("utf-8")


def test_only_markup_enters_as_it_is():
    assert render("{{ value }}", value=Markup("<b>&lt;</b>")) == "<b>&lt;</b>"
    for value, expected in ((None, ""), (3, "3"), (["<"], "[&#39;&lt;&#39;]")):
        assert render("{{ value }}", value=value) == expected


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'nothing' is undefined"):
        render("{{ nothing }}")


def render_table(columns, rows, **options):
    macros = template_environment().get_template("macros.html.j2").module
    return str(macros.sortable_table(PageTable("t", "Caption", columns, rows, **options)))


def test_a_table_has_what_sorting_needs():
    columns = [TableColumn("Class", text=True), TableColumn("IoU")]
    rows = [[text_cell("b"), figure_cell(12.34)], [text_cell("a"), figure_cell(math.nan)]]
    table = render_table(columns, rows)
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
    assert "<select" not in render_table(columns, rows, choices=["one"])
    chosen = render_table(columns, rows, choices=["one", "two"], chosen="two")
    assert '<option value="two" selected>two</option>' in chosen
    assert chosen.count(" selected") == 1
    assert chosen.count('data-group="one"') == 2


def test_best():
    for values, lowest, expected in (
        ([1.0, 3.0, 2.0], False, {1}),
        ([1.0, 3.0, 3.0], False, {1, 2}),
        ([1.0, 3.0, math.nan], True, {0}),
        ([3.0, math.nan], False, set()),
        ([3.0, 3.0], False, set()),
    ):
        assert best_positions(values, lowest=lowest) == expected


def test_notes_and_counts():
    column = [TableColumn("x")]
    assert "<strong>5.0</strong>" in render_table(column, [[figure_cell(5.0, bold=True)]])
    noted = render_table(column, [[figure_cell(5.0, note="n=3")]])
    assert '<small class="few">n=3 </small>5.0' in noted
    assert (count_cell(math.nan).text, count_cell(1200.0).text) == ("–", "1,200")
    assert [percent(12.345), percent(math.nan), percent(12.5, 0)] == ["12.3", "–", "12"]
    assert thousands(1234567.0) == "1,234,567"
