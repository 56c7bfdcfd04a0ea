"""Size weights against hand-made cases and a slow oracle written on other principles."""

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2_smallobj.losses import SizeWeights, size_weights

EIGHT = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
FOUR = [(-1, 0), (0, -1), (0, 1), (1, 0)]


def flood(inside, start, steps):
    """Cells of the set `inside` that steps reach from `start`."""
    reached, todo = {start}, [start]
    while todo:
        y, x = todo.pop()
        for dy, dx in steps:
            cell = (y + dy, x + dx)
            if cell in inside and cell not in reached:
                reached.add(cell)
                todo.append(cell)
    return reached


def oracle(labels, tau, total, compat, ignore_label):
    """The paper's Eq. 3 with sets of pixels and floods; a hole is what the outside cannot reach."""
    height, width = labels.shape
    cells = {(y, x): int(labels[y, x]) for y in range(height) for x in range(width)}
    foreground = {cell for cell, label in cells.items() if label not in (0, ignore_label)}
    weights = np.ones(labels.shape, np.float32)
    for cell, label in cells.items():
        if label == ignore_label:
            weights[cell] = 0
    padded = {(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)}
    for label in {cells[cell] for cell in foreground}:
        of_class = {cell for cell in foreground if cells[cell] == label}
        whole = len(foreground if total == "foreground" else of_class)
        left = set(of_class)
        while left:
            component = flood(of_class, next(iter(left)), EIGHT)
            left -= component
            size = len(component)
            if compat == "contour":
                size = len(padded) - len(flood(padded - component, (-1, -1), FOUR))
            for cell in component:
                weights[cell] = min(tau, whole / size)
    return weights


maps = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.sampled_from([0, 1, 1, 2, 255]),
)


@settings(max_examples=150, deadline=None)
@given(maps, st.sampled_from([1.0, 2.5, 5.0, 1e9]), st.sampled_from(["foreground", "class"]))
@pytest.mark.parametrize("compat", ["exact", "contour"])
def test_equals_the_oracle(compat, labels, tau, total):
    got = size_weights(labels, tau=tau, total=total, compat=compat)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, oracle(labels, tau, total, compat, 255))


@pytest.mark.parametrize("compat", ["exact", "contour"])
@pytest.mark.parametrize("total", ["foreground", "class"])
def test_equals_the_oracle_on_nested_rings(total, compat):
    # Rings in rings, touching the frame, with islands, diagonals and ignored pixels inside.
    labels = np.zeros((21, 24), np.uint8)
    for inset, value in ((0, 1), (2, 2), (4, 1), (6, 255), (8, 1)):
        labels[inset : 21 - inset, inset : 24 - inset] = value
        labels[inset + 1 : 20 - inset, inset + 1 : 23 - inset] = 0
    labels[[4, 5, 6], [18, 19, 20]] = 2
    labels[10, 10:13] = 2
    got = size_weights(labels, tau=100, total=total, compat=compat)
    np.testing.assert_array_equal(got, oracle(labels, 100, total, compat, 255))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, (12, 13), elements=st.integers(0, 1)))
def test_contour_size_is_what_opencv_fills(mask):
    # One class, so S_fg / w is S_k, to be compared with the authors' way of counting it.
    weights = size_weights(mask, tau=1e9, compat="contour")
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    count, numbers = cv2.connectedComponents(mask)
    filled = dict.fromkeys(range(1, count), 0)
    for contour in contours:
        canvas = np.zeros_like(mask)
        cv2.drawContours(canvas, [contour], 0, 1, -1)
        x, y = contour[0, 0]
        # Hole outlines lie on the component too, inside its outer one.
        filled[numbers[y, x]] = max(filled[numbers[y, x]], int(canvas.sum()))
    for number, size in filled.items():
        expected = np.float32(mask.sum() / size)
        np.testing.assert_array_equal(weights[numbers == number], expected)


