"""The size curve, tracks, bars, and colours that colour-blind readers can tell apart."""

from __future__ import annotations

import itertools
import math
import re
from importlib import resources
from xml.etree import ElementTree

import numpy as np
import pytest

from d2_smallobj.report.html_marks import NUM_COLOURS, interval_track, marker, stacked_bar, swatch
from d2_smallobj.report.size_curve_chart import Line, line_chart

_CSS = (resources.files("d2_smallobj.report") / "html_assets" / "report.css").read_text("utf-8")


def chart(lines, **options):
    options = {"title": "t", "bounds": [("S", 0.0), ("L", 32.0)], **options}
    return [
        ElementTree.fromstring(svg)
        for svg in re.findall("<svg.*?</svg>", line_chart(lines, **options))
    ]


def test_the_curve_lies_where_its_values_are():
    x = np.array([8.0, 16.0, 32.0, 64.0, 128.0])
    y = np.array([0.0, 25.0, 50.0, 75.0, 100.0])
    wide, narrow = chart([Line("m", 0, x, y, y - 5, y + 5)])
    for svg, width, height in ((wide, 860, 400), (narrow, 400, 340)):
        assert svg.get("viewBox") == f"0 0 {width} {height}"
        path = svg.find("path").get("d")
        points = np.array([[float(v) for v in p.split(",")] for p in re.split("[ML]", path)[1:]])
        # Even steps in the logarithm of the size, and in percent, from corner to corner.
        np.testing.assert_allclose(np.diff(points[:, 0]), (width - 56) / 4, atol=0.11)
        np.testing.assert_allclose(np.diff(points[:, 1]), -(height - 74) / 4, atol=0.11)
        np.testing.assert_allclose(points[0], [44, height - 48], atol=0.11)
        labels = [text.text for text in svg.iter("text")]
        assert {"8", "16", "32", "64", "128", "0", "100", "S", "L"} <= set(labels)
        band = svg.find("polygon[@class='band']").get("points").split()
        assert len(band) == 2 * len(x)


def test_undefined_points_break_the_curve():
    x, y = np.array([8.0, 16.0, 32.0, 64.0]), np.array([10.0, math.nan, 30.0, 40.0])
    wide, _ = chart([Line("m", 0, x, y)])
    assert re.findall("[ML]", wide.find("path").get("d")) == ["M", "M", "L"]
    nothing, _ = chart([Line("m", 0, x, np.full(4, np.nan), y, y)])
    assert nothing.find("path") is None


def test_the_histogram_counts_every_instance_once():
    sides = np.array([8.0, 8.0, 9.0, 30.0, 64.0])
    x = np.array([8.0, 64.0])
    wide, _ = chart([Line("m", 0, x, np.array([1.0, 2.0]))], counts=sides)
    bars = wide.findall("rect")
    told = [int(bar.find("title").text.split()[0]) for bar in bars]
    assert sum(told) == len(sides)
    assert all(float(bar.get("width")) > 0 and float(bar.get("height")) > 0 for bar in bars)


def test_curves_of_almost_one_size_are_drawn():
    wide, _ = chart([Line("m", 0, np.array([10.0, 10.001]), np.array([1.0, 2.0]))])
    assert "nan" not in ElementTree.tostring(wide).decode()


def test_interval_track():
    track = interval_track(1, 50.0, (-3.0, 120.0), 'a "label"')
    assert "left:0.00%;width:100.00%;background:var(--m1)" in track
    assert 'class="dot" style="left:50.00%"' in track
    assert 'aria-label="a &quot;label&quot;"' in track
    assert "interval" not in interval_track(0, 50.0, None, "x")
    assert "dot" not in interval_track(0, math.nan, None, "x")


def test_stacked_bar():
    bar = stacked_bar({"good": 94.5, "missed": 5.5}, {"good": 189, "missed": 11}, "m")
    assert ">94</span>" in bar
    # Too narrow for its number, which hovering tells.
    assert "missed: 5.5 % (11 instances)" in bar
    assert ">6</span>" not in bar
    assert 'aria-label="m: good 94.5 %, missed 5.5 %"' in bar
    assert "no instances" in stacked_bar({"good": math.nan}, {"good": 0}, "m")


def test_methods_differ_in_shape_as_well_as_colour():
    shapes = {re.sub(r"var\(--m\d\)", "", marker(position, 0, 0, 1)) for position in range(8)}
    assert len(shapes) == 8
    assert swatch(0) == swatch(NUM_COLOURS)


def colours(block):
    """Variables of a CSS block."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def linear(code):
    values = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG contrast ratio."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted([float(linear(one) @ weights), float(linear(other) @ weights)])
    return (high + 0.05) / (low + 0.05)


# Viénot, Brettel and Mollon (1999), on linear RGB: what protanopes and deuteranopes see.
_BLIND = {
    "protan": [[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.004, -0.004, 1.0]],
    "deutan": [[0.2928, 0.7072, 0.0], [0.2928, 0.7072, 0.0], [-0.0223, 0.0223, 1.0]],
}


def lab(rgb):
    """CIE L*a*b* of linear RGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = np.clip(xyz @ rgb, 0, None) / np.array([0.9505, 1.0, 1.089])
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def blocks():
    light = colours(_CSS[: _CSS.index("@media")])
    dark = re.findall(r"\{\s*(--page: #0[^}]*)\}", _CSS)
    return {"light": light, "dark": colours(dark[0]), "chosen dark": colours(dark[1])}


def test_dark_by_choice_is_dark_by_the_system():
    themes = blocks()
    assert themes["dark"] == themes["chosen dark"]
    assert set(themes["dark"]) == set(themes["light"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_stand_out(theme):
    found = blocks()[theme]
    for ground in ("page", "surface"):
        for text in ("text", "muted", "accent"):
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
        for position in range(NUM_COLOURS):
            assert contrast(found[f"m{position}"], found[ground]) >= 3, (position, ground)
    assert contrast(found["warn"], found["warn-surface"]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", sorted(_BLIND))
def test_the_first_methods_are_told_apart_by_colour_blind_readers(theme, kind):
    found = blocks()[theme]
    seen = [lab(np.array(_BLIND[kind]) @ linear(found[f"m{position}"])) for position in range(3)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20


@pytest.mark.parametrize("kind", sorted(_BLIND))
def test_outcomes_beside_each_other_are_told_apart_by_colour_blind_readers(kind):
    found = dict(re.findall(r"\.o-(\w+) \{[^}]*background(?:-color)?: (#[0-9a-f]{6})", _CSS))
    order = ["good", "partial", "fragmented", "merged", "missed"]
    assert set(found) == set(order)
    seen = [lab(np.array(_BLIND[kind]) @ linear(found[name])) for name in order]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20
