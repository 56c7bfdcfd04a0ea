"""Size bins and their text."""

from __future__ import annotations

import doctest
import math
import pickle

import numpy as np
import pytest

from d2_smallobj.metrics import COCO_SIZE_BINS, SizeBins, parse_size_bins, sizes


def test_coco_is_the_default():
    assert dict(parse_size_bins("coco")) == {"S": 1024, "M": 9216, "L": math.inf}
    assert parse_size_bins(" COCO ") is COCO_SIZE_BINS


@pytest.mark.parametrize("text", [
    "S:1024,M:9216,L:inf", "relative:S:0.01,M:0.1,L:1", "tiny:10.5", "relative:a:0.25,b:inf",
])  # fmt: skip
def test_the_text_survives_a_round_trip(text):
    bins = parse_size_bins(text)
    assert str(bins) == text
    assert bins.relative == text.startswith("relative:")
    assert parse_size_bins(str(bins)) == bins == pickle.loads(pickle.dumps(bins))


def test_absolute_and_relative_bins_differ():
    bounds = {"a": 0.5, "b": 1}
    assert SizeBins(bounds) != SizeBins(bounds, relative=True)
    assert SizeBins(bounds) == bounds
    assert hash(SizeBins(bounds)) == hash(SizeBins(bounds))
    assert SizeBins(bounds) != {"b": 1, "a": 0.5}
    assert SizeBins(bounds) != 3


def test_bounds_are_exclusive():
    assert COCO_SIZE_BINS.positions(np.array([1023, 1024, 9215, 9216]), 1).tolist() == [0, 1, 1, 2]
    share = SizeBins({"S": 0.01, "M": 0.5}, relative=True)
    found = share.positions(np.array([9, 10, 499, 500, 1000]), np.full(5, 1000))
    assert found.tolist() == [0, 1, 1, 2, 2]
    # An instance may fill its image: a share of 1 is no limit.
    assert parse_size_bins("relative:all:1").positions([1000], 1000).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected 'coco', .* got '' in ''"),
        ("coko", r"got 'coko'"),
        ("S:1024,M", r"got 'M' in 'S:1024,M'"),
        ("S:x", r"got 'S:x'"),
        (":3", r"got ':3'"),
        ("S:nan", r"got 'S:nan'"),
        ("S:1,S:2", r"every name once, got 'S' again"),
        ("S:2,M:1", r"ascending upper bounds, got \{'S': 2.0, 'M': 1.0\}"),
        ("S:0", r"ascending upper bounds, got \{'S': 0.0\}"),
        ("relative:S:0.1,L:32", r"at most 1, got \[32.0\]"),
    ],
)
def test_a_wrong_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_size_bins(text)


def test_the_examples_run():
    result = doctest.testmod(sizes)
    assert (result.failed, result.attempted) == (0, 3)
