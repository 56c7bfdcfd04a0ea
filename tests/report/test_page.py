"""No text enters a page as anything but text."""

from __future__ import annotations

import html.parser

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from d2_smallobj.report.page import percent, template_environment, thousands

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


@pytest.mark.parametrize(
    ("value", "expected"),
    [(Markup("<b>&lt;</b>"), "<b>&lt;</b>"), (None, ""), (3, "3"), (["<"], "[&#39;&lt;&#39;]")],
)
def test_only_markup_enters_as_it_is(value, expected):
    assert render("{{ value }}", value=value) == expected


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'nothing' is undefined"):
        render("{{ nothing }}")


def test_numbers():
    assert (percent(12.345), percent(float("nan")), percent(12.5, 0)) == ("12.3", "–", "12")
    assert thousands(1234567.0) == "1,234,567"
