"""The metric's benchmark: what is drawn, and what the yardstick counts."""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import pytest
from benchmarks import (
    VOC_SIZE,
    Measurement,
    draw_maps,
    make_run,
    metric,
    predict_blocks,
    predict_borders,
    race,
    read_voc,
    spread_classes,
    void_of,
)

from d2_smallobj.metrics import match_image


def draw(seed):
    return draw_maps(np.random.default_rng(seed), *VOC_SIZE, 8)


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
    assert metric.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    maps = draw(3)
    expected = match_image(*maps, num_classes=21)
    assert np.array_equal(metric.count_labels(maps), expected.confusion)
    assert np.array_equal(metric.ours([maps, maps]).confusion, 2 * expected.confusion)
    assert len(expected.table) > 2
    # An accumulator puts off matching; what is put off is not timed.
    assert not metric.ours([draw(seed) for seed in range(3)])._pending


def test_times_are_per_image():
    def burn(_):
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    rows = metric.race_images([1] * 5, {"base": burn}, 3)
    assert 1.5 < rows["base"]["median"] < 10
    assert rows["base"]["ratio"] == 1.0


def test_the_first_function_is_the_yardstick():
    called = []
    functions = {"base": called.append, "other": lambda case: sum(range(1000))}
    rows = race([1, 2], functions, rounds=3)
    assert called == [1, 2] * 3
    assert (rows["base"]["ratio"], rows["base"]["quiet_ratio"]) == (1.0, 1.0)
    assert rows["other"]["ratio"] == rows["other"]["median"] / rows["base"]["median"]
    assert rows["other"]["quiet"] <= rows["other"]["median"]


@pytest.fixture
def short(monkeypatch):
    """Leaves out what takes long."""
    monkeypatch.setattr(metric, "CROWDED_SIZE", (300, 225))
    line = {"sizes": [250], "ms": [80.0], "exponent": 1.02}
    monkeypatch.setattr(metric, "scaling_in_images", lambda *_: line)
    monkeypatch.setattr(metric, "VOC_SIZE", (100, 75))


def test_figures_missed_targets_and_the_summary_on_request(monkeypatch, short):
    # Nobody could ever keep the first, everybody the others.
    limits = {name: dict.fromkeys(rows, math.inf) for name, rows in metric.TARGETS.items()}
    limits["VOC-like"] = {"ours": 0.0}
    monkeypatch.setattr(metric, "TARGETS", limits)
    summary = Measurement({"81": {"seconds": 1.0}}, "the summary's table", ["summary is slow"])
    monkeypatch.setattr(metric, "measure_summary", lambda seed: summary)
    given = {"images": 2, "crowded": 1, "rounds": 1, "seed": 0, "voc": None, "summary": True}
    found = metric.run(argparse.Namespace(**given))
    for name in ("VOC-like", "crowded", "ragged blocks", "ragged borders", metric.NOISE):
        ours, base = found.figures[name]["ours"], found.figures[name]["bincount"]
        assert base["ratio"] == 1.0
        assert ours["ratio"] == pytest.approx(ours["median"] / base["median"])
    for name, rows in limits.items():
        assert set(rows) <= set(found.figures[name]), name
    assert found.missed[1:] == summary.missed
    assert found.missed[0].startswith("VOC-like: ours takes ")
    assert found.missed[0].endswith(" times the yardstick, not 0.0")
    rows = ["21", "150, few", "150, spread", "847, few", "847, spread"]
    assert list(found.figures["classes"]) == rows
    assert "Linear in images: exponent 1.02 (250: 80 ms)" in found.text
    assert found.figures["summary"] == summary.figures
    assert found.text.endswith("the summary's table")


