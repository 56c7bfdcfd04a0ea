"""The curve of IoU against size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2_smallobj.metrics import InstanceTable
from d2_smallobj.statistics import intervals
from d2_smallobj.statistics.intervals import bootstrap_weights
from d2_smallobj.statistics.size_curve import size_curve


def table_of(image, area, iou):
    """Records whose IoU is given to the last bit that ``charged`` allows."""
    area, iou = np.asarray(area, np.int64), np.asarray(iou, np.float64)
    pixels = np.full(len(area), 2**40)
    columns = dict.fromkeys(InstanceTable.names(), np.zeros(len(area), np.int64))
    hit = np.round(iou * 2**40)
    columns |= {"image_id": image, "area": area, "pixels": pixels, "category_id": area * 0 + 1}
    columns |= {"intersection": hit, "charged": hit, "instance_id": np.arange(1, len(area) + 1)}
    return InstanceTable.from_columns(columns)


@pytest.fixture
def noisy():
    generator = np.random.default_rng(5)
    area = np.round(2 ** generator.uniform(5, 15, 300))
    iou = np.clip(0.3 + 0.04 * np.log2(area) + generator.normal(0, 0.2, 300), 0, 1)
    return table_of([f"{i // 4:03d}" for i in range(300)], area, iou)


def fit(table, area, width, repeat=None):
    """Height of the weighted least-squares line at ``area``, by numpy's polyfit."""
    x = np.log2(table.area) - math.log2(area)
    weights = np.exp(-0.5 * (x / width) ** 2) * (1 if repeat is None else repeat)
    held = weights > 0
    line = np.polyfit(x[held], table.iou[held], 1, w=np.sqrt(weights[held]))
    return float(np.clip(line[1], 0, 1))


def test_a_line_is_kept_to_its_ends():
    # What a running mean would flatten at both ends.
    area = np.unique(np.round(2 ** np.linspace(4, 16, 200)))
    table = table_of([f"{i:03d}" for i in range(len(area))], area, 0.05 * np.log2(area) + 0.1)
    curve = size_curve(table, points=13, bandwidth=1.0)
    assert curve.area == pytest.approx(2.0 ** np.arange(4, 17))
    assert curve.iou == pytest.approx(100 * (0.05 * np.arange(4, 17) + 0.1), abs=1e-3)
    assert np.all(curve.high - curve.low < 1e-2)


def test_equal_to_weighted_least_squares(noisy):
    curve = size_curve(noisy, points=[64, 300, 1024, 20000.0], bandwidth=0.7)
    assert curve.area.tolist() == pytest.approx([64, 300, 1024, 20000])
    expected = [100 * fit(noisy, area, 0.7) for area in curve.area]
    assert curve.iou == pytest.approx(expected, abs=1e-3)
    x = np.log2(noisy.area)
    weight = [np.exp(-0.5 * ((x - math.log2(a)) / 0.7) ** 2).sum() for a in curve.area]
    assert curve.weight == pytest.approx(weight, rel=1e-6)


def test_the_band_comes_from_whole_images(noisy):
    curve = size_curve(noisy, points=[100, 3000], bandwidth=0.8, samples=60, seed=4, level=0.8)
    images = np.unique(noisy.image_id)
    weights = np.concatenate(list(bootstrap_weights(len(images), 60, 4)))
    position = np.searchsorted(images, noisy.image_id)
    for point, area in enumerate(curve.area):
        drawn = [100 * fit(noisy, area, 0.8, repeat=row[position]) for row in weights]
        low, high = np.quantile(drawn, [0.1, 0.9])
        assert (curve.low[point], curve.high[point]) == pytest.approx((low, high), abs=1e-2)
        assert curve.low[point] < curve.iou[point] < curve.high[point]


def test_the_band_holds_the_truth():
    generator = np.random.default_rng(8)
    points, hits = np.array([100.0, 1000.0, 10000.0]), np.zeros(3)
    for _ in range(100):
        level = generator.normal(0, 0.1, 80)
        area = np.round(2 ** generator.uniform(5, 15, 240))
        iou = 0.2 + 0.03 * np.log2(area) + np.repeat(level, 3) + generator.normal(0, 0.05, 240)
        table = table_of([f"{i // 3:03d}" for i in range(240)], area, iou)
        curve = size_curve(table, points=points, samples=200)
        truth = 100 * (0.2 + 0.03 * np.log2(points))
        hits += (curve.low <= truth) & (truth <= curve.high)
    # 0.95 ± three standard deviations of a share of 100.
    assert np.all((hits >= 88) & (hits <= 100)), hits


