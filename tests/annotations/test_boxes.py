"""Boxes: reading, checking, clipping, painting, deriving from masks."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.annotations.boxes import (
    checked_boxes,
    classes_of_numbers,
    coco_boxes,
    instance_boxes,
    number_boxes,
    only_class,
    read_voc_boxes,
)

CLASSES = {"cat": 1, "dog": 2}


def test_boxes_are_clipped_to_the_image_and_to_whole_pixels():
    rows = [(1, -3, 2.2, 4.0, 50.5), (2, 1.9, 0.0, 2.1, 1.0), (254, 0, 0, 10, 8)]
    expected = [[1, 0, 2, 4, 8], [2, 1, 0, 3, 1], [254, 0, 0, 10, 8]]
    table = np.array(rows)
    boxes = checked_boxes(table, 8, 10, "x")
    assert boxes.dtype == np.int32
    assert boxes.tolist() == expected
    assert table.tolist() == np.array(rows).tolist()  # not changed in place


@pytest.mark.parametrize("rows", [[], np.zeros((0, 5)), [(1, 3, 3, 3, 5)], [(1, 30, 3, 30, 5)]])
def test_a_box_without_area_covers_nothing(rows):
    assert checked_boxes(rows, 8, 10, "x").shape == (0, 5)


OUTSIDE = r"lies outside the image of 10 x 8 \(width x height\)"
GOOD = (1, 0, 0, 2, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, (1, 5, 0, 4, 3)], "1 bad .*: box 1 .*is inverted"),
        ([GOOD, (1, 5, 3, 7, 2)], "box 1 .*is inverted"),
        ([GOOD, (1, 10, 0, 12, 3)], f"box 1 .*{OUTSIDE}"),
        ([(1, -4, 0, 0, 3)], OUTSIDE),
        ([(1, 0, 8, 2, 9)], OUTSIDE),
        ([(1, 0, -2, 2, 0)], OUTSIDE),
        ([(1, float("nan"), 0, 2, 2)], "is not finite"),
        ([(1, 0, 0, float("inf"), 2)], "is not finite"),
        ([(0, 0, 0, 2, 2)], r"has a class that is not an integer in 1\.\.254"),
        ([(255, 0, 0, 2, 2)], "has a class"),
        ([(1.5, 0, 0, 2, 2)], "has a class"),
        ([(1, 2, 3)], r"a box is \(class id, left, top, right, bottom\)"),
        ([(1, 3, 3, 2, 2)] * 12, r"12 bad box\(es\): box 0 .*box 9 .* and 2 more$"),
    ],
)
def test_bad_boxes_are_named(rows, message):
    with pytest.raises(ValueError, match=rf"^a\.json: image 7: .*{message}"):
        checked_boxes(rows, 8, 10, "a.json: image 7")


def paint(boxes, height, width):
    return classes_of_numbers(boxes, number_boxes(boxes, height, width))


def test_crowds_are_ignored_and_lie_beneath():
    boxes = np.array([[2, 0, 0, 5, 1], [-1, 1, 0, 3, 1]], np.int32)
    assert paint(boxes, 1, 6)[0].tolist() == [2, 2, 2, 2, 2, 0]
    boxes[1] = (-1, 4, 0, 6, 1)
    assert paint(boxes, 1, 6)[0].tolist() == [2, 2, 2, 2, 2, 255]


def test_one_class_of_a_table():
    boxes = np.array([[1, 0, 0, 2, 2], [3, 1, 0, 3, 2], [-3, 2, 0, 4, 2]], np.int32)
    assert only_class(boxes, 3).tolist() == [[1, 1, 0, 3, 2], [-1, 2, 0, 4, 2]]
    assert boxes[1, 0] == 3


CORNER, SIDE = st.integers(0, 8), st.integers(1, 9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), CORNER, CORNER, SIDE, SIDE), max_size=6), SIDE, SIDE)
def test_every_pixel_has_the_class_of_the_smallest_box_on_it(drawn, height, width):
    rows = []
    for class_id, left, top, across, down in drawn:
        left, top = left % width, top % height
        rows.append((class_id, left, top, min(left + across, width), min(top + down, height)))
    boxes = checked_boxes(rows, height, width, "x")
    labels, numbers = paint(boxes, height, width), number_boxes(boxes, height, width)
    assert labels.dtype == np.uint8
    for y, x in np.ndindex(height, width):
        covering = [
            ((right - left) * (bottom - top), -number, class_id)
            for number, (class_id, left, top, right, bottom) in enumerate(rows)
            if left <= x < right and top <= y < bottom
        ]
        _, number, class_id = min(covering, default=(0, 1, 0))
        assert (numbers[y, x], labels[y, x]) == (1 - number, class_id)


IN_PIECES = np.array([[1, 0, 0, 1]], np.uint8)
TWO_CLASSES = np.array([[1, 2, 2]], np.uint8)
DIAGONAL = np.array([[1, 0, 0, 3, 3], [0, 1, 0, 0, 0]], np.uint8)
DIAGONAL_BOXES = [[1, 0, 0, 2, 2], [3, 3, 0, 5, 1]]
THREE = np.array([[1, 0, 1, 0, 1]], np.uint8)


@pytest.mark.parametrize(
    ("semantic", "instances", "expected"),
    [
        (IN_PIECES, IN_PIECES * 5, [[1, 0, 0, 4, 1]]),
        (TWO_CLASSES, np.full((1, 3), 9), [[1, 0, 0, 1, 1], [2, 1, 0, 3, 1]]),
        # Without an instance, or with void, 8-connected components are boxed.
        (DIAGONAL, None, DIAGONAL_BOXES),
        (DIAGONAL, np.zeros((2, 5), int), DIAGONAL_BOXES),
        (DIAGONAL, np.full((2, 5), 255), DIAGONAL_BOXES),
        # A component is not taken for an instance.
        (THREE, np.array([[1, 0, 0, 0, 2]]), [[1, 0, 0, 1, 1], [1, 4, 0, 5, 1], [1, 2, 0, 3, 1]]),
        # Pixels of no class have no instance.
        (IN_PIECES * 255, IN_PIECES, []),
    ],
)
def test_boxes_of_instances(semantic, instances, expected):
    assert instance_boxes(semantic, instances).tolist() == expected


def test_maps_of_different_size():
    with pytest.raises(ValueError, match=r"size of semantic \(2, 5\), got \(3, 2\)"):
        instance_boxes(DIAGONAL, np.zeros((3, 2), int))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_boxes_are_the_smallest_around_their_pixels(seed):
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, 4, (7, 8))
    semantic = np.array([0, 1, 2, 2])[instances]
    boxes = instance_boxes(semantic, instances)
    assert len(boxes) == len(set(instances.ravel()) - {0})
    for class_id, left, top, right, bottom in boxes.astype(int):
        rest = [
            identity
            for identity in (1, 2, 3)
            if [1, 2, 2][identity - 1] == class_id
            and [f(np.nonzero(instances == identity)[a]) for a in (1, 0) for f in (min, max)]
            == [left, right - 1, top, bottom - 1]
        ]
        assert rest


def annotation(*objects, size="<width>20</width><height>10</height>"):
    items = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox><part><name>head</name></part></object>"
        for name, a, b, c, d in objects
    )
    return f"<annotation><size>{size}</size>{items}</annotation>"


@pytest.fixture
def write(tmp_path):
    def write(text, name="a.xml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_voc_counts_from_1_and_includes_the_last_pixel(write):
    path = write(annotation(("dog", 1, 1, 20, 10), ("cat", 3, 4, 3, 5)))
    boxes, size = read_voc_boxes(path, CLASSES)
    assert boxes.tolist() == [[2, 0, 0, 20, 10], [1, 2, 3, 3, 5]]
    assert size == (10, 20)
    assert read_voc_boxes(write(annotation()), CLASSES)[0].shape == (0, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "not a complete VOC annotation"),
        ("<annotation></annotation>", "not a complete VOC annotation"),
        (annotation(("cow", 1, 1, 2, 2)), "object 0 has class 'cow'; expected one of cat, dog"),
        (annotation(("cat", "", 1, 2, 2)), "object 0 has no complete bndbox"),
        (annotation(("cat", 5, 1, 2, 2)), r"1 bad box\(es\): box 0 .* is inverted"),
        (annotation(("cat", 25, 1, 28, 2)), r"lies outside the image of 20 x 10"),
        ('<!DOCTYPE x [<!ENTITY a "b">]>' + annotation(), "declares no document type or entity"),
    ],
)
def test_bad_voc_annotations_are_named(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_voc_boxes(path, CLASSES)


def coco_file(write, annotations, categories=(18, 3)):
    content = {
        "images": [
            {"id": 5, "height": 10, "width": 20, "file_name": "five.jpg"},
            {"id": 4, "height": 8, "width": 8, "file_name": "four.jpg"},
        ],
        "categories": [{"id": number, "name": f"c{number}"} for number in categories],
        "annotations": [
            {"id": number, "image_id": 5, "category_id": 3, "bbox": [0, 0, 1, 1], **entry}
            for number, entry in enumerate(annotations)
        ],
    }
    return write(json.dumps(content), "a.json")


def test_coco_boxes_need_no_masks(write):
    entries = [
        {"bbox": [2.5, 1.0, 3.0, 4.25], "category_id": 18},
        {"bbox": [0, 0, 99, 99], "iscrowd": 1},
        {"bbox": [3, 3, 0, 2]},
    ]
    boxes = coco_boxes(coco_file(write, entries))
    assert boxes[5].tolist() == [[2, 2, 1, 6, 6], [-1, 0, 0, 20, 10]]
    assert boxes[4].shape == (0, 5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbox": [3, 3, -1, 2]}, r"1 image\(s\) with bad boxes:\s+image 5 \(five\.jpg\): .*inv"),
        ({"bbox": [30, 3, 1, 2]}, r"image 5 \(five\.jpg\): .*lies outside"),
        ({"bbox": [3, 3, 1]}, r"an annotation file of kind 'coco' has lists .*, bbox\)"),
        (
            {"image_id": 6},
            r"1 error\(s\):\s+annotation 0 belongs to image 6, which is not in the file",
        ),
        ({"category_id": 1}, "annotation 0 has category 1, which is not in the file"),
    ],
)
def test_bad_coco_boxes_are_named(write, entry, message):
    path = coco_file(write, [entry])
    with pytest.raises(ValueError, match=rf"(?s)^{re.escape(str(path))}: .*{message}"):
        coco_boxes(path)
