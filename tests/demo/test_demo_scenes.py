"""Properties of the demo scenes and of their pseudo labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.classes import DEMO_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.demo.dataset import make_demo
from d2_smallobj.demo.scenes import OBJECT_CLASSES
from d2_smallobj.metrics import Accumulator

SMALL, LARGE = 32**2, 96**2


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / "smallobj_demo"
    make_demo(root, num_train=36, num_val=1)
    return root


@pytest.fixture(scope="module")
def scenes(demo):
    """Per training scene: image, semantic, instance and pseudo-label map."""
    root = demo / "VOCdevkit/VOC2012"
    folders = ("SegmentationClass", "SegmentationObject", "PseudoLabels/demo")
    found = []
    for path in sorted((root / "JPEGImages").glob("train_*.jpg")):
        maps = (read_label_map(root / folder / f"{path.stem}.png") for folder in folders)
        found.append((np.asarray(Image.open(path)), *maps))
    return found


def ids_in(instances):
    return set(np.unique(instances)) - {0, 255}


def grown(mask, side=3):
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


@pytest.fixture(scope="module")
def instances(scenes):
    """Rows of (scene, id, class, pixels) of all instances."""
    rows = []
    for number, (_, semantic, ids, _) in enumerate(scenes):
        for identity in ids_in(ids):
            (class_id,) = np.unique(semantic[ids == identity])
            rows.append((number, identity, class_id, np.count_nonzero(ids == identity)))
    return np.array(rows, dtype=int)


@pytest.mark.parametrize("kind", OBJECT_CLASSES, ids=lambda kind: kind.name)
def test_areas_of_the_outlines(kind):
    v, u = np.mgrid[-1.1:1.1:1201j, -1.1:1.1:1201j]
    inside = kind.inside(u, v)
    assert inside.mean() * 2.2**2 == pytest.approx(kind.area, rel=0.01)
    assert np.hypot(u, v)[inside].max() <= 1.0


def test_files_are_real(demo, scenes):
    assert [one.shape for one in scenes[0]] == [(192, 192, 3), *[(192, 192)] * 3]
    names = ["SegmentationClass", "SegmentationObject", "PseudoLabels/demo", "JPEGImages"]
    for name, kind in zip(names, [("PNG", "P")] * 3 + [("JPEG", "RGB")]):
        (path,) = (demo / "VOCdevkit/VOC2012" / name).glob("train_00000.*")
        with Image.open(path) as stored:
            assert (stored.format, stored.mode) == kind


def test_sizes_are_spread_and_small_objects_have_few_pixels(instances):
    pixels = instances[:, 3]
    shares = np.histogram(pixels, [0, SMALL, LARGE, np.inf])[0] / len(pixels)
    assert (shares > [0.45, 0.2, 0.03]).all()
    assert pixels[pixels < SMALL].sum() < 0.15 * pixels.sum()
    assert pixels.min() >= 16
    # Log-uniform: the small ones themselves are spread over their range.
    assert np.mean(pixels < 256) > 0.2


def test_classes_are_balanced(instances, scenes):
    assert DEMO_CLASS_NAMES[1:] == tuple(kind.name for kind in OBJECT_CLASSES)
    share = np.bincount(instances[:, 2], minlength=7)[1:] / len(instances)
    assert 0.5 / 6 < share.min() <= share.max() < 2.0 / 6
    kinds = [len(set(instances[instances[:, 0] == n, 2])) for n in range(len(scenes))]
    assert 1 <= min(kinds) < 3 <= max(kinds)


def test_foreground_is_a_minority_objects_occlude_and_background_is_cluttered(scenes, instances):
    shares = [np.mean((semantic > 0) & (semantic < 255)) for _, semantic, _, _ in scenes]
    assert 0.15 < np.mean(shares) < 0.5
    touching = 0
    for image, semantic, ids, _ in scenes:
        # A plain background would have next to no gradient away from the objects.
        far = ~grown(semantic > 0, 7)
        assert not far.any() or image.mean(2)[far].std() > 8
        for identity in ids_in(ids):
            touching += bool(ids_in(ids[grown(ids == identity, 5)]) - {identity})
    assert touching > 0.25 * len(instances)


def test_borders(scenes):
    for _, semantic, ids, _ in scenes:
        border = ids == 255
        np.testing.assert_array_equal(semantic == 255, border)
        np.testing.assert_array_equal(ids == 0, semantic == 0)
        # A border is one pixel wide; more only where a front object's border covers a part.
        assert grown(~border & (ids > 0))[border].mean() > 0.97
        # Every instance is surrounded by border: it touches neither background nor another.
        for mask in (ids == identity for identity in ids_in(ids)):
            assert (ids[grown(mask) & ~mask] == 255).all()


def test_annotation_file_agrees_with_the_maps(demo, scenes, instances):
    found = InstanceAnnotations(demo / "annotations/instances_train.json")
    assert found.class_names == DEMO_CLASS_NAMES
    assert found.num_instances == len(instances)
    for image_id, (_, semantic, ids, _) in zip(found.image_ids, scenes):
        painted, numbered = found.maps(image_id)
        inside = (ids > 0) & (ids < 255)
        # The same instances under the same numbers and classes ...
        np.testing.assert_array_equal(numbered[inside], ids[inside])
        np.testing.assert_array_equal(painted[inside], semantic[inside])
        # ... and what only the annotations hold is border.
        assert (ids[(numbered > 0) & ~inside] == 255).all()
        # Without a neighbour in front of it, an instance has the very same pixels.
        assert set(np.unique(numbered)) - {0} == ids_in(ids)


def test_pseudo_labels_are_good_for_large_and_bad_for_small_objects(scenes):
    accumulator = Accumulator(num_classes=7)
    for number, (_, semantic, ids, pseudo) in enumerate(scenes):
        accumulator.update(str(number), pseudo, semantic, ids)
    score = accumulator.summarize(DEMO_CLASS_NAMES)
    assert 75 < score["mIoU"] < 95
    assert 35 < score["IA-mIoU_S"] < 70
    assert score["IA-mIoU_S"] + 15 < score["IA-mIoU_M"] < score["IA-mIoU_L"] < 99


def test_small_objects_are_missed_and_classes_confused_now_and_then(scenes, instances):
    missed, confused = [], 0
    for n, identity, class_id, _ in instances:
        given = scenes[n][3][scenes[n][2] == identity]
        missed.append(class_id not in given)
        counts = np.bincount(given[given > 0], minlength=7)
        confused += counts.any() and counts.argmax() != class_id
    pixels, missed = instances[:, 3], np.array(missed)
    assert 0.2 < missed[pixels < 256].mean() < 0.6
    assert 0.12 < missed[pixels < SMALL].mean() < 0.5
    assert missed[pixels >= 48**2].mean() < 0.1
    assert missed[pixels < 256].mean() > missed[(pixels >= 256) & (pixels < SMALL)].mean()
    assert 0.005 * len(instances) < confused < 0.15 * len(instances)


def test_neighbours_merge(scenes):
    merged = separate = 0
    for _, semantic, ids, pseudo in scenes:
        for class_id in set(np.unique(pseudo)) - {0}:
            count, parts = cv2.connectedComponents((pseudo == class_id).astype(np.uint8))
            for part in range(1, count):
                here = (parts == part) & (semantic == class_id)
                touched = len(set(np.unique(ids[here])))
                merged += touched > 1
                separate += touched == 1
    assert merged > 0.08 * (merged + separate)


def test_boundaries_bleed_and_wander(scenes):
    outside = inside = area = 0
    for _, semantic, _, pseudo in scenes:
        # No class that the image has not.
        assert set(np.unique(pseudo)) <= (set(np.unique(semantic)) | {0}) - {255}
        foreground = (semantic > 0) & (semantic < 255)
        outside += np.count_nonzero((pseudo > 0) & (semantic == 0))
        inside += np.count_nonzero((pseudo == 0) & foreground)
        area += np.count_nonzero(foreground)
    assert outside > inside > 0.005 * area
    assert outside > 0.03 * area