def test_two_objects_by_hand():
    labels = np.zeros((4, 8), np.uint8)
    labels[0, 0] = 1  # 1 pixel
    labels[2:4, 0:2] = 1  # 4 pixels
    labels[2:4, 3:8] = 2  # 10 pixels
    labels[0, 7] = 255
    # S_fg = 15: 15 / 1 capped at 5; 15 / 4 = 3.75; 15 / 10 = 1.5.
    weights = size_weights(labels)
    assert [weights[0, 0], weights[2, 0], weights[2, 3]] == [5.0, 3.75, 1.5]
    assert [weights[0, 1], weights[0, 7]] == [1.0, 0.0]
    # Of class 1 alone, 5 / 1 and 5 / 4; class 2 has one component.
    weights = size_weights(labels, total="class", tau=100)
    assert [weights[0, 0], weights[2, 0], weights[2, 3]] == [5.0, 1.25, 1.0]


def test_contour_counts_the_hole_and_keeps_the_island_apart():
    labels = np.zeros((7, 7), np.int64)
    labels[0:7, 0:7] = 1
    labels[1:6, 1:6] = 0
    labels[3, 3] = 1
    # A ring of 24 around 25; the island of 1 in it. 25 foreground pixels.
    exact = size_weights(labels, tau=1000)
    assert exact[0, 0] == np.float32(25 / 24)
    assert exact[3, 3] == 25
    contour = size_weights(labels, tau=1000, compat="contour")
    assert contour[0, 0] == np.float32(25 / 49)
    assert contour[3, 3] == 25
    assert contour[2, 2] == 1, "the hole is background"


def test_tau_one_and_a_single_component_weigh_nothing():
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (30, 30))
    np.testing.assert_array_equal(size_weights(labels, tau=1), labels != 255)
    labels = np.zeros((9, 9), np.uint8)
    labels[2:5, 2:8] = 7
    np.testing.assert_array_equal(size_weights(labels), np.ones((9, 9)))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 4)])
@pytest.mark.parametrize("value", [0, 255])
def test_maps_without_foreground(shape, value):
    weights = size_weights(np.full(shape, value, np.uint8))
    assert weights.shape == shape
    np.testing.assert_array_equal(weights, np.full(shape, value == 0))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64"])
def test_dtype_and_layout_do_not_matter(dtype):
    rng = np.random.default_rng(1)
    labels = rng.choice(np.array([0, 0, 3, 20, 255], np.uint8), (20, 31))
    expected = size_weights(labels)
    np.testing.assert_array_equal(size_weights(labels.astype(dtype)), expected)
    np.testing.assert_array_equal(size_weights(np.asfortranarray(labels.astype(dtype))), expected)
    np.testing.assert_array_equal(size_weights(labels[::-1])[::-1], expected)
    labels.flags.writeable = False
    size_weights(labels, compat="contour")


def test_other_ignore_labels_and_copies_for_loader_workers():
    labels = np.array([[1, 255, 255, -1, 1]], np.int32)
    rule = SizeWeights(ignore_label=-1)
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule
    # 255 is a class here: 4 foreground pixels, two of them one component.
    np.testing.assert_array_equal(copy(labels), [[4, 2, 2, 0, 4]])


def test_bad_options_and_labels():
    for option, value, message in (
        ("tau", 0.5, r"tau must be finite and >= 1 .*got 0\.5"),
        ("tau", float("nan"), "tau must be finite and >= 1 .*got nan"),
        ("tau", float("inf"), "tau must be finite and >= 1 .*got inf"),
        ("tau", "5", "tau must be a number >= 1, got '5'"),
        ("total", "foregruond", "total.*foregruond.*did you mean 'foreground'"),
        ("compat", "contours", "compat.*contours.*did you mean 'contour'"),
        ("ignore_label", 0, "ignore_label must not be 0"),
        ("ignore_label", 2.5, r"ignore_label must be an integer, got 2\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            size_weights(np.zeros((2, 2), np.uint8), **{option: value})
    for labels, message in (
        (np.zeros((2, 2)), "labels must be an integer array.*got float64"),
        (np.zeros((2, 2), bool), "labels must be an integer array.*got bool"),
        ([[0, 1]], "labels must be an integer array.*got list"),
        (np.zeros((1, 2, 2), np.uint8), r"labels must have shape \(H, W\), got shape \(1, 2, 2"),
        (np.array([[0, -3]]), "labels must be >= 0 or the ignore label 255, got -3"),
    ):
        with pytest.raises(ValueError, match=message):
            size_weights(labels)
