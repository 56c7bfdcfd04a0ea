"""Balance of counts as one number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from d2_smallobj.metrics.sizes import SizeBins
from d2_smallobj.statistics.balance import (
    class_size_counts,
    coefficient_of_variation,
    normalized_entropy,
)

tables = st.lists(st.integers(0, 10_000), min_size=2, max_size=60)


def test_size_bounds():
    """docs/method.md#sizes: S < 32², M < 96², L the rest."""
    areas = [1, 1023, 1024, 9215, 9216]
    counts = class_size_counts([1, 1, 1, 2, 2], areas, num_classes=3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert class_size_counts([], [], num_classes=2).tolist() == [[0, 0, 0]] * 2


def test_other_bins():
    bins = SizeBins({"tiny": 0.1, "half": 0.5}, relative=True)
    counts = class_size_counts([1, 1, 1], [9, 40, 60], num_classes=1, bins=bins, image_areas=100)
    assert counts.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("class_ids", "areas", "message"),
    [
        ([0], [5], r"must be in 1\.\.2, got \[0\]"),
        ([3, 1], [5, 5], r"must be in 1\.\.2, got \[3\]"),
        ([1], [5, 5], r"one length, got shapes \(1,\) and \(2,\)"),
    ],
)
def test_arguments_are_checked(class_ids, areas, message):
    with pytest.raises(ValueError, match=message):
        class_size_counts(class_ids, areas, num_classes=2)


@given(tables)
def test_against_scipy(counts):
    if not sum(counts):
        assert math.isnan(normalized_entropy(counts))
        assert math.isnan(coefficient_of_variation(counts))
        return
    expected = stats.entropy(counts) / math.log(len(counts))
    assert normalized_entropy(counts) == pytest.approx(expected, abs=1e-12)
    assert coefficient_of_variation(counts) == pytest.approx(stats.variation(counts))


@pytest.mark.parametrize(
    ("counts", "entropy", "variation"),
    [([7] * 60, 1, 0), ([9, 0, 0, 0], 0, math.sqrt(3)), ([[1, 1], [0, 0]], 0.5, 1)],
)
def test_extremes(counts, entropy, variation):
    assert normalized_entropy(counts) == pytest.approx(entropy)
    assert coefficient_of_variation(counts) == pytest.approx(variation)


def test_undefined():
    assert math.isnan(normalized_entropy([5]))
    assert math.isnan(normalized_entropy([]))
    assert math.isnan(coefficient_of_variation([]))


@pytest.mark.parametrize("counts", [[-1, 2], [float("nan")], [float("inf")]])
@pytest.mark.parametrize("measure", [normalized_entropy, coefficient_of_variation])
def test_counts_are_checked(measure, counts):
    with pytest.raises(ValueError, match="counts: must be finite and >= 0, got"):
        measure(np.array(counts))
