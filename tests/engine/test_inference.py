"""Evaluation predicts as ``SMALLOBJ.TEST`` says."""

from __future__ import annotations

import torch

from d2_smallobj.engine import TwoTaskTrainer
from d2_smallobj.modeling.inference import MultiViewInference
from d2_smallobj.postprocessing import CrfOptions, DenseCrf
from detectron2.evaluation import DatasetEvaluator

VIEWS = {
    "SMALLOBJ.TEST.SCALES": [0.5, 1.0],
    "SMALLOBJ.TEST.FLIP": True,
    "SMALLOBJ.TEST.CRF.ENABLED": True,
    "SMALLOBJ.TEST.CRF.ITERATIONS": 2,
}


class Keep(DatasetEvaluator):
    """Keeps what the model answers."""

    def __init__(self):
        self.answers = []

    def process(self, inputs, outputs):
        self.answers += [(x, output["sem_seg"].clone()) for x, output in zip(inputs, outputs)]

    def evaluate(self):
        return {"sem_seg": {"mIoU": 0.0}}


def answers(cfg, model):
    keep = Keep()
    TwoTaskTrainer.test(cfg, model, [keep])
    return keep.answers


def test_evaluation_uses_views_and_crf(make_config):
    model = TwoTaskTrainer.build_model(make_config()).train()
    plain, views = answers(make_config(), model), answers(make_config(VIEWS), model)
    assert model.training
    assert len(plain) == len(views) == 4
    refine = DenseCrf(CrfOptions(iterations=2))
    by_hand = MultiViewInference(model.eval(), scales=[0.5, 1], flip=True, refine=refine)
    for (x, logits), (_, probabilities) in zip(plain, views):
        with torch.no_grad():
            torch.testing.assert_close(probabilities, by_hand([x])[0]["sem_seg"])
        assert (logits.softmax(0) - probabilities).abs().max() > 1e-3


def test_a_whole_run_can_evaluate_so(make_trainer, tmp_path):
    trainer = make_trainer(VIEWS, folder=tmp_path / "run")
    trainer.train()
    assert trainer._trainer.model.training
    assert set(trainer._results) == {"A", "B"}
