"""``official`` mode beside the authors' released function, where a copy of it is at hand.

Their repository has no licence, so nothing of it is kept here. To run these tests::

    git clone https://github.com/Cheolhyun-Mun/wsss_small_object_matters /tmp/wsss
    export D2_SMALLOBJ_OFFICIAL_CODE=/tmp/wsss/libs/utils/metric.py
    python -m pytest tests/metrics/test_official_code.py --run-slow

Their function is defined on maps with ids 1..N without gaps, each on one class, every pixel of a
class in some instance, and 255 in the semantic map only where the instance map has it. What it
does elsewhere is pinned below, one test each.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib

import numpy as np
import pytest

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.metrics import COCO_SIZE_BINS, match_image
from d2_smallobj.report.conventions import PERTURBATIONS
from d2_smallobj.utils.opencv import cv2

VARIABLE = "D2_SMALLOBJ_OFFICIAL_CODE"
STACKS = {"": "", "S": "Small ", "M": "Medium ", "L": "Large "}


@pytest.fixture(scope="module")
def official():
    """The authors' IAmIoU, from the file that the environment names."""
    path = os.environ.get(VARIABLE)
    if not path:
        pytest.skip(f"{VARIABLE} does not name the authors' libs/utils/metric.py")
    spec = importlib.util.spec_from_file_location("authors_metric", pathlib.Path(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.IAmIoU


def theirs(function, prediction, semantic, instances, classes):
    """Sums of IoU and counts by class, for all sizes together and for each."""
    stacks = function(
        [instances.astype(np.int32)], [semantic.astype(np.int32)], [prediction], classes
    )
    return {
        size: (stacks[f"{n}IoU stack"], stacks[f"{n}Class stack"]) for size, n in STACKS.items()
    }


def ours(prediction, semantic, instances, classes, mode="official"):
    table = match_image(prediction, semantic, instances, num_classes=classes, mode=mode).table
    bins = np.array([*COCO_SIZE_BINS, ""])[table.size_of()]
    bins[table.category_id == 0] = "background"
    result = {}
    for size in STACKS:
        chosen = table.select(bins == size if size else np.ones(len(table), bool))
        result[size] = tuple(
            np.bincount(chosen.category_id, weights=weight, minlength=classes)
            for weight in (chosen.iou, np.ones(len(chosen)))
        )
    return result


def assert_same(function, maps, classes):
    expected, got = theirs(function, *maps, classes), ours(*maps, classes)
    for size in STACKS:
        assert got[size][1].tolist() == expected[size][1].tolist(), f"instances, size {size!r}"
        # Sums of a few floats in another order; a pixel more or less shows at 1e-5.
        np.testing.assert_allclose(got[size][0], expected[size][0], rtol=0, atol=1e-12)


def random_blobs(rng, shape, labels, count):
    """Rectangles and ellipses painted over one another."""
    painted = np.zeros(shape, np.int32)
    for label in labels if count is None else rng.choice(labels, count):
        centre = tuple(int(rng.integers(0, side)) for side in shape[::-1])
        reach = tuple(int(r) for r in rng.integers(1, max(shape) // 2, 2))
        if rng.random() < 0.5:
            cv2.ellipse(painted, centre, reach, float(rng.integers(0, 180)), 0, 360, int(label), -1)
        else:
            low = tuple(c - r for c, r in zip(centre, reach))
            cv2.rectangle(painted, low, centre, int(label), -1)
    return painted


def random_maps(seed):
    """One image on which their function is defined: prediction, semantic, instances, classes."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 5))
    shape = tuple(int(side) for side in rng.integers(8, 130 if seed % 50 == 0 else 48, 2))
    instances = random_blobs(rng, shape, np.arange(1, rng.integers(1, 8) + 1), None)
    kept = [number for number in np.unique(instances).tolist() if number]
    instances = np.searchsorted(np.array([0, *kept]), instances)
    class_of = np.concatenate([[0], rng.integers(1, classes, len(kept))])
    semantic = class_of[instances]
    kind = seed % 4
    if kind == 0:
        prediction = random_blobs(rng, shape, np.arange(classes), 8)
    elif kind == 1:
        prediction = np.roll(semantic, tuple(rng.integers(-4, 5, 2)), (0, 1))
    elif kind == 2:
        grown = cv2.dilate(semantic.astype(np.uint8), np.ones((5, 5), np.uint8))
        prediction = np.where(rng.random(shape) < 0.05, 0, grown)
    else:
        # Specks, rings and islands: what filled contours are about.
        prediction = rng.integers(0, classes, shape)
        prediction = cv2.medianBlur(prediction.astype(np.uint8), 3 if rng.random() < 0.5 else 1)
    if rng.random() < 0.7:
        void = cv2.dilate(instances.astype(np.uint8), np.ones((3, 3), np.uint8)) != instances
        void &= rng.random(shape) < rng.choice([0.5, 1.0])
        instances = np.where(void, 255, instances)
        kept = np.isin(np.arange(1, len(class_of)), instances)
        if not kept.all() or (instances == 255).all():
            return random_maps(seed + 1_000_003)
        semantic = np.where(void & (rng.random(shape) < 0.9), 255, semantic)
    return (prediction.astype(np.int64), semantic, instances), classes


@pytest.mark.parametrize("block", range(6))
def test_random_maps(official, block):
    for seed in range(100 * block, 100 * (block + 1)):
        maps, classes = random_maps(seed)
        assert_same(official, maps, classes)


@pytest.mark.slow
def test_thousands_of_random_maps(official):
    for seed in range(1000, 21000):
        maps, classes = random_maps(seed)
        assert_same(official, maps, classes)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_real_voc(official, realdata, name):
    folder = realdata / "voc" / "VOC2012"
    for file in sorted((folder / "SegmentationObject").glob("*.png")):
        semantic = read_label_map(folder / "SegmentationClass" / file.name)
        instances = read_label_map(file)
        prediction = PERTURBATIONS[name](file.stem, semantic, instances)
        assert_same(official, (prediction, semantic, instances), 21)


def shared():
    """Two instances of 1 and 48 px in one component of 98 px: shares of 49 * 1 / 49 and 48."""
    instances = np.zeros((20, 20), np.uint8)
    instances[0, 0] = 1
    instances[2:6, :12] = 2
    prediction = np.zeros_like(instances)
    prediction[:7, :14] = 1
    return prediction, (instances > 0).astype(np.uint8), instances


def test_shares_are_cut_as_floating_point_has_them(official):
    maps = shared()
    # The share of the small one is 1 / 49 * 49 px: 0.9999999999999999, cut to 0. So it is charged
    # its own pixel alone: IoU 1, where whole numbers would give 1 / 2. The other one: 48 / 96.
    assert theirs(official, *maps, 2)["S"][0].tolist() == [0.0, 1.0 + 0.5]
    assert_same(official, maps, 2)


def test_shares_are_cut_as_floating_point_has_them_here_too():
    # The same without their code.
    table = match_image(*shared(), num_classes=2, mode="official").table
    assert table.iou[1:].tolist() == [1.0, 0.5]


def square(value=1):
    painted = np.zeros((20, 20), np.uint8)
    painted[4:10, 4:10] = value
    return painted


def test_a_gap_in_the_ids_is_not_a_number_there(official):
    semantic, instances = square(), square(3)
    with np.errstate(invalid="ignore"):
        total, count = theirs(official, semantic, semantic, instances, 2)[""]
    # Ids 1 and 2 are looked for, found empty, and counted as background.
    assert np.isnan(total[0])
    assert count.tolist() == [3.0, 1.0]
    assert ours(semantic, semantic, instances, 2)[""][0].tolist() == [1.0, 1.0]


def test_an_image_of_void_alone_is_an_error_there(official):
    void = np.full((20, 20), 255, np.uint8)
    with pytest.raises(IndexError, match="out of bounds"):
        theirs(official, square(), void, void, 2)
    assert ours(square(), void, void, 2)[""][1].tolist() == [0.0, 0.0]


def test_an_ignored_pixel_within_an_instance_is_an_error_there(official):
    semantic, instances = square(), square()
    semantic[5, 5] = 255
    with pytest.raises(IndexError, match="out of bounds"):
        theirs(official, square(), semantic, instances, 2)
    assert ours(square(), semantic, instances, 2)[""][0].tolist() == [1.0, 1.0]


def test_an_ignored_pixel_outside_of_instance_void_counts_there(official):
    # Semantic 255 below instance 0: no background there, but predictions on it still cost.
    semantic, instances, prediction = square(), square(), square()
    semantic[10, 4:10] = 255
    prediction[10, 4:10] = 1
    there = theirs(official, prediction, semantic, instances, 2)[""][0]
    assert there == pytest.approx([1.0, 36 / 42])
    assert ours(prediction, semantic, instances, 2)[""][0].tolist() == [1.0, 1.0]


def test_class_pixels_without_an_instance_take_their_share_there(official):
    # 36 px of an instance, 12 px of its class in none, 12 px beyond both, one component.
    semantic, instances, prediction = square(), square(), square()
    semantic[10:12, 4:10] = 1
    prediction[10:14, 4:10] = 1
    there = theirs(official, prediction, semantic, instances, 2)[""][0]
    # There they are a rival: 12 * 36 / 48 = 9 px. Here only instances are: all 24 px.
    assert there[1] == pytest.approx(36 / 45)
    assert ours(prediction, semantic, instances, 2)[""][0][1] == pytest.approx(36 / 60)
