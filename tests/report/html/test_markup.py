"""No text enters the page as anything but text."""

from __future__ import annotations

import html.parser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.report.html_markup import Markup, count, escape, join, percent, tag

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


def read(markup):
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


@settings(max_examples=200, deadline=None)
@given(_TEXT, _TEXT)
def test_text_and_attributes_come_back_as_they_were(text, attribute):
    reader = read(tag("td", text, title=attribute))
    assert reader.tags == [("td", {"title": attribute})]
    assert reader.text == text


@pytest.mark.parametrize("text", ["<script>", "</td>", '"', "'", "&amp;", "a\x00b", "\ud800"])
def test_escaped_text_holds_nothing_special(text):
    escaped = escape(text)
    assert not set("<>\"'\x00\ud800") & set(escaped)
    escaped.encode("utf-8")


def test_markup_is_not_escaped_twice():
    inner = tag("b", "<")
    assert tag("p", inner, [inner, None], 3) == "<p><b>&lt;</b><b>&lt;</b>3</p>"
    assert escape(inner) is inner


def test_attributes():
    assert tag("input", disabled=True, hidden=False, value=0, title=None) == (
        '<input disabled value="0">'
    )
    assert tag("svg", viewBox="0 0 1 1", data_value="x", class_="y") == (
        '<svg viewBox="0 0 1 1" data-value="x" class="y"></svg>'
    )


def test_names_cannot_be_text():
    with pytest.raises(ValueError, match="name must be an element's name, got 'a b'"):
        tag("a b")
    with pytest.raises(ValueError, match="attributes must have names of HTML, got 'x y'"):
        tag("a", **{"x y": 1})
    with pytest.raises(ValueError, match="<br> cannot have content, got 'x'"):
        tag("br", "x")


def test_joining_plain_text_escapes_it():
    assert join(["<", Markup("<b>"), ("a", [1])]) == "&lt;<b>a1"


def test_numbers():
    assert (percent(12.345), percent(float("nan")), percent(12.5, 0)) == ("12.3", "–", "12")
    assert count(1234567.0) == "1,234,567"
