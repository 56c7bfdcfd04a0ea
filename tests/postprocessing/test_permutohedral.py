"""The lattice filter against the sum that it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from d2_smallobj.postprocessing.permutohedral import PermutohedralLattice


def exact(features, values):
    return np.exp(-0.5 * cdist(features, features, "sqeuclidean")) @ values


def lattice(features, values):
    return PermutohedralLattice(features).filter(values)


def mean(apply, features, values):
    """The weighted mean that a filter gives: its unknown factor cancels."""
    return apply(features, values) / apply(features, np.ones((len(values), 1), np.float32))


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_weighted_means_are_those_of_the_gaussian(dimensions):
    rng = np.random.default_rng(dimensions)
    # Dense data: no lattice point between two others is missing.
    features = rng.random((2500, dimensions)) * 3
    values = np.stack([features[:, 0], np.sin(2 * features[:, -1])], axis=1)
    expected, spread = mean(exact, features, values), values.std(axis=0)
    found, other = (mean(lattice, scaled, values) for scaled in (features, features / 1.5))
    assert (np.abs(found - expected).mean(axis=0) < 0.06 * spread).all()
    # The same comparison fails for another width.
    assert (np.abs(other - expected).mean(axis=0) > 0.1 * spread).all()


def test_points_far_apart_do_not_touch():
    features, values = np.diag([0.0, 40.0, -40.0]).repeat(5, axis=0), np.eye(3).repeat(5, axis=0)
    np.testing.assert_array_equal(lattice(features, values) > 0, values > 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.floats(0.01, 100), st.integers(0, 10_000))
def test_properties(dimensions, count, width, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, dimensions)) * width
    filter_ = PermutohedralLattice(features)
    assert 1 <= len(filter_) <= count * (dimensions + 1)
    # Corner weights are a partition of one, and none is negative.
    np.testing.assert_allclose(filter_._weights.sum(axis=0), 1, atol=1e-4)
    assert filter_._weights.min() > -1e-3
    scale = np.abs(filter_.filter(np.ones((count, 1), np.float32))).max()
    tolerance = {"rtol": 1e-3, "atol": 1e-3 * scale}
    a, b = rng.normal(size=(2, count, 2)).astype(np.float32)
    sums = filter_.filter(a) + 2 * filter_.filter(b)
    np.testing.assert_allclose(filter_.filter(a + 2 * b), sums, **tolerance)
    # Channels do not mix, and points may come in any order.
    np.testing.assert_allclose(filter_.filter(a)[:, :1], filter_.filter(a[:, :1]), **tolerance)
    order = rng.permutation(count)
    found = lattice(features[order], a[order])
    np.testing.assert_allclose(found, filter_.filter(a)[order], **tolerance)


def test_neighbours_are_one_step_apart():
    filter_ = PermutohedralLattice(np.random.default_rng(0).normal(size=(300, 3)) * 2)
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
