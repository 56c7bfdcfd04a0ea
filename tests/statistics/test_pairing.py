"""Paired differences and their p-values."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from d2_smallobj.statistics.intervals import is_complete, score, swap_weights
from d2_smallobj.statistics.pairing import (
    check_same_truth,
    holm,
    paired,
    paired_over_seeds,
    swap_test,
)


def compare(first, second, **options):
    return paired(first, second, class_names=first.class_names, **options)


def with_ious(make_run, ious):
    return make_run((f"{i:03d}", 1, 1000, iou) for i, iou in enumerate(ious))


@pytest.mark.parametrize(("second", "p_value"), [
    # Per-image differences .1 .2 .4: only + + + and - - - of 8 signs reach 0.7.
    ([0.6, 0.7, 0.9], 2 / 8),
    # .1 .2 -.1 sum to .2, and 6 of 8 signs reach that.
    ([0.6, 0.7, 0.4], 6 / 8),
    # .1 .2 -.3 sum to 0, as any.
    ([0.6, 0.7, 0.2], 1.0),
    ([0.5, 0.5, 0.5], 1.0),
])  # fmt: skip
def test_all_patterns_by_hand(make_run, second, p_value):
    found = compare(with_ious(make_run, [0.5] * 3), with_ious(make_run, second))
    assert found["IA-mIoU_fg"].p_value == p_value
    assert found["mIoU"].p_value == p_value
    estimate = 100 * (sum(second) - 1.5) / 3
    assert found["IA-mIoU_fg"].estimate == pytest.approx(estimate, abs=1e-9)
    assert math.isnan(found["IA-mIoU_L"].p_value)


@pytest.mark.parametrize("seed", range(4))
def test_a_swap_gives_each_method_the_other_ones_image(random_run, seed):
    # Every pattern of six images, carried out on the runs themselves.
    runs = [random_run(seed, method, images=6) for method in (10 + seed, 20 + seed)]
    found = compare(*runs, samples=64)
    plain = [score(run, class_names=run.class_names).figures for run in runs]
    counts = dict.fromkeys(plain[0], 0)
    for pattern in itertools.product([False, True], repeat=6):
        swapped = [copy.deepcopy(run) for run in runs]
        for position in np.flatnonzero(pattern):
            for one, other in ((0, 1), (1, 0)):
                swapped[one].image_counts[position] = runs[other].image_counts[position]
                # The same ground truth, so the same records in the same rows.
                rows = runs[0].table.image_id == runs[0].images[position]
                for column in ("intersection", "charged", "components"):
                    values = getattr(runs[other].table, column)[rows]
                    getattr(swapped[one].table, column)[rows] = values
        drawn = [score(run, class_names=run.class_names).figures for run in swapped]
        for name in counts:
            gap = abs(drawn[1][name] - drawn[0][name])
            counts[name] += gap >= abs(plain[1][name] - plain[0][name]) - 1e-6
    for name, count in counts.items():
        expected = math.nan if math.isnan(plain[0][name]) else count / 64
        assert found[name].p_value == pytest.approx(expected, abs=0, nan_ok=True)


def test_drawn_patterns_count_the_observed_one(make_run):
    # 40 images, all better: no drawn pattern comes near, and p can be no smaller than this.
    worse, better = with_ious(make_run, [0.4] * 40), with_ious(make_run, [0.5] * 40)
    found = compare(worse, better, samples=999)
    assert found["IA-mIoU_fg"].p_value == 1 / 1000
    assert found["IA-mIoU_fg"].estimate == pytest.approx(10.0)
    assert (found["IA-mIoU_fg"].low, found["IA-mIoU_fg"].high) == pytest.approx((10.0, 10.0))


def test_swaps_are_fair_and_complete():
    assert is_complete(10, 1024)
    assert not is_complete(10, 1023)
    (patterns,) = swap_weights(3, 8, 0)
    assert {tuple(row) for row in patterns} == set(itertools.product([0.0, 1.0], repeat=3))
    drawn = np.concatenate(list(swap_weights(30, 4000, 0)))
    assert (drawn.shape, set(np.unique(drawn))) == ((4000, 30), {0.0, 1.0})
    assert drawn.mean(axis=0) == pytest.approx(np.full(30, 0.5), abs=5 * 0.5 / 4000**0.5)


def test_the_other_way_round_is_the_negative(random_run):
    first, second = random_run(3, 4, images=40), random_run(3, 5, images=40, skill=0.6)
    forth, back = compare(first, second), compare(second, first)
    for name, gap in forth.items():
        if not math.isnan(gap.estimate):
            assert back[name].estimate == -gap.estimate
            assert (-back[name].high, -back[name].low) == pytest.approx((gap.low, gap.high))
            assert back[name].p_value == gap.p_value
    # A method does not differ from itself.
    for name, gap in compare(first, first).items():
        assert (gap.estimate, gap.low, gap.high, gap.p_value) == (0.0, 0.0, 0.0, 1.0), name


def test_pairing_removes_what_both_find_difficult(make_run):
    levels = np.random.default_rng(0).uniform(0.1, 0.8, 100)
    better = levels + np.random.default_rng(1).uniform(0.0, 0.04, 100)
    found = compare(with_ious(make_run, levels), with_ious(make_run, better))["IA-mIoU_fg"]
    # The mean of 100 values spread evenly over 4 points; alone, a method varies by about ± 4.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 4 / 12**0.5 / 10, rel=0.2)
    assert found.low > 0
    assert found.p_value < 0.01


def null_runs(make_run, generator, images=25):
    """Two methods that are interchangeable on every image, of very unequal images."""
    pair = ([], [])
    for image in range(images):
        level, spread = generator.uniform(0.2, 0.7), generator.choice([0.02, 0.3])
        for _ in range(1 + generator.poisson(1.0)):
            category, area = int(generator.integers(1, 3)), int(generator.integers(100, 5000))
            for rows in pair:
                iou = level + spread * generator.standard_normal()
                rows.append((f"{image:03d}", category, area, min(max(iou, 0.0), 1.0)))
    return [make_run(rows) for rows in pair]


@pytest.mark.slow
def test_p_values_are_uniform_when_nothing_differs(make_run):
    generator = np.random.default_rng(99)
    found = {"mIoU": [], "IA-mIoU_fg": [], "IA-mIoU_S": []}
    for _ in range(250):
        first, second = null_runs(make_run, generator)
        scores = [score(run, class_names=run.class_names) for run in (first, second)]
        (p_values,) = swap_test(scores, [(0, 1)], 199, int(generator.integers(2**31)))
        for name, values in found.items():
            values.append(p_values[name])
    for name, values in found.items():
        assert scipy.stats.kstest(values, "uniform").pvalue > 0.01, name
        # 0.05 ± three standard deviations of a share of 250.
        assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.041), name


@pytest.mark.slow
def test_intervals_of_differences_hold_zero_when_nothing_differs(make_run):
    generator = np.random.default_rng(17)
    hits = dict.fromkeys(("mIoU", "IA-mIoU_fg"), 0)
    for _ in range(120):
        first, second = null_runs(make_run, generator, images=40)
        found = compare(first, second, samples=300, seed=int(generator.integers(2**31)))
        for name in hits:
            hits[name] += found[name].low <= 0 <= found[name].high
    assert all(0.89 <= count / 120 <= 1.0 for count in hits.values()), hits


def test_other_images_are_listed(make_run):
    first = make_run((f"{i:02d}", 1, 100, 0.5) for i in range(20))
    second = make_run((f"{i:02d}", 1, 100, 0.5) for i in range(12, 21))
    with pytest.raises(ValueError, match=r"12 only in the first: 00, 01, .*, 09 and 2 more;") as e:
        compare(first, second)
    assert str(e.value).endswith("1 only in the second: 20")


def test_other_ground_truth_is_listed(make_run):
    rows = [(image, 1, 100, 0.5) for image in "abc"]
    # The same pixels in two instances instead of one.
    split = make_run([rows[0], ("b", 1, 40, 0.5), ("b", 1, 60, 0.5), rows[2]])
    message = r"same ground truth in X and Y; it differs in 2 images: b"
    with pytest.raises(ValueError, match=message):
        check_same_truth(make_run(rows), split, ("X", "Y"))
    with pytest.raises(ValueError, match=r"it differs in 1 images: c"):
        compare(make_run(rows), make_run([*rows[:2], ("c", 1, 120, 0.5)]))


def test_holm_by_hand():
    # 3 × 0.01; 2 × 0.03; 0.04, but not below the one before it.
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan], nan_ok=True
    )
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# ---- Several seeds -----------------------------------------------------------------------------


def over_seeds(first, second, **options):
    return paired_over_seeds(first, second, class_names=first[0].class_names, **options)


def test_with_one_seed_the_interval_is_that_of_the_images(random_run):
    runs = [random_run(1, method) for method in (11, 12)]
    found, alone = over_seeds([runs[0]], [runs[1]]), compare(*runs)
    for name, interval in found.items():
        expected = (alone[name].estimate, alone[name].low, alone[name].high)
        assert (interval.estimate, interval.low, interval.high) == pytest.approx(
            expected, abs=1e-9, nan_ok=True
        )


def test_images_and_seeds_both_widen_the_interval(make_run):
    """IoU .5 against .5 + gain: gains that differ by image, by seed, or not at all."""
    first = [with_ious(make_run, [0.5] * 8)] * 3

    def found(gains):
        second = [with_ious(make_run, [0.5 + gain for gain in row]) for row in gains]
        return over_seeds(first, second)["IA-mIoU_fg"]

    same = found([[0.1] * 8] * 3)
    assert (same.estimate, same.low, same.high) == pytest.approx((10, 10, 10))
    by_image = found([[0.0, 0.2] * 4] * 3)
    by_seed = found([[0.0] * 8, [0.1] * 8, [0.2] * 8])
    for interval in (by_image, by_seed):
        assert interval.estimate == pytest.approx(10)
        assert 0 <= interval.low < 6
        assert 14 < interval.high <= 20
    # Of three equal seeds all are the first with probability 1/27: the ends of 95 % hold that.
    assert (by_seed.low, by_seed.high) == pytest.approx((0, 20))


def test_seeds_that_do_not_fit_together(make_run):
    run, other = with_ious(make_run, [0.5] * 3), with_ious(make_run, [0.5] * 4)
    for first, second, message in (
        ([run], [run, run], "one run for each seed on both sides, got 1 and 2"),
        ([], [], "got 0 and 0"),
        ([run, run], [run, other], "needs the same images"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_over_seeds(first, second, class_names=run.class_names)
