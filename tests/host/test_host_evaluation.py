"""Inference over a data set, and results."""

import host_toy
import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)


class Model(nn.Module):
    def forward(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        return [x["index"] for x in batch]


class Collector(DatasetEvaluator):
    def __init__(self, task="toy"):
        self.task = task

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        assert [x["index"] for x in inputs] == outputs
        self.seen += outputs

    def evaluate(self):
        return {self.task: {"seen": len(self.seen)}}


@pytest.fixture
def loader():
    return build_detection_test_loader(host_toy.samples(), mapper=lambda x: x, batch_size=5)


@pytest.mark.parametrize("training", [True, False])
def test_inference_sees_everything_in_eval_mode(loader, training):
    model = Model().train(training)
    collector = Collector()
    assert inference_on_dataset(model, loader, collector) == {"toy": {"seen": host_toy.SIZE}}
    assert collector.seen == list(range(host_toy.SIZE))
    assert model.training == training
    assert torch.is_grad_enabled()


def test_several_evaluators_and_functions(loader):
    results = inference_on_dataset(Model(), loader, [Collector("a"), Collector("b")])
    assert results == {"a": {"seen": 12}, "b": {"seen": 12}}
    assert inference_on_dataset(lambda batch: batch, loader, DatasetEvaluator()) == {}
    with pytest.raises((ValueError, AssertionError), match="same key"):
        inference_on_dataset(Model(), loader, DatasetEvaluators([Collector(), Collector()]))


def test_the_mode_is_restored_after_an_exception(embedded_only):
    model = Model().train()
    with pytest.raises(TypeError, match="subscriptable"):
        inference_on_dataset(model, [[None]], Collector())
    assert model.training


def test_results_are_verified():
    cfg = get_cfg()
    results = {"toy": {"IoU": 50.0, "nan": float("nan")}}
    right = ["toy", "IoU", 50.05, 0.1]
    for expected in ([], [right]):
        cfg.TEST.EXPECTED_RESULTS = expected
        assert verify_results(cfg, results) is True
    for wrong in (["toy", "nan", 1.0, 1.0], ["toy", "IoU", 51.0, 0.1], ["toy", "absent", 1.0, 1.0]):
        cfg.TEST.EXPECTED_RESULTS = [right, wrong]
        with pytest.raises(SystemExit, match="1"):
            verify_results(cfg, results)


def test_results_are_printed_for_copying(captured):
    print_csv_format({"toy": {"mIoU": 12.34567, "IoU-cat": 1.0}})
    assert captured == ["copypaste: Task: toy", "copypaste: mIoU", "copypaste: 12.3457"]
