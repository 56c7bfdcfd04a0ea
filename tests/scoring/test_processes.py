"""Processes: what happens when one dies, and what is measured."""

from __future__ import annotations

import os

import pytest

from d2_smallobj.annotations.truth import GroundTruth
from d2_smallobj.scoring import Inputs, Settings, prepare, score
from d2_smallobj.utils.parallel import WorkerError


class DyingTruth(GroundTruth):
    """Ground truth that takes its process down, as the kernel does when memory is out."""

    def read(self, image):
        os._exit(9)


def test_a_killed_process_is_said(dataset):
    prepared = prepare(Inputs(**dataset.options), Settings(samples=0))
    object.__setattr__(prepared.scorer.truth, "__class__", DyingTruth)
    with pytest.raises(WorkerError, match=r"one of 2 processes was killed .*fewer --jobs"):
        score(prepared, jobs=2)


def test_jobs_are_checked(dataset):
    with pytest.raises(ValueError, match=r"jobs must be at least 1, got 0"):
        score(prepare(Inputs(**dataset.options)), jobs=0)


def test_a_defect_is_no_input_error(dataset, monkeypatch):
    from d2_smallobj.scoring import pipeline

    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "read_prediction", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        score(prepare(Inputs(**dataset.options)))
