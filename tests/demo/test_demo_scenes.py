"""Properties of the demo scenes and of their pseudo labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.classes import DEMO_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.image_lists import voc_dicts
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.demo.scenes import OBJECT_CLASSES
from d2_smallobj.metrics import Accumulator

SMALL, LARGE = 32**2, 96**2


@pytest.fixture(scope="module")
def scenes(demo):
    """Per training scene: image, semantic, instance and pseudo-label map."""
    root = demo / "VOCdevkit/VOC2012"
    dicts = voc_dicts(
        root, "train", label_dir="SegmentationClass", instance_dir="SegmentationObject"
    )
    return [
        (
            np.asarray(Image.open(d["file_name"])),
            read_label_map(d["sem_seg_file_name"]),
            read_label_map(d["ins_seg_file_name"]),
            read_label_map(root / "PseudoLabels/demo" / f"{d['image_id']}.png"),
        )
        for d in dicts
    ]


@pytest.fixture(scope="module")
def instances(scenes):
    """Rows of (scene, id, class, pixels) of all instances."""
    rows = []
    for number, (_, semantic, ids, _) in enumerate(scenes):
        for identity in set(np.unique(ids)) - {0, 255}:
            classes = np.unique(semantic[ids == identity])
            assert len(classes) == 1, "an instance has one class"
            rows.append((number, identity, classes[0], np.count_nonzero(ids == identity)))
    return np.array(rows, dtype=int)


def _components(mask):
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


@pytest.mark.parametrize("kind", OBJECT_CLASSES, ids=lambda kind: kind.name)
def test_areas_of_the_outlines(kind):
    v, u = np.mgrid[-1.1:1.1:1201j, -1.1:1.1:1201j]
    inside = kind.inside(u, v)
    assert inside.mean() * 2.2**2 == pytest.approx(kind.area, rel=0.01)
    assert np.hypot(u, v)[inside].max() <= 1.0


def test_files_are_real(demo, scenes):
    image, semantic, ids, pseudo = scenes[0]
    assert image.shape == (192, 192, 3)
    assert {m.shape for m in (semantic, ids, pseudo)} == {(192, 192)}
    folder = demo / "VOCdevkit/VOC2012"
    for name in ("SegmentationClass", "SegmentationObject", "PseudoLabels/demo"):
        with Image.open(folder / name / "train_00000.png") as stored:
            assert (stored.format, stored.mode) == ("PNG", "P")
    with Image.open(folder / "JPEGImages/train_00000.jpg") as stored:
        assert (stored.format, stored.mode) == ("JPEG", "RGB")


def test_sizes_are_spread_and_small_objects_have_few_pixels(instances):
    pixels = instances[:, 3]
    counts = [
        np.count_nonzero(pixels < SMALL),
        np.count_nonzero((pixels >= SMALL) & (pixels < LARGE)),
        np.count_nonzero(pixels >= LARGE),
    ]
    assert counts[0] > 0.45 * len(pixels)
    assert counts[1] > 0.2 * len(pixels)
    assert counts[2] > 0.03 * len(pixels)
    assert pixels[pixels < SMALL].sum() < 0.15 * pixels.sum()
    assert pixels.min() >= 16
    # Log-uniform: the small ones themselves are spread over their range.
    assert np.count_nonzero(pixels < 256) > 0.2 * len(pixels)


def test_classes_are_balanced(instances, scenes):
    assert DEMO_CLASS_NAMES[1:] == tuple(kind.name for kind in OBJECT_CLASSES)
    share = np.bincount(instances[:, 2], minlength=7)[1:] / len(instances)
    assert share.min() > 0.5 / 6
    assert share.max() < 2.0 / 6
    kinds = [len(set(instances[instances[:, 0] == n, 2])) for n in range(len(scenes))]
    assert min(kinds) >= 1
    assert max(kinds) >= 3


def test_foreground_is_a_minority_and_objects_occlude(scenes, instances):
    shares = [np.mean((semantic > 0) & (semantic < 255)) for _, semantic, _, _ in scenes]
    assert 0.15 < np.mean(shares) < 0.5
    touching = 0
    for _, _, ids, _ in scenes:
        for identity in set(np.unique(ids)) - {0, 255}:
            grown = cv2.dilate((ids == identity).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            touching += bool(set(np.unique(ids[grown])) - {0, 255, identity})
    assert touching > 0.25 * len(instances)


def test_borders(scenes):
    for _, semantic, ids, _ in scenes:
        border = ids == 255
        np.testing.assert_array_equal(semantic == 255, border)
        np.testing.assert_array_equal(ids == 0, semantic == 0)
        # A border is one pixel wide; more only where a front object's border covers a part.
        objects = (~border & (ids > 0)).astype(np.uint8)
        assert cv2.dilate(objects, np.ones((3, 3), np.uint8))[border].mean() > 0.97
        # Every instance is surrounded by border: it touches neither background nor another.
        for identity in set(np.unique(ids)) - {0, 255}:
            mask = (ids == identity).astype(np.uint8)
            around = (cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0) & (mask == 0)
            assert (ids[around] == 255).all()


def test_clutter(scenes):
    # A plain background would have next to no gradient away from the objects.
    for image, semantic, _, _ in scenes[:20]:
        far = cv2.dilate((semantic > 0).astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
        if far.any():
            grey = image.mean(2)
            assert grey[far].std() > 8


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
        assert set(np.unique(numbered)) - {0} == set(np.unique(ids)) - {0, 255}


def test_pseudo_labels_know_the_classes_of_the_image(scenes):
    for _, semantic, _, pseudo in scenes:
        assert set(np.unique(pseudo)) <= (set(np.unique(semantic)) | {0}) - {255}


def _score(scenes):
    accumulator = Accumulator(num_classes=7)
    for number, (_, semantic, ids, pseudo) in enumerate(scenes):
        accumulator.update(str(number), pseudo, semantic, ids)
    return accumulator.summarize(DEMO_CLASS_NAMES)


def test_pseudo_labels_are_good_for_large_and_bad_for_small_objects(scenes):
    score = _score(scenes)
    assert 75 < score["mIoU"] < 95
    assert 35 < score["IA-mIoU_S"] < 70
    assert score["IA-mIoU_S"] + 15 < score["IA-mIoU_M"] < score["IA-mIoU_L"] < 99


def test_small_objects_are_missed(scenes, instances):
    missed = np.array(
        [
            not (scenes[n][3][scenes[n][2] == identity] == class_id).any()
            for n, identity, class_id, _ in instances
        ]
    )
    pixels = instances[:, 3]
    assert 0.2 < missed[pixels < 256].mean() < 0.6
    assert 0.12 < missed[pixels < SMALL].mean() < 0.5
    assert missed[pixels >= 48**2].mean() < 0.1
    assert missed[pixels < 256].mean() > missed[(pixels >= 256) & (pixels < SMALL)].mean()


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
        foreground = (semantic > 0) & (semantic < 255)
        outside += np.count_nonzero((pseudo > 0) & (semantic == 0))
        inside += np.count_nonzero((pseudo == 0) & foreground)
        area += np.count_nonzero(foreground)
    assert outside > inside > 0.005 * area
    assert outside > 0.03 * area


def test_classes_are_confused_now_and_then(scenes, instances):
    confused = 0
    for n, identity, class_id, _ in instances:
        given = scenes[n][3][scenes[n][2] == identity]
        counts = np.bincount(given[given > 0], minlength=7)
        confused += counts.any() and counts.argmax() != class_id
    assert 0.005 * len(instances) < confused < 0.15 * len(instances)
