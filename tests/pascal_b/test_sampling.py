"""Choosing images: the best choice, its bound, and what the seed may change."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.pascal_b.sampling import sample_balanced, water_level


def distance(counts, chosen, target):
    return int(np.abs(counts[list(chosen)].sum(axis=0) - target).sum())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=5, max_size=8),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_no_choice_is_better(rows, number, per_cell):
    """Against all choices."""
    counts = np.array(rows)
    sample = sample_balanced(counts, number, per_cell=per_cell)
    assert sample.target.tolist() == np.minimum(counts.sum(axis=0), per_cell).tolist()
    best = min(
        distance(counts, chosen, sample.target)
        for chosen in itertools.combinations(range(len(rows)), number)
    )
    assert sample.distance == distance(counts, sample.chosen, sample.target) == best
    assert sample.bound <= best
    assert sample.counts.tolist() == counts[sample.chosen].sum(axis=0).tolist()
    assert len(set(sample.chosen.tolist())) == number


def random_counts(images, seed=0):
    """A long-tailed table: 30 cells."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 31)
    return np.stack(
        [rng.multinomial(rng.integers(1, 7), share / share.sum()) for _ in range(images)]
    )


def test_balance_beats_chance_and_the_seed_chooses_between_equal_sets():
    counts = random_counts(240)
    one, again, other = (sample_balanced(counts, 48, seed=seed) for seed in (3, 3, 4))
    rng = np.random.default_rng(1)
    chance = min(distance(counts, rng.permutation(240)[:48], one.target) for _ in range(50))
    assert one.bound <= one.distance < chance / 3
    assert len(one.chosen) == 48
    assert one.chosen.tolist() == again.chosen.tolist()
    assert one.chosen.tolist() != other.chosen.tolist()
    assert abs(one.distance - other.distance) <= max(one.distance - one.bound, 2)


def test_images_with_the_same_counts_are_drawn_at_random():
    counts = np.tile([1, 0], (40, 1))
    drawn = [sample_balanced(counts, 10, seed=seed).chosen for seed in range(40)]
    times = np.bincount(np.concatenate(drawn), minlength=40)
    assert times.sum() == 400
    assert 0 < times.min() <= times.max() < 25


def test_the_default_target_keeps_the_instances_of_average_images():
    counts = np.repeat([[2, 0], [0, 2]], 10, axis=0)
    sample = sample_balanced(counts, 10)
    assert (sample.per_cell, sample.distance) == (10, 0)
    assert water_level(np.array([3, 100, 100]), 43) == 20
    assert water_level(np.array([3, 5]), 1000) == 5
    assert water_level(np.array([0, 0]), 0) == 1


def test_scarce_cells_cap_their_target_and_few_images_are_all_taken():
    sample = sample_balanced(np.array([[1, 0], [0, 1], [0, 1], [0, 1]]), 3, per_cell=2)
    assert sample.target.tolist() == [1, 2]
    assert (sample.distance, sample.bound) == (0, 0)
    assert sample_balanced(np.array([[1], [2]]), 5).chosen.tolist() == [0, 1]


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"scipy.*: not installed.*pip install .*\[data\]'"):
        sample_balanced(np.ones((3, 2), np.int64), 1)


def test_a_search_that_finds_nothing_is_rounded(monkeypatch):
    """The relaxed solution stands in, and its bound holds."""
    from scipy import optimize

    real = optimize.milp

    def nothing(*args, **kwargs):
        found = real(*args, **kwargs)
        found.x = None
        return found

    counts = random_counts(200)
    best = sample_balanced(counts, 30)
    monkeypatch.setattr(optimize, "milp", nothing)
    rounded = sample_balanced(counts, 30)
    assert len(set(rounded.chosen.tolist())) == 30
    assert rounded.bound <= best.distance <= rounded.distance < 4 * best.distance + 60
