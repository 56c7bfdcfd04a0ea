"""Panoptic PNGs and their segments: ids, crowds, and files that do not belong together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from small_scenes import write_ids

from d2_smallobj.annotations.panoptic import (
    Segment,
    panoptic_maps,
    panoptic_size,
    read_panoptic_file,
    read_panoptic_ids,
    segments_of,
)


@pytest.fixture
def scene(tmp_path):
    """Sky (class 1), two cats, a crowd of them (class 0), unlabelled pixels; an id is 255."""
    ids = np.zeros((6, 10), np.int64)
    ids[:2] = 7
    ids[2:4, :3] = 255
    ids[2:4, 3:6] = 70000
    ids[4:, :5] = 300
    segments = (Segment(7, 1, False), Segment(255, 0, False), Segment(70000, 0, False))
    return write_ids(tmp_path / "a.png", ids), (*segments, Segment(300, 0, True)), ids


def test_a_scene_by_hand(scene):
    path, segments, ids = scene
    maps = panoptic_maps(path, segments, stuff=[1], ignore_label=255)
    assert panoptic_size(path) == ids.shape
    expected = np.select([ids == 7, ids == 0], [1, 255], 0)
    np.testing.assert_array_equal(maps.semantic, expected)
    # Crowds keep their class and are void for the instances; the id that means void is renamed.
    expected = np.select([ids == 255, ids == 70000, ids == 300], [70001, 70000, 255], 0)
    np.testing.assert_array_equal(maps.instances, expected)
    assert maps.classes == {70001: 0, 70000: 0}
    assert maps.semantic.dtype == np.uint8


def test_labels_of_16_bits(scene):
    path, segments, _ = scene
    maps = panoptic_maps(path, segments, stuff=[], ignore_label=65535)
    assert maps.semantic.dtype == np.uint16
    assert np.unique(maps.semantic).tolist() == [0, 1, 65535]
    # Nothing is stuff: the sky is an instance.
    assert maps.classes[7] == 1


def test_more_instances_than_a_byte_tells_apart(tmp_path):
    ids = np.arange(1, 301).reshape(15, 20).repeat(3, 0).repeat(3, 1)
    segments = tuple(Segment(number, 0, False) for number in range(1, 301))
    maps = panoptic_maps(write_ids(tmp_path / "a.png", ids), segments, stuff=[], ignore_label=255)
    assert len(maps.classes) == len(np.unique(maps.instances)) == 300
    assert 255 not in maps.instances


CATS = [(255, 0), (70000, 0)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(7, 1), *CATS], r"id\(s\) 300 \(10 px\) have no entry in segmen"),
        ([(7, 1), *CATS, (300, 0), (9, 1)], r"segment\(s\) 9 of segments_info have no pixel; do"),
        ([(7, 1), (7, 0)], r"segments_info has segment\(s\) 7 twice"),
        ([(0, 1)], r"segment ids must be in 1\.\.16777215, got 0"),
    ],
)
def test_segments_that_do_not_fit(scene, pairs, message):
    segments = [Segment(*pair, False) for pair in pairs]
    with pytest.raises(ValueError, match=rf"a\.png: {message}"):
        panoptic_maps(scene[0], segments, stuff=[], ignore_label=255)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 3, "category_id": 5}, r"x\.png: segment 3 has category_id 5, .* classes 0\.\.2"),
        ({"id": 3}, r"x\.png: an entry of segments_info has integers 'id' and 'category_id'"),
        ({"id": 3, "category_id": None}, r"an entry of segments_info has integers"),
    ],
)
def test_segments_of_unknown_categories(entry, message):
    with pytest.raises(ValueError, match=message):
        segments_of([entry], 3, "x.png")


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pictures_of_another_mode(tmp_path, mode):
    Image.new(mode, (4, 5)).save(tmp_path / "b.png")
    message = r"b\.png: expected a PNG of mode RGB with 8 bits .*; is it a semantic map\?"
    with pytest.raises(ValueError, match=message):
        read_panoptic_ids(tmp_path / "b.png")


def test_damaged_files(scene):
    content = scene[0].read_bytes()
    for damaged in (b"", content[:60], content[:45] + b"x" + content[46:]):
        scene[0].write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.png: corrupt"):
            read_panoptic_ids(scene[0])


def content(**changes):
    segment = {"id": 1, "category_id": 40, "iscrowd": 0, "area": 3}
    return {
        "images": [{"id": 5, "file_name": "five.jpg"}],
        "annotations": [{"image_id": 5, "file_name": "five.png", "segments_info": [segment]}],
        "categories": [
            {"id": 40, "name": "sky, clouds", "isthing": 0},
            {"id": 2, "name": "cat", "isthing": 1},
        ],
        **changes,
    }


def test_categories_in_the_order_of_their_ids(tmp_path):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content()))
    found = read_panoptic_file(path)
    assert found.class_names == ("cat", "sky, clouds")
    assert found.stuff == (1,)
    assert found.segments == ((Segment(1, 1, False),),)
    assert found.pictures == {5: "five.jpg"}


ENTRY, CATEGORIES = content()["annotations"][0], content()["categories"]
STRANGE = ENTRY | {"segments_info": [{"id": 4, "category_id": 9}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "a COCO panoptic file has lists 'annotations' .*isthing"),
        ({"categories": [{"id": 1, "name": "x"}]}, "missing required field `isthing`"),
        (
            {"annotations": [ENTRY] * 2},
            r"1 error\(s\):\n  image_id 5 occurs twice in 'annotations'",
        ),
        ({"annotations": [STRANGE]}, "image 5: segment 4 has category_id 9, which is not in 'cat"),
        ({"categories": CATEGORIES * 2}, "id 2 occurs twice in 'cat.*name 'cat' occurs twice"),
    ],
)
def test_malformed_files(tmp_path, changes, message):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content(**changes)))
    with pytest.raises(ValueError, match=rf"(?s)panoptic\.json: .*{message}"):
        read_panoptic_file(path)
