"""Online bootstrapping in a training: its switch, its figures, its pictures; sigma in files."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d2_smallobj.annotations.label_maps import read_label_map, voc_palette
from d2_smallobj.engine import hooks
from d2_smallobj.engine.hooks import (
    BOOTSTRAP_PICTURE,
    BootstrapHook,
    bootstrap_figures,
    bootstrap_picture,
)
from d2_smallobj.engine.prediction import SigmaWriter, grey_sigma
from d2_smallobj.modeling.uncertain_segmentor import Observation
from detectron2.engine import HookBase

DOUBT = {
    "MODEL.META_ARCHITECTURE": "UncertainSegmentor",
    "DATASETS.TRAIN": "('smallobj_demo_train_gt',)",
    "SMALLOBJ.SUPERVISION.MASK_FRACTION": 0.5,
    "SMALLOBJ.SUPERVISION.SPLIT_SEED": 0,
    "SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP": 0.5,
    "SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD": 0.4,
    "SMALLOBJ.TASK_A.ITERS": -1,
    "SMALLOBJ.EWC.LAMBDA": 0.0,
    "SMALLOBJ.PICTURES.PERIOD": 3,
    "SMALLOBJ.PICTURES.NUM_IMAGES": 1,
}


class Watch(HookBase):
    """Notes the switch in every iteration."""

    def __init__(self):
        self.states = []

    def after_step(self):
        self.states.append(self.trainer._trainer.model.loss.bootstrapping)


def train(trainer):
    watch = Watch()
    trainer.register_hooks([watch])
    trainer.train()
    return watch.states


# ---- In a training -----------------------------------------------------------------------------


def test_labels_change_when_the_warm_up_is_over(make_trainer, tmp_path, monkeypatch, log):
    monkeypatch.setattr(hooks, "LOG_PERIOD", 2)
    states = train(make_trainer(DOUBT, folder=tmp_path / "run"))
    assert states == [False] * 4 + [True] * 4
    assert "Bootstrapping starts at iteration 4: box pixels with sigma > 0.4" in log.text

    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    scalars = {tag for tag in events.Tags()["scalars"] if tag.startswith("doubt/")}
    names = {"relabelled", "changed", "sigma", "box_accuracy", "accuracy", "relabelled_accuracy"}
    assert scalars == {f"doubt/{name}" for name in names}
    assert any("doubt/relabelled" in json.loads(line) for line in lines)
    # Written at the end, the last value: after the switch, all of a young net is doubted.
    assert events.Scalars("doubt/relabelled")[-1].value > 0

    pictures = events.Images(BOOTSTRAP_PICTURE)
    assert [picture.step for picture in pictures] == [2, 5, 7]
    sheet = np.array(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
    assert sheet.shape == (48, 4 * 48, 3)


def test_a_resumed_run_goes_on_alike(make_trainer, tmp_path, assert_same):
    whole = make_trainer(DOUBT, folder=tmp_path / "whole")
    train(whole)
    broken = make_trainer(DOUBT, folder=tmp_path / "broken")
    broken.max_iter = 6  # the checkpoint after iteration 5 is the last
    train(broken)
    resumed = make_trainer(DOUBT, folder=tmp_path / "broken", resume=True)
    assert resumed.start_iter == 6
    assert train(resumed) == [True, True]
    assert_same(resumed._trainer.model.state_dict(), whole._trainer.model.state_dict())


@pytest.mark.parametrize(("warmup", "states"), [(0.0, [True] * 8), (1.0, [False] * 8)])
def test_always_and_never(make_trainer, warmup, states, log):
    options = {"SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP": warmup, "SMALLOBJ.PICTURES.PERIOD": 0}
    assert train(make_trainer(DOUBT, options)) == states
    assert ("Bootstrapping starts" in log.text) == states[0]


def test_the_size_balanced_loss_on_top(make_trainer):
    """Two tasks with EWC, the second one size-weighted and bootstrapped."""
    options = {
        "SMALLOBJ.TASK_A.ITERS": 4,
        "SMALLOBJ.EWC.FISHER": "empirical",
        "SMALLOBJ.EWC.LAMBDA": 1.0,
        "SMALLOBJ.PICTURES.PERIOD": 0,
    }
    trainer = make_trainer(DOUBT, options)
    assert train(trainer) == [False] * 4 + [True] * 4
    assert trainer._trainer.model.loss.size_weighted
    assert np.isfinite(trainer._last_eval_results["small_objects"]["mIoU"])


def test_other_models_have_no_such_hook(make_trainer):
    trainer = make_trainer()
    assert not any(isinstance(hook, BootstrapHook) for hook in trainer._hooks)


# ---- Figures and pictures ----------------------------------------------------------------------


def observation(**changes):
    """One row of eight pixels: two of a mask, six in boxes, one of them ignored."""
    fields = {
        "image": torch.zeros(3, 1, 8),
        "labels": torch.tensor([[[0, 1, 1, 1, 1, 2, 2, 255]]]),
        "used": torch.tensor([[[0, 1, 1, 0, 0, 2, 0, 255]]]),
        "true_labels": torch.tensor([[[0, 0, 1, 0, 1, 2, 255, 1]]]),
        "doubtable": torch.tensor([[[False, False, True, True, True, True, True, True]]]),
        "relabelled": torch.tensor([[[False, False, False, True, True, True, True, False]]]),
        "sigma": torch.tensor([[[9.0, 9.0, 0.5, 2.0, 3.0, 1.5, 3.0, 9.0]]]),
    }
    return Observation(**{**fields, **changes})


def test_figures_by_hand():
    """Five pixels count; four of them have a known label: 1, 0, 1, 2."""
    figures = bootstrap_figures(observation(), 255)
    assert figures == {
        "relabelled": 80.0,  # four of five
        "changed": 60.0,  # 1, 1 and 2 to 0
        "sigma": 2.0,  # (0.5 + 2 + 3 + 1.5 + 3) / 5
        "box_accuracy": 75.0,  # boxes say 1, 1, 1, 2
        "accuracy": 75.0,  # the loss used 1, 0, 0, 2
        "relabelled_accuracy": pytest.approx(200 / 3),  # of the last three
    }


def test_figures_that_rest_on_nothing_are_left_out():
    unknown = bootstrap_figures(observation(true_labels=None), 255)
    assert set(unknown) == {"relabelled", "changed", "sigma"}
    nowhere = torch.zeros(1, 1, 8, dtype=torch.bool)
    assert bootstrap_figures(observation(doubtable=nowhere), 255) == {}
    assert "relabelled_accuracy" not in bootstrap_figures(observation(relabelled=nowhere), 255)


def test_the_picture_panel_by_panel():
    image = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1).expand(3, 1, 8)
    mean, std = [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]
    normalised = (image - torch.tensor(mean).view(3, 1, 1)) / 2
    picture = bootstrap_picture(observation(image=normalised), mean, std, "BGR")
    assert picture.dtype == np.uint8
    assert picture.shape == (3, 1, 32)
    row = picture[:, 0].T.reshape(4, 8, 3)
    assert (row[0] == [30, 20, 10]).all()
    np.testing.assert_array_equal(row[1], voc_palette()[[0, 1, 1, 1, 1, 2, 2, 255]])
    np.testing.assert_array_equal(row[2], voc_palette()[[0, 1, 1, 0, 0, 2, 0, 255]])
    # 255 sigma / (1 + sigma) inside boxes: 85, 170, 191.25, 153, 191.25, 229.5.
    assert row[3, :, 0].tolist() == [0, 0, 85, 170, 191, 153, 191, 230]


def test_grey_is_bounded():
    grey = grey_sigma(torch.tensor([[0.0, 1.0, 1e6, 3e38]]))
    assert grey.tolist() == [[0, 128, 255, 255]]


# ---- Files -------------------------------------------------------------------------------------


def test_sigma_is_written_as_numbers_and_as_a_picture(make_trainer, tmp_path):
    model = make_trainer(DOUBT)._trainer.model
    write = SigmaWriter(tmp_path / "sigma", model)
    sigma = torch.tensor([[0.0, 1.5, 1e6], [0.25, 3.0, 9.0]])
    write("a/b", {"sigma": sigma}, {})
    numbers = np.load(tmp_path / "sigma/a/b.npy", allow_pickle=False)
    assert numbers.dtype == np.float16
    assert numbers.tolist() == [[0.0, 1.5, 65504.0], [0.25, 3.0, 9.0]]
    np.testing.assert_array_equal(read_label_map(tmp_path / "sigma/a/b.png"), grey_sigma(sigma))


def test_a_model_without_sigma_is_refused(make_trainer, tmp_path):
    with pytest.raises(
        ValueError, match="--uncertainty: a SizeBalancedSegmentor predicts no sigma"
    ):
        SigmaWriter(tmp_path, make_trainer()._trainer.model)
