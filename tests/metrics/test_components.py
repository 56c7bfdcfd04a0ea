"""Components: against a flood fill, and the filled contours of the official mode."""

from __future__ import annotations

import numpy as np
import pytest
from random_maps import label_maps, on_random_maps

from d2_smallobj.metrics import components
from d2_smallobj.metrics.components import (
    class_components,
    label_components,
    label_histogram,
    narrow,
)


def flood(inside: np.ndarray, start: tuple[int, int], *, diagonal: bool) -> set[tuple[int, int]]:
    """All pixels of ``inside`` that can be reached from ``start``."""
    found, front = {start}, [start]
    while front:
        y, x = front.pop()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near = (y + dy, x + dx)
                if (dy and dx and not diagonal) or near in found:
                    continue
                within = 0 <= near[0] < inside.shape[0] and 0 <= near[1] < inside.shape[1]
                if within and inside[near]:
                    found.add(near)
                    front.append(near)
    return found


def flood_components(inside: np.ndarray) -> list[frozenset[tuple[int, int]]]:
    """The 8-connected components as sets of pixels."""
    left, found = set(zip(*(axis.tolist() for axis in np.nonzero(inside)))), []
    while left:
        found.append(frozenset(flood(inside, min(left), diagonal=True)))
        left -= found[-1]
    return found


def as_sets(numbered: np.ndarray) -> list[frozenset[tuple[int, int]]]:
    """The pixels of every number from 1."""
    return [
        frozenset(zip(*(axis.tolist() for axis in np.nonzero(numbered == k))))
        for k in range(1, numbered.max(initial=0) + 1)
    ]


@on_random_maps(150)
def test_components_are_those_of_a_flood_fill(rng):
    for labels in label_maps(rng, 9, 3):
        parts = class_components(labels)
        expected = {(c, p) for c in (1, 2) for p in flood_components(labels == c)}
        pixels = as_sets(parts.map)
        assert set(zip(parts.class_of.tolist(), pixels)) == expected
        assert parts.area.tolist() == [len(p) for p in pixels]
        assert np.all((parts.map == 0) == (labels == 0))


@on_random_maps(150)
def test_filled_components_are_what_the_outer_background_leaves(rng):
    for labels in label_maps(rng, 9, 3):
        parts = class_components(labels, filled=True)
        expected = set()
        for label in (1, 2):
            outside = flood(np.pad(labels, 1) != label, (0, 0), diagonal=False)
            filled = np.ones(np.add(labels.shape, 2), bool)
            filled[tuple(np.array(sorted(outside)).T)] = False
            for region in flood_components(filled[1:-1, 1:-1]):
                expected.add((label, frozenset(p for p in region if labels[p] == label)))
        pixels = as_sets(parts.map)
        assert parts.area.tolist() == [len(p) for p in pixels]
        assert set(zip(parts.class_of.tolist(), pixels)) == expected


def test_a_blob_in_a_hole_belongs_to_the_outer_blob_only_when_filled():
    # 7x7 ring with a 5x5 hole, in it one island of the class and one of another.
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8] = 1
    labels[2:7, 2:7] = 0
    labels[3, 3], labels[5, 5] = 1, 2
    plain, filled = class_components(labels), class_components(labels, filled=True)
    assert list(zip(plain.class_of, plain.area)) == [(1, 24), (1, 1), (2, 1)]
    # The hole's own pixels stay out of the area (golden case "hole").
    assert list(zip(filled.class_of, filled.area)) == [(1, 25), (2, 1)]
    assert filled.map[4, 4] == 0
    assert filled.map[3, 3] == filled.map[1, 1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_dtypes_agree(dtype):
    labels = np.random.default_rng(0).integers(0, 4, (30, 40))
    expected, found = (class_components(labels.astype(kind)) for kind in (np.uint8, dtype))
    assert np.array_equal(expected.map, found.map)
    assert found.map.dtype == np.int32
    assert found.area.dtype == found.class_of.dtype == np.int64


def test_labels_beyond_eight_bits_are_kept_apart():
    labels = np.array([[1, 257, 257, 513]], np.int32)
    parts = class_components(labels)
    assert parts.class_of.tolist() == [1, 257, 513]
    assert parts.map.tolist() == [[1, 2, 2, 3]]


def test_skip_and_only_choose_classes():
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    assert class_components(labels).class_of.tolist() == [1, 2]
    assert class_components(labels, skip=()).class_of.tolist() == [0, 1, 2, 255]
    assert class_components(labels, only={2, 3, 255}).class_of.tolist() == [2]
    assert class_components(labels, only={2}).map.tolist() == [[0, 0, 1, 0]]


def test_more_components_than_eight_bits_hold():
    labels = np.zeros((60, 60), np.uint8)
    labels[::2, ::2] = 1
    parts = class_components(labels)
    assert len(parts) == 900
    assert parts.area.tolist() == [1] * 900
    assert sorted(set(parts.map.ravel().tolist())) == list(range(901))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (4, 3)])
def test_maps_without_objects(shape):
    parts = class_components(np.zeros(shape, np.uint8), filled=True)
    assert len(parts) == 0
    assert parts.map.shape == shape
    assert parts.area.shape == (0,)
    assert label_components(np.zeros(shape, bool))[0] == 0


def test_label_components_joins_over_the_corner():
    count, labels = label_components(np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool))
    assert count == 2
    assert set(as_sets(labels)) == {frozenset({(0, 0), (1, 1)}), frozenset({(0, 3)})}
    assert label_components(np.array([[7, 0, 9]], np.uint8))[0] == 2


def test_a_view_without_contiguous_memory():
    labels = np.random.default_rng(1).integers(0, 3, (20, 30)).astype(np.uint8)
    view = labels[::2, ::-3]
    assert np.array_equal(class_components(view).map, class_components(view.copy()).map)


@pytest.mark.parametrize("function", [class_components, label_components])
def test_wrong_input_is_refused(function):
    with pytest.raises(TypeError, match=r"must be .* array.*, got float64"):
        function(np.zeros((3, 3)))
    with pytest.raises(TypeError, match=r"got list"):
        function([[0, 1]])
    with pytest.raises(ValueError, match=r"must have shape \(H, W\), got shape \(1, 3, 3\)"):
        function(np.zeros((1, 3, 3), np.uint8))


def test_every_label_of_a_byte_is_counted():
    labels = np.random.default_rng(0).integers(0, 256, (37, 23)).astype(np.uint8)
    plain = [int((labels == label).sum()) for label in range(256)]
    assert label_histogram(labels, 256).tolist() == plain
    assert label_histogram(labels, 256).dtype == np.int64


def test_beyond_what_float32_counts(monkeypatch):
    # OpenCV counts in float32, exactly up to 2**24; from there on numpy counts.
    monkeypatch.setattr(components, "_EXACT_PIXELS", 4)
    assert label_histogram(np.array([[0, 2, 2], [1, 2, 0]], np.uint8), 3).tolist() == [2, 1, 3]


def test_label_histogram_long_and_short():
    labels = np.array([[0, 2, 2], [300, 2, 0]], np.int32)
    found = label_histogram(labels, 301)
    assert (found[0], found[2], found[300], found.sum()) == (2, 3, 1, 6)
    assert label_histogram(labels[:1], 3).tolist() == [1, 0, 2]
    assert label_histogram(np.zeros((0, 4), np.uint8), 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "dtype"), [([0, 255], np.uint8), ([0, 256], np.int64), ([-1, 3], np.int64)]
)
def test_narrow_keeps_values(values, dtype):
    found = narrow(np.array([values], np.int32))
    assert found.dtype == dtype
    assert found.tolist() == [values]
