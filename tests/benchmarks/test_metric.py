"""The metric's benchmark: what is drawn, and what the yardstick counts."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest

from d2_smallobj.benchmarks import metric
from d2_smallobj.benchmarks.scenes import VOC_SIZE, draw_maps
from d2_smallobj.benchmarks.timing import race, slope
from d2_smallobj.metrics import match_image


def draw(seed):
    return draw_maps(np.random.default_rng(seed), *VOC_SIZE, 8)


def options(**changes):
    return argparse.Namespace(**{"images": 2, "crowded": 1, "rounds": 1, "seed": 0, **changes})


def test_images_are_seeded_and_have_void_borders():
    prediction, semantic, instances = draw(1)
    assert semantic.shape == (375, 500)
    for one, other in zip(draw(1), (prediction, semantic, instances)):
        assert np.array_equal(one, other)
    assert not np.array_equal(draw(2)[0], prediction)
    assert np.array_equal(semantic == 255, instances == 255)
    assert prediction.max() < 21
    # Wherever an instance meets something else there is void between.
    inside = (instances > 0) & (instances < 255)
    beside = (instances[:, 1:] != instances[:, :-1]) & inside[:, 1:]
    assert np.all(instances[:, :-1][beside] == 255)


def test_the_yardstick_counts_what_ours_counts():
    maps = draw(3)
    expected = match_image(*maps, num_classes=21)
    assert np.array_equal(metric.bincount(maps), expected.confusion)
    assert np.array_equal(metric.ours(maps).confusion, expected.confusion)
    assert len(expected.table) > 2


def test_the_first_function_is_the_yardstick():
    called = []
    functions = {"base": lambda case: called.append(case), "other": lambda case: sum(range(1000))}
    rows = race([1, 2], functions, rounds=3)
    assert called == [1, 2] * 3
    assert (rows["base"]["ratio"], rows["base"]["quiet_ratio"]) == (1.0, 1.0)
    assert rows["other"]["ratio"] == rows["other"]["median"] / rows["base"]["median"]
    assert rows["other"]["quiet"] <= rows["other"]["median"]


def test_slope():
    assert slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)


def test_figures_and_missed_targets(monkeypatch):
    # Nobody could ever keep one of these, everybody the other.
    monkeypatch.setattr(metric, "TARGETS", {"VOC-like": 0.0, "crowded": math.inf})
    line = {"sizes": [250], "ms": [80.0], "exponent": 1.02}
    monkeypatch.setattr(metric, "scaling_in_images", lambda *_: line)
    monkeypatch.setattr(metric, "peers", lambda _: {"another": lambda _: None})
    monkeypatch.setattr(metric, "CROWDED_SIZE", (300, 225))
    found = metric.run(options())
    for name in ("VOC-like", "crowded"):
        ours, base = found.figures[name]["ours"], found.figures[name]["bincount"]
        assert base["ratio"] == 1.0
        assert ours["ratio"] == pytest.approx(ours["median"] / base["median"])
    assert len(found.missed) == 1
    assert found.missed[0].startswith("VOC-like images take ")
    assert "another" in found.figures["peers"]
    assert "Linear in images: exponent 1.02 (250: 80 ms)" in found.text


@pytest.mark.parametrize("name", ["images", "crowded", "rounds"])
def test_options_are_checked(name):
    with pytest.raises(ValueError, match=rf"--{name} must be at least 1, got 0"):
        metric.run(options(**{name: 0}))
