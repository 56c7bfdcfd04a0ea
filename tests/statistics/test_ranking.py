"""Ranks and rank correlations against scipy."""

from __future__ import annotations

import doctest
import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.statistics import ranking
from d2_smallobj.statistics.ranking import average_ranks, kendall, rank_table, spearman

# Few values, so that ties abound.
NUMBERS = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(-3, 3) | st.floats(-5, 5)), min_size=0, max_size=20
)


@settings(max_examples=150, deadline=None)
@given(NUMBERS)
def test_equal_to_scipy(pairs):
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    assert average_ranks(x).tolist() == scipy.stats.rankdata(x).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input
        rho = scipy.stats.spearmanr(x, y)[0] if len(x) > 1 else math.nan
        tau = scipy.stats.kendalltau(x, y)[0] if len(x) > 1 else math.nan
    assert spearman(x, y) == pytest.approx(rho, abs=1e-12, nan_ok=True)
    assert kendall(x, y) == pytest.approx(tau, abs=1e-12, nan_ok=True)


def test_pairs():
    """Those with a NaN are left out; lengths must agree."""
    x, y = [1, 2, math.nan, 4, 5], [2, 1, 7, math.nan, 9]
    for measure in (spearman, kendall):
        assert measure(x, y) == measure([1, 2, 5], [2, 1, 9])
        with pytest.raises(ValueError, match=r"one length, got shapes \(2,\) and \(3,\)"):
            measure([1, 2], [1, 2, 3])


def test_the_best_has_rank_one():
    nan = math.nan
    table = rank_table({
        "a": {"mIoU": 70.4, "IA": 60.7, "S": nan},
        "b": {"mIoU": 72.6, "IA": 59.6, "S": 1.0},
        "c": {"mIoU": 70.4, "IA": 60.2, "S": 2.0},
    })  # fmt: skip
    assert table.methods == ("a", "b", "c")
    assert table.figures == ("mIoU", "IA", "S")
    expected = [[2.5, 1, nan], [1, 3, 2], [2.5, 2, 1]]
    assert np.array_equal(table.ranks, expected, equal_nan=True)
    assert table.values[1].tolist() == [72.6, 59.6, 1.0]
    assert np.array_equal(np.diagonal(table.spearman), [1, 1, 1])
    assert np.array_equal(table.kendall, table.kendall.T, equal_nan=True)
    assert table.spearman[0, 1] == spearman(table.values[:, 0], table.values[:, 1])
    assert table.kendall[1, 2] == 1.0


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match=r"at least one method, got none"):
        rank_table({})
    with pytest.raises(ValueError, match=r"figures of 'a', \['mIoU'\]; 'b' has \['IA'\]"):
        rank_table({"a": {"mIoU": 1.0}, "b": {"IA": 1.0}})


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(ranking)
    assert (result.failed, result.attempted) == (0, 1)