def test_ragged_predictions_are_seeded_and_ragged():
    _, semantic, instances = draw(4)
    for predict in (predict_blocks, predict_borders):
        guess = predict(np.random.default_rng(0), semantic)
        assert (guess.shape, guess.dtype) == (semantic.shape, np.uint8)
        assert np.array_equal(guess, predict(np.random.default_rng(0), semantic))
        assert guess.max() < 21
        valid = semantic < 255
        right = np.mean(guess[valid] == semantic[valid])
        assert 0.7 < right < 0.995
        # Many components that are nobody's, at least one for each 50 cells of 8 x 8.
        match = match_image(guess, semantic, instances, num_classes=21)
        assert len(match.blobs) > semantic.size / 64 / 50


def test_blocks_are_cells_of_eight_pixels():
    guess = predict_blocks(np.random.default_rng(1), np.zeros((20, 30), np.uint8))
    cells = guess[::8, ::8].repeat(8, 0).repeat(8, 1)
    assert np.array_equal(guess, cells[:20, :30])


@pytest.mark.parametrize("classes", [21, 150, 847])
@pytest.mark.parametrize("spread", [True, False])
def test_more_classes_have_the_same_regions(classes, spread):
    maps = draw(5)
    rng = np.random.default_rng(0)
    prediction, semantic, instances = spread_classes(maps, rng, classes, spread=spread)
    assert np.array_equal(instances, maps[2])
    for old, new in zip(maps, (prediction, semantic)):
        assert len(np.unique(new)) == len(np.unique(old)) == len(set(zip(old.flat, new.flat)))
        assert np.array_equal(new == 0, old == 0)
        if not spread:
            assert np.array_equal(new[old < 255], old[old < 255])
    void = void_of(classes)
    assert np.array_equal(semantic == void, maps[1] == 255)
    assert prediction.max() < classes <= void
    one = match_image(*maps, num_classes=21)
    two = match_image(prediction, semantic, instances, num_classes=classes, ignore_label=void)
    assert sorted(one.table.iou.tolist()) == sorted(two.table.iou.tolist())


def test_voc_images(realdata, tmp_path):
    images = read_voc(realdata / "voc" / "VOC2012")
    assert len(images) == 24
    for semantic, instances in images:
        assert semantic.shape == instances.shape
        assert semantic.dtype == instances.dtype == np.uint8
    with pytest.raises(ValueError, match=r"--voc: expected SegmentationObject/\*\.png in a VOC"):
        read_voc(tmp_path)


def test_tables_of_the_summary():
    table, pixels, ids = make_run(200, 1500, 81, 0)
    assert len(ids) == len(set(ids)) == 200
    assert (len(table), table.things.sum()) == (1700, 1500)
    assert set(table.image_id.tolist()) == set(ids) == set(pixels.image_id.tolist())
    assert 30 < len(np.unique(table.category_id)) <= 81
    assert 0 <= table.iou.min() <= table.iou.max() <= 1
    # One row for each image and class, and the records' pixels are in it.
    assert len(set(zip(pixels.image_id.tolist(), pixels.category_id.tolist()))) == len(pixels)
    assert pixels.ground_truth.sum() == table.pixels.sum()
    assert pixels.intersection.sum() == table.intersection.sum()
    assert np.all(pixels.intersection <= np.minimum(pixels.ground_truth, pixels.predicted))
    assert np.any(pixels.ground_truth == 0)


def test_costs_of_the_summary(monkeypatch):
    monkeypatch.setattr(metric, "SUMMARY_CLASSES", (5, 9))
    limits = {5: {"seconds": 0.0, "MiB": math.inf}, 9: {"seconds": math.inf, "MiB": math.inf}}
    monkeypatch.setattr(metric, "SUMMARY_TARGETS", limits)
    found = metric.measure_summary(0, images=40, instances=100, samples=10)
    assert list(found.figures) == ["5", "9"]
    for row in found.figures.values():
        assert 0 < row["plain seconds"] < row["seconds"]
        assert 10 < row["MiB before"] <= row["MiB"]
    assert len(found.missed) == 1
    assert found.missed[0].startswith("summary of 5 classes takes ")
    assert "\n| 9 " in found.text
