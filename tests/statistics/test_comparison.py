"""Several methods side by side."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from d2_smallobj.metrics import SizeBins
from d2_smallobj.metrics.summary import headline_names, split_headline
from d2_smallobj.statistics import intervals
from d2_smallobj.statistics.comparison import compare_runs, run_size_bins
from d2_smallobj.statistics.intervals import bootstrap, few_instances
from d2_smallobj.statistics.pairing import holm, paired


@pytest.fixture
def runs(random_run):
    return [random_run(1, 10 + i, images=25, skill=0.4 + 0.1 * i, name=f"m{i}") for i in range(3)]


def test_everything_is_what_its_own_function_says(runs):
    found = compare_runs(runs, samples=200, seed=5, level=0.9)
    names = runs[0].class_names
    settings = {"class_names": names, "samples": 200, "seed": 5, "level": 0.9}
    assert found.names == ("m0", "m1", "m2")
    assert (found.images, found.samples, found.seed, found.level) == (25, 200, 5, 0.9)
    for run in runs:
        alone = bootstrap(run, **settings)
        assert repr(found.intervals[run.name]) == repr(alone)
    by_pair = {}
    for item in found.differences:
        by_pair.setdefault((item.first, item.second), {})[item.figure] = item.difference
    assert list(by_pair) == [("m0", "m1"), ("m0", "m2"), ("m1", "m2")]
    for (first, second), gaps in by_pair.items():
        pair = [next(run for run in runs if run.name == name) for name in (first, second)]
        assert repr(gaps) == repr(paired(*pair, **settings))
    # mIoU and IA-mIoU are adjusted among themselves, the other figures too.
    for family, number in zip(split_headline(found.intervals["m0"]), (6, 12)):
        items = [item for item in found.differences if item.figure in family]
        p_values = [item.difference.p_value for item in items]
        assert len(p_values) == 3 * number
        assert repr([item.p_adjusted for item in items]) == repr(holm(p_values))
    assert found.ranks.methods == found.names
    assert found.ranks.values[1].tolist() == pytest.approx(
        [interval.estimate for interval in found.intervals["m1"].values()], abs=0, nan_ok=True
    )
    assert list(found.few_instances) == few_instances(runs[0].table, names)
    assert found.remarks == ()


def test_a_baseline_limits_the_pairs(runs):
    found = compare_runs(runs, samples=20, baseline="m1")
    pairs = dict.fromkeys((item.first, item.second) for item in found.differences)
    assert list(pairs) == [("m1", "m0"), ("m1", "m2")]
    # One run has intervals but no differences.
    found = compare_runs(runs[:1], samples=20)
    assert (found.differences, found.ranks.ranks[0, 0]) == ((), 1)


@pytest.mark.parametrize(("count", "images", "total"), [(2, 25, 40), (1, 25, 20), (2, 4, 36)])
def test_progress_counts_all_draws(runs, monkeypatch, count, images, total):
    monkeypatch.setattr(intervals, "_BLOCK_CELLS", 8 * 25)
    seen = []
    short = [head(run, images) for run in runs[:count]]
    compare_runs(short, samples=20, progress=lambda *numbers: seen.append(numbers))
    done = [done for done, _ in seen]
    assert len(done) > 1 or images < 25
    assert done == sorted(set(done))
    assert seen[-1] == (total, total)
    assert {of for _, of in seen} == {total}


def head(run, images):
    """The first images of a run."""
    kept = run.images[:images]
    return dataclasses.replace(
        run,
        table=run.table.select(np.isin(run.table.image_id, kept)),
        images=kept,
        image_counts=run.image_counts[:images],
    )


def test_size_bins_and_background_come_from_the_options(runs):
    for run in runs:
        run.options |= {"size_bins": "relative:tiny:0.001,rest:1", "include_background": False}
    found = compare_runs(runs, samples=20)
    figures = ["mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_tiny", "IA-mIoU_rest"]
    assert list(found.intervals["m0"])[:5] == figures
    assert list(found.intervals["m0"]) == headline_names(["tiny", "rest"])
    assert found.intervals["m0"]["IA-mIoU"] == found.intervals["m0"]["IA-mIoU_fg"]
    assert {one.size for one in found.few_instances} <= {"tiny", "rest"}


def test_size_bins_as_text_or_mapping():
    assert run_size_bins({})["S"] == 1024
    assert run_size_bins({"size_bins": "coco"}) == run_size_bins({})
    assert dict(run_size_bins({"size_bins": {"A": 5.0, "B": 9.0}})) == {"A": 5.0, "B": 9.0}
    bins = SizeBins({"A": 0.5}, relative=True)
    assert run_size_bins({"size_bins": bins}) is bins


def test_differing_settings_and_the_runs_own_remarks_are_told(runs):
    runs[2].options["mode"] = "official"
    runs[0].options["mode"] = runs[1].options["mode"] = "exact"
    runs[1].remarks = ["Two images were empty."]
    assert compare_runs(runs, samples=20).remarks == (
        "The runs were scored with different settings of mode: m0 exact, m1 exact, m2 official.",
        "m1: Two images were empty.",
    )


def test_what_cannot_be_compared_is_refused(runs):
    with pytest.raises(ValueError, match=r"at least one scored run, got none"):
        compare_runs([])
    with pytest.raises(ValueError, match=r"distinct names, got \['m0', 'm0'\]"):
        compare_runs([runs[0], runs[0]])
    with pytest.raises(ValueError, match=r"baseline must be one of .*'m2'\], got 'x'"):
        compare_runs(runs, baseline="x")


@pytest.mark.parametrize(("changes", "message"), [
    ({"class_names": list("bxy")}, r"the same classes; m0: \['background', 'class1'.*m1: "),
    ({"options": {"size_bins": "S:5"}},
     r"share size_bins.*is S:1024,M:9216,L:inf in m0 and S:5"),
    ({"options": {"include_background": False}}, r"include_background is True in m0 and False in"),
    ({"options": {"worst": 40}}, r"worst is 5 in m0 and 40 in m1"),
    ({"options": {"stuff": []}}, r"stuff is \(0,\) in m0 and \(\) in m1"),
    ({"images": [*(f"i{i:03d}" for i in range(24)), "new"]},
     r"in m0 and m1; 1 only in m0: i024; 1 only in m1: new"),
])  # fmt: skip
def test_runs_that_do_not_go_together(runs, changes, message):
    with pytest.raises(ValueError, match=message):
        compare_runs([runs[0], dataclasses.replace(runs[1], **changes)])
