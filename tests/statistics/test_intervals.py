"""Intervals of figures."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from d2_smallobj import metrics
from d2_smallobj.metrics import COCO_SIZE_BINS, Accumulator, InstanceTable, PixelTable
from d2_smallobj.metrics.image_sums import fixed_point, image_sums, joint_sums
from d2_smallobj.metrics.summary import headline_names
from d2_smallobj.statistics import intervals
from d2_smallobj.statistics.intervals import FewInstances, Interval, bootstrap, few_instances

HEADLINE = ["mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_S", "IA-mIoU_M", "IA-mIoU_L"]
BY_IMAGE = ["mIoU_I", "mIoU_C", "mIoU_I@5", "mIoU_C@5"]
RECALL = [f"{name}{size}" for name in ("recall", "mRecall") for size in ("", "_S", "_M", "_L")]


def intervals_of(run, **options):
    return bootstrap(run, class_names=run.class_names, **options)


def same(one, other):
    """Equal to the bit, NaN included."""
    return repr(one) == repr(other)


def test_two_images_by_hand(make_run):
    # Drawn twice from {0, 100}: 0, 50, 100 with chances 1/4, 1/2, 1/4.
    run = make_run([("a", 1, 100, 0.0), ("b", 1, 100, 1.0)])
    scores = intervals.score(run, class_names=run.class_names)
    drawn = intervals.bootstrap_figures([scores], 4000, 0)[0]
    for name in ("IA-mIoU_fg", "IA-mIoU", "mIoU", "IA-mIoU_S"):
        values, counts = np.unique(drawn[name], return_counts=True)
        assert values.tolist() == [0.0, 50.0, 100.0]
        # Five standard deviations of a share of 4000.
        assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=5 * 0.5 / 4000**0.5)
    # The middle half lies at 50; the middle 95 % reaches both ends.
    assert intervals_of(run, level=0.4)["IA-mIoU_fg"] == Interval(50.0, 50.0, 50.0)
    assert intervals_of(run)["IA-mIoU_fg"] == Interval(50.0, 0.0, 100.0)


def test_percentiles_are_linear_between_order_statistics():
    assert intervals.percentiles(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))
    assert intervals.percentiles(np.array([math.nan, 3.0, 1.0]), 0.5) == pytest.approx((1.5, 2.5))
    assert all(math.isnan(end) for end in intervals.percentiles(np.array([math.nan]), 0.95))


@pytest.mark.parametrize("seed", range(5))
def test_a_resample_is_the_data_set_with_images_repeated(random_run, seed):
    run = random_run(seed, seed + 100)
    scores = intervals.score(run, class_names=run.class_names)
    weights = next(intervals.bootstrap_weights(len(run.images), 20, seed))
    totals = joint_sums([scores.sums]).totals(weights)[0]
    found = intervals.resampled(scores, totals, scores.ious, weights)
    assert list(found) == HEADLINE + RECALL + BY_IMAGE
    for row, drawn in enumerate(weights.astype(int)):
        tables, counts = [], []
        for image, number in zip(run.images, drawn.tolist()):
            table, pixels = (x.select(x.image_id == image) for x in (run.table, run.pixels))
            for copy in range(number):
                tables.append(renamed(table, f"{image}-{copy}"))
                counts.append(renamed(pixels, f"{image}-{copy}"))
        table, pixels = InstanceTable.concatenate(tables), PixelTable.concatenate(counts)
        expected = metrics.summarize(table, pixels, run.class_names)
        for name in HEADLINE + BY_IMAGE + RECALL:
            assert found[name][row] == pytest.approx(expected[name], abs=1e-7, nan_ok=True)


def renamed(table, image):
    return dataclasses.replace(table, image_id=np.full(len(table), image))


def random_maps(seed, count=12):
    generator = np.random.default_rng(seed)
    for number in range(count):
        truth = np.kron(generator.integers(0, 3, (6, 6)), np.ones((8, 8), int)).astype(np.uint8)
        prediction = np.where(generator.random(truth.shape) < 0.2, 0, truth).astype(np.uint8)
        yield f"image {number}", prediction, truth


@pytest.mark.parametrize(
    "bins", [COCO_SIZE_BINS, metrics.SizeBins({"A": 0.05, "B": 1}, relative=True)]
)
def test_estimates_are_the_plain_figures_to_the_bit(bins):
    accumulator = Accumulator(3)
    for maps in random_maps(3):
        accumulator.update(*maps)
    names = ["background", "cat", "dog"]
    plain = accumulator.summarize(names, size_bins=bins)
    found = bootstrap(accumulator, class_names=names, size_bins=bins, samples=50)
    assert list(found) == list(plain)[: list(plain).index("images")] == headline_names(bins)
    assert all(same(interval.estimate, plain[name]) for name, interval in found.items())
    # Not the worst cases: of twelve images, the worst one stays the worst in most resamples.
    for name, x in found.items():
        if not math.isnan(x.estimate) and "@" not in name and x.low < 100.0:
            assert x.low < x.estimate < x.high, name


def test_a_seed_settles_everything(random_run, monkeypatch):
    run = random_run(1, 2, images=30)
    first = intervals_of(run, samples=300, seed=7)
    assert same(first, intervals_of(run, samples=300, seed=7))
    assert not same(first, intervals_of(run, samples=300, seed=8))
    # Neither the order of images and records nor the size of a block leaves a trace.
    order = np.random.default_rng(0).permutation(30)
    shuffled = type(run)(
        run.table.select(np.random.default_rng(1).permutation(len(run.table))),
        run.image_counts[order],
        [run.images[position] for position in order],
        run.class_names,
    )
    assert same(first, intervals_of(shuffled, samples=300, seed=7))
    for cells in (1, 31, 1000):
        monkeypatch.setattr(intervals, "_BLOCK_CELLS", cells)
        assert same(first, intervals_of(run, samples=300, seed=7))


def test_sums_are_exact_so_no_order_of_adding_matters(random_run):
    run = random_run(5, 6, images=40)
    sums = image_sums(run, num_classes=3, size_bins=COCO_SIZE_BINS)
    weights = next(intervals.bootstrap_weights(40, 30, 0))
    (totals,) = joint_sums([sums]).totals(weights)
    for category, (index, values) in enumerate(zip(sums.index, sums.values)):
        for sample, column in itertools.product(range(30), range(values.shape[1])):
            pairs = zip(weights[sample, index], values[:, column])
            exact = sum(
                (Fraction(weight) * Fraction(value) for weight, value in pairs), Fraction(0)
            )
            assert Fraction(totals[sample, category, column]) == exact


def test_methods_together_add_up_to_the_bit_as_alone(random_run):
    runs = [random_run(5, method, images=40) for method in (6, 7, 8)]
    sums = [intervals.score(run, class_names=run.class_names).sums for run in runs]
    weights = next(intervals.bootstrap_weights(40, 30, 0))
    alone = np.stack([joint_sums([method]).totals(weights)[0] for method in sums])
    joint = joint_sums(sums)
    assert np.array_equal(joint.totals(weights), alone)
    assert np.array_equal(joint_sums(sums, relative=True).totals(weights), alone - alone[0])
    # Of 15 sums, ground-truth pixels and 4 numbers of records are the same for all.
    assert all(values.shape[1] <= 3 * 15 - 2 * 5 for values in joint.values)


def test_weights_are_multinomial():
    weights = np.concatenate(list(intervals.bootstrap_weights(50, 2000, 3)))
    assert weights.shape == (2000, 50)
    assert np.all(weights.sum(axis=1) == 50)
    # Mean 1 and variance 1 - 1/50 of every image's count.
    assert weights.mean(axis=0) == pytest.approx(np.ones(50), abs=5 / 2000**0.5)
    assert weights.var() == pytest.approx(0.98, abs=0.03)


def simulate(generator, images, make_run):
    """Images whose instances share a quality: IoU = the image's level plus noise."""
    rows = []
    for image in range(images):
        level = generator.uniform(0.2, 0.8)
        for _ in range(1 + generator.poisson(1.0)):
            category = int(generator.integers(1, 3))
            area = int(generator.integers(100, 900))
            iou = level + generator.uniform(-0.2, 0.2) - 0.1 * (category - 1)
            rows.append((f"{image:05d}", category, area, iou))
    return make_run(rows)


