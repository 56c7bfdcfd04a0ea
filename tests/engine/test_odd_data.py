"""Label maps and images at the edge of what a data set may hold: a defined result, never NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from d2_smallobj.data import mapper
from d2_smallobj.engine import TwoTaskTrainer
from detectron2.utils.env import seed_all_rng

SHORT = {
    "SOLVER.MAX_ITER": 4,
    "SMALLOBJ.TASK_A.ITERS": 2,
    "SMALLOBJ.EVAL_TASK_A": False,
    "SMALLOBJ.PICTURES.PERIOD": 0,
}
NO_PENALTY = {**SHORT, "SMALLOBJ.EWC.LAMBDA": 0.0}
RELEASED = {"SMALLOBJ.LOSS_RESOLUTION": "logits", "SMALLOBJ.MSC.ENABLED": True}


def single_pixels(labels, position):
    found = np.zeros_like(labels)
    found[::3, ::3] = 1 + np.arange(found[::3, ::3].size).reshape(found[::3, ::3].shape) % 6
    return found


def one_pixel_that_counts(labels, position):
    found = np.full_like(labels, 255)
    found[found.shape[0] // 2, found.shape[1] // 2] = 2
    return found


ODD = {
    "all ignored": lambda labels, position: np.full_like(labels, 255),
    "some ignored": lambda labels, position: np.full_like(labels, 255) if position % 2 else labels,
    "background": lambda labels, position: np.zeros_like(labels),
    "one class of six": lambda labels, position: np.where(labels > 0, 3, labels),
    "single pixels": single_pixels,
    "one pixel": one_pixel_that_counts,
}


@pytest.fixture
def relabel(monkeypatch):
    """Function: all training label maps are changed by a function of :data:`ODD`."""

    def make(name):
        original = mapper.read_supervision

        def changed(x, *arguments):
            labels, maps = original(x, *arguments)
            return ODD[name](labels, x.get("stream_position", 0)).astype(labels.dtype), maps

        monkeypatch.setattr(mapper, "read_supervision", changed)

    return make


def logged(trainer, name):
    return [value for value, _ in trainer.storage.history(name).values()]


def assert_finite(trainer):
    assert all(math.isfinite(value) for value in logged(trainer, "total_loss"))
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize("options", [{}, RELEASED], ids=["input", "released"])
@pytest.mark.parametrize("change", ODD)
def test_both_tasks_train(make_trainer, relabel, change, options):
    relabel(change)
    trainer = make_trainer(NO_PENALTY, options)
    trainer.train()
    assert_finite(trainer)
    assert len(logged(trainer, "total_loss")) == 4
    if change == "all ignored":
        assert set(logged(trainer, "total_loss")) == {0.0}
    # At the resolution of the logits a single pixel may be lost in most crops.
    elif change != "one pixel" or not options:
        assert max(logged(trainer, "total_loss")) > 0
    figures = trainer._results["B"]["smallobj_demo_val"]
    assert math.isfinite(figures["mIoU"])


def test_size_weights_of_background_alone_are_one(make_trainer, relabel):
    relabel("background")
    runs = []
    for loss in ("size_weighted", "cross_entropy"):
        trainer = make_trainer(NO_PENALTY, {"SMALLOBJ.TASK_B.LOSS": loss})
        trainer.train()
        runs.append(logged(trainer, "total_loss"))
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)


@pytest.mark.parametrize("estimator", ["online", "empirical"])
def test_a_fisher_of_nothing_is_an_error(make_trainer, relabel, estimator):
    """With every pixel ignored nothing is learned in task A: a penalty would never act."""
    relabel("all ignored")
    with pytest.raises(ValueError, match=f"{estimator} estimate would be 0 .*all labels the ign"):
        make_trainer(SHORT, {"SMALLOBJ.EWC.FISHER": estimator}).train()


@pytest.mark.parametrize("estimator", ["online", "empirical"])
@pytest.mark.parametrize("change", ["some ignored", "background", "single pixels"])
def test_the_penalty_stays_finite(make_trainer, relabel, tiny, change, estimator):
    relabel(change)
    trainer = make_trainer(SHORT, {"SMALLOBJ.EWC.FISHER": estimator})
    trainer.train()
    assert_finite(trainer)
    penalties = logged(trainer, "loss_ewc")
    assert penalties[0] == 0 < penalties[-1]


@pytest.mark.parametrize("options", [{}, {"SMALLOBJ.MSC.ENABLED": True}], ids=["one", "multi"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 9)])
def test_images_smaller_than_the_stride(make_config, options, size):
    """They are predicted at their own size, from a logit map of one cell at least."""
    cfg = make_config(options)
    seed_all_rng(0)
    model = TwoTaskTrainer.build_model(cfg).eval()
    with torch.no_grad():
        scores = model([{"image": torch.rand(3, *size), "height": size[0], "width": size[1]}])
    assert scores[0]["sem_seg"].shape == (7, *size)
    assert torch.isfinite(scores[0]["sem_seg"]).all()


@pytest.mark.parametrize(
    "options",
    [
        # Twelve images, fourteen a step: the stream goes on with the next epoch.
        {"SOLVER.IMS_PER_BATCH": 14},
        # The smallest crop, one output stride a side: one cell of logits, normalised over two.
        {**RELEASED, "SMALLOBJ.CROP_SIZE": "[4, 4]"},
    ],
    ids=["batch", "crop"],
)
def test_a_large_batch_and_a_small_crop_train(make_trainer, options):
    trainer = make_trainer(NO_PENALTY, options)
    trainer.train()
    assert_finite(trainer)
