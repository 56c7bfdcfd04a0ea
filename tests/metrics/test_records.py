"""The record tables and the size bins."""

from __future__ import annotations

import doctest
import math
import pickle

import numpy as np
import pytest

from d2_smallobj.metrics import (
    COCO_SIZE_BINS,
    BlobTable,
    InstanceTable,
    SizeBins,
    parse_size_bins,
    records,
)


def make(**changes):
    columns = {
        "image_id": ["b", "a", "a"],
        "instance_id": [1, 2, 1],
        "category_id": [1, 1, 2],
        "area": [100, 1024, 9216],
        "pixels": [90, 1024, 9000],
        "intersection": [45, 0, 9000],
        "charged": [50.5, 0.0, 9000.0],
        "components": [2, 0, 1],
        "shared": [0, 0, 2],
        "image_area": [10000, 20000, 20000],
        **changes,
    }
    return InstanceTable.from_columns(columns)


def test_iou_is_derived():
    # 45 / (90 + 50.5 - 45)
    assert make().iou.tolist() == [45 / 95.5, 0.0, 1.0]
    kinds = {name: column.dtype.kind for name, column in make().columns().items()}
    assert kinds == {**dict.fromkeys(kinds, "i"), "image_id": "U", "charged": "f"}


def test_sorted_and_selected():
    table = make().sorted()
    keys = list(zip(table.image_id, table.category_id, table.instance_id))
    assert keys == [("a", 1, 2), ("a", 2, 1), ("b", 1, 1)]
    assert make().select(make().area > 500).instance_id.tolist() == [2, 1]
    assert make().select(np.array([2, 0])).area.tolist() == [9216, 100]


def test_concatenation_keeps_records_and_long_names():
    long = make(image_id=["a rather long name", "x", "y"])
    table = InstanceTable.concatenate([make(), InstanceTable.concatenate([]), long])
    assert len(table) == 6
    assert table.image_id[3] == "a rather long name"
    assert len(InstanceTable.concatenate([])) == 0
    assert InstanceTable.concatenate([]).iou.shape == (0,)


def test_sizes():
    assert make().size_of().tolist() == [0, 1, 2]
    assert make().size_of({"tiny": 100, "small": 1025}).tolist() == [1, 1, 2]


def test_columns_must_fit():
    with pytest.raises(ValueError, match=r"must share one length, got .*'area': \(2,\)"):
        make(area=[1, 2])
    with pytest.raises(ValueError, match=r"columns must be .*got .*'colour'"):
        make(colour=[1, 2, 3])
    with pytest.raises(ValueError, match=r"ascending upper bounds, got \{"):
        make().size_of({})


def test_relative_sizes():
    bins = SizeBins({"S": 0.01, "M": 0.1, "L": 1}, relative=True)
    # 100 / 10000 is the bound itself; 1024 / 20000 = 0.0512; 9216 / 20000 = 0.4608.
    assert make().size_of(bins).tolist() == [1, 1, 2]
    blobs = BlobTable.from_columns(
        {"image_id": ["a"], "category_id": [1], "area": [99], "image_area": [10000]}
    )
    assert blobs.size_of(bins).tolist() == [0]


def test_blobs_sorted():
    columns = {"image_id": list("baaa"), "category_id": [1, 2, 1, 2], "area": [5, 9, 7, 4]}
    columns["image_area"] = [100] * 4
    blobs = BlobTable.from_columns(columns).sorted()
    keys = list(zip(blobs.image_id, blobs.category_id, blobs.area))
    assert keys == [("a", 1, 7), ("a", 2, 4), ("a", 2, 9), ("b", 1, 5)]
    assert len(BlobTable.concatenate([])) == 0
    with pytest.raises(ValueError, match=r"columns of BlobTable must share one length"):
        BlobTable.from_columns({**columns, "area": [1]})


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


@pytest.mark.parametrize(("text", "message"), [
    ("", r"expected 'coco', .* got '' in ''"),
    ("coko", r"got 'coko'"),
    ("S:1024,M", r"got 'M' in 'S:1024,M'"),
    ("S:x", r"got 'S:x'"),
    (":3", r"got ':3'"),
    ("S:nan", r"got 'S:nan'"),
    ("S:1,S:2", r"duplicate bin name 'S'"),
    ("S:2,M:1", r"ascending upper bounds, got \{'S': 2.0, 'M': 1.0\}"),
    ("S:0", r"ascending upper bounds, got \{'S': 0.0\}"),
    ("relative:S:0.1,L:32", r"at most 1, got \[32.0\]"),
])  # fmt: skip
def test_a_wrong_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_size_bins(text)


def test_the_examples_run():
    result = doctest.testmod(records)
    assert (result.failed, result.attempted) == (0, 3)
