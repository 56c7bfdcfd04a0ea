"""The size curve, interval tracks and stacked bars."""

import math
import re
import types
from xml.etree import ElementTree

import numpy as np

from d2_smallobj.report.page import template_environment
from d2_smallobj.report.size_curve_chart import CurveLine, SizeCurveChart

BOUNDS = [("S", 0.0), ("L", 32.0)]


def macro(name, *arguments):
    module = template_environment().get_template("macros.html.j2").module
    return str(getattr(module, name)(*arguments))


def line(x, y, low=math.nan, high=math.nan):
    x, y = np.array(x, float), np.array(y, float)
    return CurveLine("m", 0, x, y, y + low, y + high)


def chart(lines, sides=(), width=860, height=400):
    drawn = macro("size_curve", [SizeCurveChart("wide", width, height, lines, BOUNDS, sides)])
    return ElementTree.fromstring(re.search("<svg.*</svg>", drawn, re.DOTALL)[0])


def test_the_curve_lies_where_its_values_are():
    x = np.array([8.0, 16.0, 32.0, 64.0, 128.0])
    y = np.array([0.0, 25.0, 50.0, 75.0, 100.0])
    for width, height in ((860, 400), (400, 340)):
        svg = chart([line(x, y, -5, 5)], width=width, height=height)
        assert svg.get("viewBox") == f"0 0 {width} {height}"
        path = svg.find("path[@class='curve']").get("d")
        points = np.array([[float(v) for v in p.split(",")] for p in re.split("[ML]", path)[1:]])
        # Even steps in the logarithm of the size, and in percent, from corner to corner.
        np.testing.assert_allclose(np.diff(points[:, 0]), (width - 56) / 4, atol=0.11)
        np.testing.assert_allclose(np.diff(points[:, 1]), -(height - 74) / 4, atol=0.11)
        np.testing.assert_allclose(points[0], [44, height - 48], atol=0.11)
        labels = [text.text for text in svg.iter("text")]
        assert {"8", "16", "32", "64", "128", "0", "100", "S", "L"} <= set(labels)
        band = svg.find("polygon[@class='band']").get("points").split()
        assert len(band) == 2 * len(x)
        markers = [title.text for title in svg.iterfind("path/title")]
        assert markers[::4] == ["m: 0.0 % at 8 px", "m: 100.0 % at 128 px"]


def test_undefined_points_break_the_curve():
    x = [8, 16, 32, 64]
    path = chart([line(x, [10, math.nan, 30, 40])]).find("path").get("d")
    assert re.findall("[ML]", path) == ["M", "M", "L"]
    assert chart([line(x, [math.nan] * 4)]).find("path") is None
    # Curves of almost one size are drawn.
    assert "nan" not in ElementTree.tostring(chart([line([10, 10.001], [1, 2])])).decode()


def test_the_histogram_counts_every_instance_once():
    sides = np.array([8.0, 8.0, 9.0, 30.0, 64.0])
    bars = chart([line([8, 64], [1, 2])], sides).findall("rect")
    assert sum(int(bar.find("title").text.split()[0]) for bar in bars) == len(sides)
    assert all(float(bar.get("width")) > 0 and float(bar.get("height")) > 0 for bar in bars)


def test_interval_track():
    method = types.SimpleNamespace(position=9)
    track = macro("interval_track", method, 50.0, (-3.0, 120.0), 'a "label"')
    assert "left:0.00%;width:100.00%;background:var(--m1)" in track
    assert 'class="dot" style="left:50.00%"' in track
    assert 'aria-label="a &#34;label&#34;"' in track
    assert "interval" not in macro("interval_track", method, 50.0, None, "x")
    assert "dot" not in macro("interval_track", method, math.nan, None, "x")


def test_stacked_bar():
    row = {"good": {"instances": 189}, "missed": {"instances": 11}}
    bar = macro("stacked_bar", {"good": 94.5, "missed": 5.5}, row, "m")
    assert ">94</span>" in bar
    # Too narrow for its number, which hovering tells.
    assert "missed: 5.5 % (11 instances)" in bar
    assert ">6</span>" not in bar
    assert 'aria-label="m: good 94.5 %, missed 5.5 %"' in bar
    assert "no instances" in macro("stacked_bar", {"good": math.nan}, row, "m")
