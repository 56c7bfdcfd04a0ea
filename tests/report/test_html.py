"""The report as a file: what it shows, and that it asks nobody for anything."""

import base64
import dataclasses
import hashlib
import html.parser
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from d2_smallobj.metrics import parse_size_bins
from d2_smallobj.report.html import render_report, write_report
from d2_smallobj.statistics.comparison import compare_runs

_VOID = {"meta", "img", "br", "input"}
_LOADING = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order and collects what a page holds."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.text = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        kind = self.open[-1] if self.open else ""
        self.text[kind] = self.text.get(kind, "") + data

    @property
    def words(self):
        """All text but styles and scripts."""
        return " ".join(text for tag, text in self.text.items() if tag not in ("style", "script"))


@pytest.fixture(scope="module")
def page(scenes):
    """Three methods with a comparison."""
    return render_report(scenes, comparison=compare_runs(scenes, samples=100))


def test_nothing_outside_is_asked_for(page, hostile):
    for text in (page, render_report(hostile)):
        parsed = Page(text)
        for tag, name, value in parsed.attributes:
            if name in _LOADING:
                assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value[:80])
            assert "url(" not in value
        for part in ("style", "script"):
            assert not re.search(r"url\(|@import|https?:|//\w|fetch|XMLHttp", parsed.text[part])
        assert not re.search("https?://", text)
        # The policy forbids the network and every other script.
        policy = next(v for t, n, v in parsed.attributes if t == "meta" and "default-src" in v)
        digest = base64.b64encode(hashlib.sha256(parsed.text["script"].encode()).digest()).decode()
        assert policy.startswith("default-src 'none'; img-src data:;")
        assert f"script-src 'sha256-{digest}';" in policy
        assert parsed.tags.count("script") == 1


