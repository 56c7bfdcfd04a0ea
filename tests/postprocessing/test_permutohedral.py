"""The lattice filter against the sum that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from d2_smallobj.postprocessing.permutohedral import PermutohedralLattice


def exact(features, values):
    return np.exp(-0.5 * cdist(features, features, "sqeuclidean")) @ values


def mean(apply, features, values):
    """The weighted mean that a filter gives: its unknown factor cancels."""
    return apply(features, values) / apply(features, np.ones((len(values), 1), np.float32))


def lattice(features, values):
    return PermutohedralLattice(features).filter(values)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_weighted_means_are_those_of_the_gaussian(dimensions):
    rng = np.random.default_rng(dimensions)
    # Dense data: no lattice point between two others is missing.
    features = rng.random((4000, dimensions)) * 3
    values = np.stack([features[:, 0], np.sin(2 * features[:, -1])], axis=1)
    expected = mean(exact, features, values)
    found = mean(lattice, features, values)
    spread = values.std(axis=0)
    assert (np.abs(found - expected).mean(axis=0) < 0.06 * spread).all()
    # The same comparison must fail for another width.
    other = mean(lattice, features / 1.5, values)
    assert (np.abs(other - expected).mean(axis=0) > 0.1 * spread).all()


def test_points_far_apart_do_not_touch():
    features = np.repeat([[0.0, 0.0], [40.0, 0.0], [0.0, -40.0]], 5, axis=0)
    values = np.repeat(np.eye(3), 5, axis=0)
    filtered = PermutohedralLattice(features).filter(values)
    np.testing.assert_array_equal(filtered > 0, values > 0)


@settings(max_examples=40, deadline=None)
@given(
    dimensions=st.integers(1, 5),
    count=st.integers(1, 30),
    width=st.floats(0.01, 100),
    seed=st.integers(0, 10_000),
)
def test_properties(dimensions, count, width, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, dimensions)) * width
    filter_ = PermutohedralLattice(features)
    assert 1 <= len(filter_) <= count * (dimensions + 1)
    # Corner weights are a partition of one, and none is negative.
    np.testing.assert_allclose(filter_._weights.sum(axis=0), 1, atol=1e-4)
    assert filter_._weights.min() > -1e-3
    a, b = rng.normal(size=(2, count, 2)).astype(np.float32)
    scale = np.abs(filter_.filter(np.ones((count, 1), np.float32))).max()
    tolerance = {"rtol": 1e-3, "atol": 1e-3 * scale}
    np.testing.assert_allclose(filter_.filter(a + 2 * b),
                               filter_.filter(a) + 2 * filter_.filter(b), **tolerance)  # fmt: skip
    # Channels do not mix, and points may come in any order.
    np.testing.assert_allclose(filter_.filter(a)[:, :1], filter_.filter(a[:, :1]), **tolerance)
    order = rng.permutation(count)
    shuffled = PermutohedralLattice(features[order]).filter(a[order])
    np.testing.assert_allclose(shuffled, filter_.filter(a)[order], **tolerance)


def test_neighbours_are_one_step_apart():
    """The implied last coordinate and the carry between remainders, by brute force."""
    features = np.random.default_rng(0).normal(size=(300, 3)) * 2
    filter_ = PermutohedralLattice(features)
    # A unit impulse at lattice point m, blurred in one direction, reaches its two neighbours.
    for forward, backward in filter_._neighbours:
        used = forward < len(filter_)
        np.testing.assert_array_equal(backward[forward[used]], np.flatnonzero(used))
        assert not (forward == np.arange(len(filter_))).any()
        assert used.mean() > 0.5


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(3), r"shape \(N, d\), none 0, got \(3,\)"),
        (np.zeros((0, 2)), r"got \(0, 2\)"),
        (np.array([[0.0, np.nan]]), "finite, got NaN"),
        (np.diag(np.full(5, 1e9)), r"too many standard deviations, use.*up to 1e\+09 from 0"),
        (np.diag(np.full(5, 1e5)), "too many standard deviations, use larger.* cells"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(ValueError, match=message):
        PermutohedralLattice(features)