def test_a_seed_settles_everything(noisy, monkeypatch):
    def numbers(table, seed=3):
        curve = size_curve(table, samples=100, seed=seed)
        return np.stack([curve.area, curve.iou, curve.low, curve.high, curve.weight])

    first = numbers(noisy)
    assert np.array_equal(first, numbers(noisy), equal_nan=True)
    assert not np.array_equal(first, numbers(noisy, seed=4), equal_nan=True)
    shuffled = noisy.select(np.random.default_rng(0).permutation(len(noisy)))
    assert np.array_equal(first, numbers(shuffled), equal_nan=True)
    monkeypatch.setattr(intervals, "_BLOCK_CELLS", 100)
    assert np.array_equal(first, numbers(noisy), equal_nan=True)


def test_points_and_bandwidth_do_not_depend_on_the_method(noisy):
    other = table_of(noisy.image_id, noisy.area, 1 - noisy.iou)
    one, two = size_curve(noisy, samples=10), size_curve(other, samples=10)
    assert np.array_equal(one.area, two.area)
    assert np.array_equal(one.weight, two.weight)
    assert one.bandwidth == two.bandwidth
    assert len(one.area) == 50
    assert (one.area[0], one.area[-1]) == pytest.approx((noisy.area.min(), noisy.area.max()))
    # Silverman: areas spread evenly over ten doublings have a deviation of 10 / sqrt(12).
    assert one.bandwidth == pytest.approx(0.9 * 10 / 12**0.5 * 300**-0.2, rel=0.05)


def test_where_few_instances_lie_there_is_no_curve():
    # Ten instances about 100 px, one of 100,000 px; nothing between.
    area = [*range(95, 105), 100000]
    table = table_of([f"{i:02d}" for i in range(11)], area, [0.5] * 11)
    curve = size_curve(table, points=[100, 3000, 100000], bandwidth=0.5)
    assert curve.iou == pytest.approx([50.0, math.nan, math.nan], nan_ok=True)
    assert np.isnan(curve.low).tolist() == [False, True, True]
    assert curve.weight == pytest.approx([9.9, 0, 1], abs=0.2)
    assert size_curve(table, points=[1e5], bandwidth=0.5, minimum=1).iou == pytest.approx([50.0])
    # Equal areas give their mean.
    curve = size_curve(table_of(list("abcd"), [100] * 4, [0.1, 0.2, 0.3, 0.4]), points=1)
    assert (curve.bandwidth, curve.iou.tolist()) == (0.25, pytest.approx([25.0]))


def test_the_background_has_no_size_and_nothing_is_no_curve(noisy):
    backgrounds = noisy.columns() | {"category_id": noisy.category_id * 0}
    backgrounds["instance_id"] = noisy.instance_id * 0
    both = InstanceTable.concatenate([noisy, InstanceTable.from_columns(backgrounds)])
    curves = [size_curve(table, samples=10).iou for table in (both, noisy)]
    assert np.array_equal(*curves, equal_nan=True)
    nothing = noisy.select(np.zeros(0, int))
    assert len(size_curve(nothing).area) == 0
    assert np.isnan(size_curve(nothing, points=[10, 20]).iou).all()


def test_one_image_has_a_curve_but_no_band(noisy):
    one = table_of(["a"] * 300, noisy.area, noisy.iou)
    curve = size_curve(one, samples=10)
    assert not np.isnan(curve.iou).any()
    assert np.isnan(curve.low).all()
    # Images without instances can be drawn, too; they make nothing known.
    assert np.isnan(size_curve(one, samples=10, images=["a", "b"]).low).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"points": 0}, r"points must be >= 1 or areas in pixels, got 0"),
    ({"points": [2, 1]}, r"positive areas in ascending order, got \[2, 1\]"),
    ({"bandwidth": 0}, r"bandwidth must be a positive number.*got 0"),
    ({"level": 1}, r"level must lie between 0 and 1, e.g. 0.95, got 1"),
    ({"images": ["000"]}, r"images lacks images of the table: 001, .* and 64 more"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(noisy, options, message):
    with pytest.raises(ValueError, match=message):
        size_curve(noisy, **options)
