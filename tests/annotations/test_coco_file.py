"""Masks in COCO's notations against pycocotools, and malformed ones."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.coco_file import decode_mask, parse_runs

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
)


def _uncompressed(mask):
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.r_[0, flat]))
    return np.diff(np.r_[0, changes, len(flat)]).tolist()


@settings(max_examples=60, deadline=None)
@given(mask=masks)
def test_both_run_length_forms(mask):
    height, width = mask.shape
    code = coco_mask.encode(np.asfortranarray(mask))
    text = code["counts"].decode()
    assert parse_runs(text, "x") == _uncompressed(mask)
    for counts in (text, code["counts"], _uncompressed(mask)):
        decoded = decode_mask({"size": [height, width], "counts": counts}, height, width, "x")
        np.testing.assert_array_equal(decoded, mask.astype(bool))


def test_long_runs():
    mask = np.zeros((700, 900), np.uint8)
    mask[:, 300:800] = 1
    mask[350, 500] = 0
    code = coco_mask.encode(np.asfortranarray(mask))
    decoded = decode_mask(code, 700, 900, "x")
    np.testing.assert_array_equal(decoded, mask.astype(bool))


def test_polygons_are_united():
    triangle, square = [1.0, 1.0, 7.0, 1.0, 1.0, 7.0], [4, 4, 9, 4, 9, 9, 4, 9]
    bow_tie = [2.0, 2.0, 11.0, 9.0, 11.0, 2.0, 2.0, 9.0]
    for polygons in ([triangle, square], [np.array(triangle), square], [bow_tie]):
        outlines = [np.asarray(polygon).tolist() for polygon in polygons]
        expected = coco_mask.decode(coco_mask.frPyObjects(outlines, 10, 12)).any(2)
        np.testing.assert_array_equal(decode_mask(polygons, 10, 12, "x"), expected)
    # Polygons without area are skipped; four numbers would be a box to pycocotools.
    assert not decode_mask([[1, 1, 5, 5], []], 10, 12, "x").any()
    assert not decode_mask([], 10, 12, "x").any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [5, 4], "counts": [20]}, r"a\.json: annotation 7: .* \[5, 4\], .* \[4, 5\]"),
        ({"size": 20, "counts": [20]}, r"annotation 7: .*= 20"),
        ({"counts": [20]}, "annotation 7: a segmentation is a list of polygons or"),
        (None, "annotation 7: a segmentation is .*got None"),
        ("abc", "annotation 7: a segmentation is .*got 'abc'"),
        ({"size": [4, 5], "counts": [10, 11]}, r"add up to height \* width = 20, got \[10, 11\]"),
        ({"size": [4, 5], "counts": []}, r"run lengths are integers, got \[\]"),
        ({"size": [4, 5], "counts": [-1, 21]}, "must be >= 0"),
        ({"size": [4, 5], "counts": [2**62] * 4 + [20]}, "add up to"),  # the sum wraps around
        ({"size": [4, 5], "counts": [10.0, 10.0]}, "run lengths are integers"),
        ({"size": [4, 5], "counts": [[10], [5, 5]]}, "run lengths are integers"),
        ({"size": [4, 5], "counts": None}, "run lengths are integers, got None"),
        ({"size": [4, 5], "counts": "d0\x01"}, "corrupt compressed run lengths, byte 1"),
        ({"size": [4, 5], "counts": "oooooooooooooooooooo1"}, "corrupt compressed run lengths"),
        ({"size": [4, 5], "counts": "d0o"}, "end within a number"),
        ({"size": [4, 5], "counts": "d0d1"}, r"add up to height \* width = 20"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon is a flat list of x, y pairs"),
        ([[[1, 2], [3, 4], [5, 6]]], "a polygon is a flat list of x, y pairs"),
        ([["a", 2, 3, 4, 5, 6]], "a polygon is a list of numbers"),
        ([1, 2, 3, 4, 5, 6], "a polygon is a flat list"),
        ([[1, 2, 3, 4, 5, float("nan")]], "must be finite and near the image"),
        ([[1, 2, 3, 4, 5, 1e12]], "must be finite and near the image"),
        # Long outlines take long: a thousand of these took 40 seconds.
        ([[-1e5, -1e5, 1e5, -1e5, 1e5, 1e5]], "near the image, within 500 pixels"),
    ],
)
def test_malformed(segmentation, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_mask(segmentation, 4, 5, "a.json: annotation 7")
    assert str(caught.value).startswith("a.json: annotation 7")