def test_95_percent_intervals_hold_the_truth_about_95_times_in_100(make_run):
    generator = np.random.default_rng(2024)
    # IoU has mean 0.5 for cats and 0.4 for dogs whatever the area, so both figures do.
    truth, sets = 45.0, 150
    hits = dict.fromkeys(("IA-mIoU_fg", "mIoU"), 0)
    for _ in range(sets):
        run = simulate(generator, 60, make_run)
        found = intervals_of(run, samples=400, seed=int(generator.integers(2**31)))
        for name in hits:
            hits[name] += found[name].low <= truth <= found[name].high
    # 0.95 ± three standard deviations of a share of 150.
    assert all(0.90 <= count / sets < 1 for count in hits.values()), hits


def test_background_can_be_left_out(make_run):
    run = make_run([("a", 0, 900, 1.0), ("b", 0, 900, 1.0), ("a", 1, 90, 0.5), ("b", 1, 90, 0.4)])
    found = intervals_of(run, include_background=False)
    assert found["IA-mIoU"] == found["IA-mIoU_fg"]
    assert found["IA-mIoU"].estimate == 45.0
    # (100 + 45) / 2 with it; mIoU has it either way.
    assert intervals_of(run)["IA-mIoU"].estimate == pytest.approx(72.5)
    assert same(found["mIoU"], intervals_of(run)["mIoU"])


