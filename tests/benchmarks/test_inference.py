"""The inference benchmark on the CPU: every run evaluates every image, with and without threads."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from benchmarks import inference

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.metrics import Accumulator
from detectron2.data import MetadataCatalog


class Blank(torch.nn.Module):
    """A model that counts its calls and says nothing."""

    def __init__(self):
        super().__init__()
        self.device = torch.device("cpu")
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        return [{"sem_seg": torch.zeros(inference.CLASSES, 2, 2)} for _ in batch]


def test_each_run_scores_the_drawn_predictions(tmp_path, monkeypatch):
    results = []
    inner = inference.inference_on_dataset
    monkeypatch.setattr(
        inference, "inference_on_dataset", lambda *args: results.append(inner(*args))
    )
    monkeypatch.setattr(inference, "_MOST_DRAWN", 2)
    batches = inference.make_batches(tmp_path, 3, seed=0)
    model = Blank()
    rows = inference.measure(inference._Replay(model, batches), batches, workers=2, rounds=1)
    assert list(rows) == ["no evaluator", "evaluator, all in the loop", "evaluator, 2 threads"]
    accumulator = Accumulator(inference.CLASSES)
    for number, (record,) in enumerate(batches):
        kinds = ("prediction", "sem_seg_file_name", "ins_seg_file_name")
        accumulator.update(number, *(read_label_map(record[kind]) for kind in kinds))
    expected = accumulator.summarize(VOC_CLASS_NAMES)
    # A warm-up, then one run each; all see all images.
    assert model.calls == 4 * len(batches)
    assert results[:2] == [{}, {}]
    for found in results[2:]:
        figures = dict(found["small_objects"])
        assert {"mIoU", "IA-mIoU_S", "instances"} <= set(figures)
        np.testing.assert_equal(figures, {name: expected[name] for name in figures})
    assert inference._DATASET not in MetadataCatalog.list()


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(inference, "build", lambda *_: Blank())
    given = {"config_file": None, "images": 3, "workers": 2, "rounds": 1, "seed": 0}
    found = inference.run(argparse.Namespace(**given))
    assert found.figures["device"] == "CPU"
    assert "There is no GPU" in found.text
    assert found.missed == ["the target of 1.05 × is one of a GPU, and there is none here"]


def test_the_target_is_that_of_the_threads():
    told = ["with the evaluator a run takes 1.051 times that without it, not 1.05"]
    for ratio, missed in ((1.04, []), (1.051, told)):
        threads = {"evaluator, 2 threads": {"ratio": ratio}}
        rows = {"evaluator, all in the loop": {"ratio": 1.4}, **threads}
        assert inference._missed(rows, 2, True) == missed


def test_models(repository):
    model = inference.build(str(inference._CONFIGS / "Base-Demo.yaml"), 0)
    picture = torch.zeros(3, 32, 48, dtype=torch.uint8)
    assert model([{"image": picture}])[0]["sem_seg"].shape == (inference.CLASSES, 32, 48)
    with pytest.raises(ValueError, match=r"demo_ce\.yaml: MODEL.*NUM_CLASSES must be 21.* got 7"):
        inference.build(str(repository / "configs" / "demo_ce.yaml"), 0)
