"""Processes: what happens when one dies, and what is measured."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.scoring import Inputs, Settings, prepare, score
from d2_smallobj.scoring.benchmark import FOLDERS, draw_folder, measure_folder
from d2_smallobj.scoring.truth import FileTruth


class DyingTruth(FileTruth):
    """Ground truth that takes its process down, as the kernel does when memory is out."""

    def read(self, image):
        os._exit(9)


def test_a_killed_process_is_said(dataset):
    prepared = prepare(Inputs(**dataset.options), Settings(samples=0))
    truth = DyingTruth(prepared.scorer.truth.images, class_names=prepared.class_names)
    object.__setattr__(prepared.scorer, "truth", truth)
    with pytest.raises(RuntimeError, match=r"one of 2 scoring processes was killed .*fewer --jobs"):
        score(prepared, jobs=2)


def test_jobs_are_checked(dataset):
    with pytest.raises(ValueError, match=r"jobs must be at least 1, got 0"):
        score(prepare(Inputs(**dataset.options)), jobs=0)


def test_a_fault_of_ours_is_no_input_error(dataset, monkeypatch):
    from d2_smallobj.scoring import runner

    def fail(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runner, "read_prediction", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        score(prepare(Inputs(**dataset.options)))


def test_measured_folders_are_scored_as_drawn(tmp_path):
    draw_folder(tmp_path, images=4, shape=(60, 80), seed=3)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert len(first) == 12
    semantic, instances = (
        np.stack([read_label_map(path) for path in sorted((tmp_path / name).glob("*.png"))])
        for name in FOLDERS[1:]
    )
    assert np.array_equal(semantic == 255, instances == 255)
    assert np.array_equal(semantic == 0, instances == 0)
    with Image.open(tmp_path / "predictions" / "00000.png") as image:
        assert (image.mode, image.size) == ("P", (80, 60))
    for jobs in (1, 2):
        taken = measure_folder(images=4, shape=(60, 80), jobs=jobs, repeats=1, folder=tmp_path)
        assert set(taken) == {"pillow", "decode", "score", "score_to_pillow", "score_to_decode"}
        assert all(seconds > 0 for seconds in taken.values())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == first
