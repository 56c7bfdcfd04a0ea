"""Items in one process or several."""

from __future__ import annotations

import functools
import math
import operator
import os

import pytest

from d2_smallobj.utils.parallel import parallel_map


def test_results_come_in_order_whatever_the_number_of_processes():
    items = list(range(200, 0, -1))
    expected = [math.sqrt(item) for item in items]
    assert list(parallel_map(math.sqrt, items)) == expected
    assert list(parallel_map(math.sqrt, items, jobs=2)) == expected
    assert list(parallel_map(math.sqrt, [], jobs=2)) == []


def test_processes_are_started_as_needed_and_errors_are_raised_here():
    # With one item left there is one process, this one: what it does is seen here.
    seen = []
    list(parallel_map(seen.append, ["only"], jobs=8))
    assert seen == ["only"]
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(functools.partial(operator.truediv, 1), [1, 0, 2, 3], jobs=2))


def test_a_killed_process_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"one of 2 processes was killed .* fewer --jobs"):
        list(parallel_map(os._exit, [1, 1, 1, 1], jobs=2))


def test_jobs_must_be_positive():
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        list(parallel_map(math.sqrt, [1], jobs=0))


def test_progress_goes_to_stderr(capfd):
    list(parallel_map(math.sqrt, [1, 2, 3], description="roots", progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert "roots" in err
    assert "3/3" in err
    list(parallel_map(math.sqrt, [1, 2, 3], description="roots"))
    assert capfd.readouterr().err == ""