def test_what_nothing_can_be_said_about_is_nan(make_run):
    empty = intervals_of(make_run([], images=[]))
    assert list(empty) == HEADLINE + BY_IMAGE + RECALL
    assert all(math.isnan(value) for x in empty.values() for value in vars(x).values())
    # One image bears on S, none on L; twenty on M. Images without any record are images.
    rows = [("00", 1, 100, 0.5), *((f"{i:02d}", 1, 5000, i / 20) for i in range(20))]
    found = intervals_of(make_run(rows, images=[f"{i:02d}" for i in range(25)]))
    assert same(found["IA-mIoU_S"], Interval(50.0, math.nan, math.nan))
    assert math.isnan(found["IA-mIoU_L"].estimate)
    assert found["IA-mIoU_M"].low < 47.5 < found["IA-mIoU_M"].high


@pytest.mark.parametrize(("options", "message"), [
    ({"samples": 0}, r"samples must be a whole number >= 1, got 0"),
    ({"samples": 10.0}, r"samples must be a whole number >= 1, got 10.0"),
    ({"seed": -1}, r"seed must be a whole number >= 0, got -1"),
    ({"level": 95}, r"level must lie between 0 and 1, e.g. 0.95, got 95"),
    ({"worst": 0}, r"worst must be a whole number of percent.* got 0"),
])  # fmt: skip
def test_options_are_checked(make_run, options, message):
    with pytest.raises(ValueError, match=message):
        intervals_of(make_run([("a", 1, 100, 0.5)]), **options)


@pytest.mark.parametrize(("images", "left_out", "names", "message"), [
    ("aa", None, 3, r"images must be distinct, got again a"),
    ("ac", "pixels", 3, r"images lacks images of the table: b"),
    ("ac", "table", 3, r"images lacks images of the pixels: b"),
    ("ab", "pixels", 2, r"table: category_id must be in 0..1 for 2 classes, got 2"),
    ("ab", "table", 2, r"pixels: category_id must be in 0..1 for 2 classes, got 2"),
])  # fmt: skip
def test_tables_images_and_names_must_fit(make_run, images, left_out, names, message):
    run = make_run([("a", 1, 100, 0.5), ("b", 2, 100, 0.5)])
    tables = {"table": run.table, "pixels": run.pixels}
    if left_out:
        tables[left_out] = type(tables[left_out]).concatenate([])
    wrong = SimpleNamespace(**tables, images=list(images))
    with pytest.raises(ValueError, match=message):
        bootstrap(wrong, class_names=["background", "cat", "dog"][:names])


def test_cells_with_too_few_instances(make_run):
    rows = [(f"{i}", 1, 100, 0.5) for i in range(9)] + [(f"{i}", 1, 5000, 0.5) for i in range(10)]
    rows += [("0", 2, 10**5, 0.5), ("0", 0, 100, 0.5)]
    run = make_run(rows)
    cells = [("cat", "S", 9), ("dog", "S", 0), ("dog", "M", 0), ("cat", "L", 0), ("dog", "L", 1)]
    assert few_instances(run.table, run.class_names) == [FewInstances(*cell) for cell in cells]
    assert few_instances(run.table, run.class_names, {"all": math.inf}, minimum=2) == [
        FewInstances("dog", "all", 1)
    ]


def test_rounding_leaves_room_for_the_largest_sum():
    values = np.random.default_rng(0).random(100)
    # 2**30 values of at most 1 leave 51 - 30 bits behind the point.
    for largest, bits in ((2.0**30, 21), (2.0**40, 11), (1.0, 40), (0.0, 40)):
        rounded = fixed_point(values, largest)
        assert np.all((rounded * 2.0**bits) % 1 == 0)
        assert np.any((rounded * 2.0 ** (bits - 1)) % 1 != 0)
        assert np.abs(rounded - values).max() <= 2.0 ** -(bits + 1)


def test_warnings_name_ten_classes():
    found = [FewInstances(f"c{i}", "M", 1) for i in range(13)] + [FewInstances("x", "L", 0)]
    names = ", ".join(f"c{i} (1)" for i in range(10))
    assert intervals.few_instances_warnings(found) == [
        f"IA-mIoU_M rests on fewer than 10 instances of each of 13 class(es): {names} and 3 more.",
        "IA-mIoU_L leaves out 1 class(es) without such an instance.",
    ]
    assert intervals.few_instances_warnings([]) == []
