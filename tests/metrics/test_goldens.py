"""The worked cases of docs/method.md#instance-aware-iou, each with its arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from d2_smallobj.metrics import Accumulator, match_image

TOLERANCE = 1e-6


def canvas(*boxes, values=None, shape=(60, 60)):
    """A map with the boxes (top, bottom, left, right; half-open) painted 1, 2, ... or 1, 1, ..."""
    painted = np.zeros(shape, np.uint8)
    for number, (top, bottom, left, right) in enumerate(boxes, start=1):
        painted[top:bottom, left:right] = number if values is None else values
    return painted


def ious(truth, prediction, *, shape=(60, 60), mode="exact"):
    instances = canvas(*truth, shape=shape)
    semantic = canvas(*truth, values=1, shape=shape)
    guess = canvas(*prediction, values=1, shape=shape)
    table = match_image(guess, semantic, instances, num_classes=2, mode=mode).table
    assert table.category_id[0] == 0
    return table.iou.tolist()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # A 100 px, B 200 px, one component of 14 * 44 = 616 px: 316 px beyond the overlap of 300.
        # Official: A is charged 100 + int(105.33) = 205 and B 200 + int(210.67) = 410:
        # 100 / 205 = 200 / 410 = 0.487805.
        ("official", 0.487805),
        # Exact: 616 * 100 / 300 = 205.33 and twice that: 300 / 616 = 0.487013 for both.
        ("exact", 300 / 616),
    ],
)
def test_merged(mode, expected):
    background, first, second = ious(
        [(10, 20, 10, 20), (10, 20, 30, 50)], [(8, 22, 8, 52)], mode=mode
    )
    assert (first, second) == pytest.approx((expected, expected), abs=TOLERANCE)
    # Background: 3600 - 616 = 2984 of 3600 - 300 = 3300 px.
    assert background == pytest.approx(0.904242, abs=TOLERANCE)
    assert background == 2984 / 3300


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_partial_and_far_false_positive(mode):
    # 50 of 100 px. The far block overlaps nothing and costs the background alone:
    # 3600 - 100 - 100 = 3400 right; union 3500 + 50 (missed half, predicted background).
    background, only = ious([(10, 20, 10, 20)], [(10, 20, 10, 15), (40, 50, 40, 50)], mode=mode)
    assert only == pytest.approx(0.5, abs=TOLERANCE)
    assert background == pytest.approx(0.957746, abs=TOLERANCE)
    assert background == 3400 / 3550


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_hole(mode):
    # The hole is not filled, in either mode: 800 / 900.
    truth = canvas((10, 40, 10, 40))
    guess = truth.copy()
    guess[20:30, 20:30] = 0
    table = match_image(guess, truth, truth, num_classes=2, mode=mode).table
    assert table.iou[1] == pytest.approx(0.888889, abs=TOLERANCE)
    # Background: 2700 right of 2700 + 100.
    assert table.iou[0] == 2700 / 2800


def test_island_in_a_hole_belongs_to_the_blob_in_official_mode_only():
    # Ring 30x30 with a 10x10 hole and a 4x4 island in it; the island is an instance of its own.
    guess = canvas((10, 40, 10, 40))
    guess[20:30, 20:30] = 0
    guess[23:27, 23:27] = 1
    instances = guess.copy()
    instances[23:27, 23:27] = 2
    iou = {
        mode: match_image(guess, guess, instances, num_classes=2, mode=mode).table
        for mode in ("exact", "official")
    }
    # Exact: two components, each on its instance. Official: one, shared by both, no surplus.
    assert iou["exact"].iou.tolist() == iou["official"].iou.tolist() == [1.0, 1.0, 1.0]
    grown = guess.copy()
    grown[9, 10:40] = 1  # 30 px of surplus on the ring
    exact = match_image(grown, guess, instances, num_classes=2).table
    official = match_image(grown, guess, instances, num_classes=2, mode="official").table
    # Exact: ring 800 / 830, island untouched.
    assert exact.iou[1:].tolist() == [800 / 830, 1.0]
    # Official: 30 shared 800 : 16, int(29.41) = 29 and int(0.588) = 0.
    assert official.iou[1:].tolist() == [800 / 829, 16 / 16]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # Component 1: 10 x 18 = 180 px over A 100 and B 30, surplus 50; component 2: 30 px in B.
        # Official: A 100 + int(38.46) = 138, B 30 + int(11.54) + 30 = 71:
        # 100 / 138 = 0.724638 and 60 / (100 + 71 - 60) = 60 / 111 = 0.540541.
        ("official", (0.724638, 0.540541)),
        # Exact: A 180 * 100 / 130 = 138.46, B 180 * 30 / 130 + 30 = 71.54.
        ("exact", (100 / (18000 / 130), 60 / (40 + 5400 / 130 + 30))),
    ],
)
def test_shared_and_own(mode, expected):
    _, first, second = ious(
        [(10, 20, 10, 20), (10, 20, 25, 35)], [(10, 20, 10, 28), (10, 20, 30, 33)], mode=mode
    )
    assert (first, second) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(("pixels", "size"), [(1023, "S"), (1024, "M"), (9215, "M"), (9216, "L")])
def test_size_bounds(pixels, size):
    # S < 32 * 32 = 1024, M < 96 * 96 = 9216.
    truth = np.zeros((100, 100), np.uint8)
    truth.ravel()[:pixels] = 1
    accumulator = Accumulator(2)
    accumulator.update("a", truth, truth, truth)
    figures = accumulator.summarize(["background", "thing"])
    counts = {name: figures[f"instances_{name}"] for name in "SML"}
    assert counts == {**dict.fromkeys("SML", 0.0), size: 1.0}
    assert figures[f"IA-mIoU_{size}"] == 100.0


def test_corner_case_iamiou_rises_where_miou_follows_the_large_object():
    # Paper, Fig. 4: a small and a large instance; first the small one is found, then the large.
    def figures(*prediction):
        truth = [(5, 10, 5, 10), (15, 55, 15, 55)]
        accumulator = Accumulator(2)
        accumulator.update(
            "a", canvas(*prediction, values=1), canvas(*truth, values=1), canvas(*truth)
        )
        return accumulator.summarize(["background", "thing"])

    none, small = figures(), figures((5, 10, 5, 10))
    large, both = figures((15, 55, 15, 55)), figures((5, 10, 5, 10), (15, 55, 15, 55))
    # One of two instances is half of IA-IoU, whichever it is; IoU sees 25 of 1625 px.
    assert [f["IA-mIoU_fg"] for f in (none, small, large, both)] == [0.0, 50.0, 50.0, 100.0]
    assert small["IoU-thing"] == pytest.approx(100 * 25 / 1625)
    assert large["IoU-thing"] == pytest.approx(100 * 1600 / 1625)


def test_removal_curve_falls_by_equal_steps():
    # Paper, Fig. 5: delete the instances of a perfect prediction from small to large.
    sides = [2, 4, 8, 16, 24]
    truth, left = np.zeros((30, 70), np.uint8), 0
    for number, side in enumerate(sides, start=1):
        truth[1 : 1 + side, left : left + side] = number
        left += side + 2
    curve = []
    for removed in range(len(sides) + 1):
        accumulator = Accumulator(2)
        accumulator.update(
            "a", (truth > removed).astype(np.uint8), (truth > 0).astype(np.uint8), truth
        )
        curve.append(accumulator.summarize(["background", "thing"]))
    assert [point["IA-mIoU_fg"] for point in curve] == [100.0, 80.0, 60.0, 40.0, 20.0, 0.0]
    # 4 + 16 + 64 of 916 px: IoU barely moves until the large ones go.
    assert curve[3]["IoU-thing"] == pytest.approx(100 * (1 - 84 / 916))
