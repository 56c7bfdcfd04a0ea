"""The fast ways of counting equal the plain one."""

from __future__ import annotations

import numpy as np
import pytest

from d2_smallobj.metrics import histogram
from d2_smallobj.metrics.components import label_histogram, narrow


def test_every_label_of_a_byte_is_counted():
    labels = np.random.default_rng(0).integers(0, 256, (37, 23)).astype(np.uint8)
    plain = [int((labels == label).sum()) for label in range(256)]
    assert label_histogram(labels, 256).tolist() == plain
    assert label_histogram(labels, 256).dtype == np.int64


def test_beyond_what_float32_counts(monkeypatch):
    # OpenCV counts in float32, exactly up to 2**24; from there on numpy counts.
    monkeypatch.setattr(histogram, "_EXACT_PIXELS", 4)
    assert label_histogram(np.array([[0, 2, 2], [1, 2, 0]], np.uint8), 3).tolist() == [2, 1, 3]


def test_label_histogram_long_and_short():
    labels = np.array([[0, 2, 2], [300, 2, 0]], np.int32)
    found = label_histogram(labels, 301)
    assert (found[0], found[2], found[300], found.sum()) == (2, 3, 1, 6)
    assert label_histogram(labels[:1], 3).tolist() == [1, 0, 2]


def test_empty_maps():
    assert label_histogram(np.zeros((0, 4), np.uint8), 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "dtype"), [([0, 255], np.uint8), ([0, 256], np.int64), ([-1, 3], np.int64)]
)
def test_narrow_keeps_values(values, dtype):
    found = narrow(np.array([values], np.int32))
    assert found.dtype == dtype
    assert found.tolist() == [values]