def test_hostile_names_are_shown_and_nothing_else(hostile, page):
    text = render_report(hostile, comparison=compare_runs(hostile, samples=50), title="<i>&")
    parsed = Page(text)
    assert set(parsed.tags) <= set(Page(page).tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.tags.count("script") == 1
    for name in (*hostile[0].class_names, hostile[0].name, *hostile[0].images):
        assert name in parsed.words
    assert "<i>&" in parsed.words


def test_the_headline_figures_and_intervals_are_there(scenes, page):
    keys = ("mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_S", "IA-mIoU_M", "IA-mIoU_L")
    for run in scenes:
        for key in keys:
            assert f"{run.name}: {key} {run.figures[key]:.1f}, interval [" in page
    # The best of each figure is bold, and it is named on top.
    best = max(scenes, key=lambda run: run.figures["mIoU"])
    assert f"<strong>{best.figures['mIoU']:.1f}</strong>" in page
    assert f"{best.name} ({best.figures['mIoU']:.1f})" in page


def test_all_sections_are_there_and_linked(page):
    parsed = Page(page)
    ids = {value for _, name, value in parsed.attributes if name == "id"}
    links = [value[1:] for tag, name, value in parsed.attributes if (tag, name) == ("a", "href")]
    assert " ".join(links) == "glance compared sizes outcomes worst blobs classes notes"
    assert set(links) <= ids
    assert len(ids) == sum(name == "id" for _, name, _ in parsed.attributes)
    assert parsed.tags.count("table") == 8


def table_of(page, name):
    return page[page.index(f'<table id="{name}"') :].partition("</table>")[0]


def test_class_figures_are_those_of_the_run(scenes):
    run = scenes[0]
    page = render_report([run], max_thumbnails=0)
    table = table_of(page, "class-table")
    for name in run.class_names[1:]:
        row = re.search(f'<tr><th scope="row"[^>]*>{name}</th>(.*?)</tr>', table).group(1)
        values = re.findall(r'data-value="([^"]*)"', row)
        keys = ["IA-IoU", "IA-IoU_S", "IA-IoU_M", "IA-IoU_L", "IoU"]
        expected = [run.figures[f"{key}-{name}"] for key in keys]
        shown = [float(value) if value else np.nan for value in values[:5]]
        np.testing.assert_array_equal(shown, expected)
    # Cells with few instances are marked and listed.
    cells = [(name, size) for name in run.class_names[1:] for size in run.size_bins]
    numbers = {cell: int(run.figures[f"instances_{cell[1]}-{cell[0]}"]) for cell in cells}
    few = {cell: number for cell, number in numbers.items() if 0 < number < 10}
    assert few
    for (name, size), number in few.items():
        sentence = page.split(f"IA-mIoU_{size} rests on fewer than 10 instances", 1)[1]
        assert f"{name} ({number})" in sentence.split(".", 1)[0]
        assert f'<small class="few">n={number} </small>' in page


def test_warnings(scenes):
    first, second = scenes[:2]
    assert "No intervals were computed" in render_report([first], max_thumbnails=0)
    intervals = {first.name: {"mIoU": (1.0, 0.5, 2.0)}}
    text = render_report([first], intervals=intervals, max_thumbnails=0)
    assert "No intervals were computed" not in text
    assert "[0.5, 2.0]" in text
    options = {**second.options, "mode": "official"}
    other = dataclasses.replace(second, images=[*second.images, "new"], options=options)
    first = dataclasses.replace(first, remarks=["3 predictions are not scored"])
    text = render_report([first, other], max_thumbnails=0)
    assert f"{first.name} and {second.name} were not scored on the same images (14 and 15" in text
    assert "different settings of mode: &#39;exact&#39; and &#39;official&#39;" in text
    assert f"<li>{first.name}: 3 predictions are not scored</li>" in text
    # Intervals of the run are the default, undefined ones are left out.
    run = dataclasses.replace(second, intervals={"mIoU": (5.0, 4.25, 6.25)})
    assert "[4.2, 6.2]" in render_report([run], max_thumbnails=0)
    found = {"mIoU": (50.0, float("nan"), float("nan")), "IA-mIoU": (1.0, None, None)}
    assert "interval [" not in render_report([run], intervals={run.name: found}, max_thumbnails=0)


def test_same_input_same_bytes(scenes, page):
    assert render_report(scenes, comparison=compare_runs(scenes, samples=100)) == page


def test_own_size_bins(scenes):
    relative = (
        "tiny objects (below 1 % of",
        "rest objects (from 1 % of the image)",
        "IA-mIoU_tiny",
    )
    pixels = ("below 10² px", "10² to 1,000 px", "from 1,000 px")
    for bins, texts in (("relative:tiny:0.01,rest:1", relative), ("A:100,B:1000,C:inf", pixels)):
        options = {**scenes[0].options, "size_bins": str(parse_size_bins(bins))}
        run = dataclasses.replace(scenes[0], options=options)
        page = render_report([run], max_thumbnails=1)
        assert all(text in page for text in texts)
        # Shares of the image have no place on an axis of pixels.
        assert ('class="bound"' in page) == (texts is pixels)


def test_a_data_set_without_instances(make_run):
    empty = np.zeros((20, 20), np.uint8)
    run = make_run("m", {"a": (empty, empty, empty)}, ["background", "thing"])
    text = render_report([run])
    assert "No curve: there are no objects" in text
    assert "There are no small objects (below 32² px) with an IoU below 0.5." in text
    assert text.count("no instances</span>") == 4
    assert "nan" not in Page(text).words.lower()
    nothing = render_report([make_run("m", {}, ["background", "thing"])])
    assert "0 images, 0 objects" in Page(nothing).words


def test_blobs_are_counted_beside(make_run):
    semantic, prediction = np.zeros((2, 50, 50), np.uint8)
    semantic[5:10, 5:10] = prediction[5:10, 5:10] = prediction[30:40, 30:40] = 1
    prediction[45:, 45:] = 2
    run = make_run("m", {"a": (prediction, semantic, semantic)}, ["background", "x", "y"])
    text = render_report([run])
    assert "2 false-positive components, 2.00 per image" in text
    assert re.findall(r'data-value="([^"]*)"', table_of(text, "blob-table")) == [
        *("all classes", "2.0", "2.0", "0.0", "0.0", "125.0"),
        *("x", "1.0", "1.0", "0.0", "0.0", "100.0"),
        *("y", "1.0", "1.0", "0.0", "0.0", "25.0"),
    ]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {}, "runs must hold at least one scored run, got none"),
        ({"name": "Coarse"}, {}, r"distinct names, got \['Coarse', 'Coarse'\]"),
        ({"class_names": ("x", "y")}, {}, r"must share their classes .*'Coarse' has.*'Fine' has"),
        ({"options": {"size_bins": "A:10,B:inf"}}, {}, "size bins .*'Fine' has A:10,B:inf"),
        ({}, {"intervals": {"x": {}}}, r"intervals: no run is called \['x'\]; the runs are"),
        ({}, {"max_thumbnails": -1}, "max_thumbnails must be >= 0, got -1"),
        ({}, {"level": 95}, "level must lie between 0 and 1, got 95"),
    ],
)
def test_runs_must_fit_together(scenes, change, options, message):
    first, second = scenes[:2]
    runs = [] if change is None else [first, dataclasses.replace(second, **change)]
    with pytest.raises(ValueError, match=message):
        render_report(runs, **options)


def test_writing_is_atomic(scenes, tmp_path, monkeypatch):
    target = tmp_path / "new" / "report.html"
    write_report(target, scenes[:1], max_thumbnails=0)
    before = target.read_bytes()
    assert before.startswith(b"<!DOCTYPE html>")
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"could not write .*report\.html: No space left"):
        write_report(target, scenes[:1], max_thumbnails=0)
    assert target.read_bytes() == before
    assert os.listdir(target.parent) == ["report.html"]


def test_nothing_heavy_is_imported(repository):
    code = (
        "import sys, d2_smallobj.report.html;"
        "assert not {'torch', 'detectron2', 'matplotlib'} & set(sys.modules);"
        # The tool and the drawings of the documentation do without torch, too.
        "sys.modules['torch'] = sys.modules['detectron2'] = None;"
        "sys.path[:0] = ['docs'];"
        "import d2_smallobj.commands.draw_sensitivity, draw_metric"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)
