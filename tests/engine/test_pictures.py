"""Pictures and rates for TensorBoard: what they show, and that training does not notice them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from d2_smallobj.annotations.label_maps import voc_palette
from d2_smallobj.engine import TwoTaskTrainer, hooks
from d2_smallobj.engine.hooks import (
    GroupRates,
    TrainingPictures,
    first_samples,
    predict_sample,
    sample_row,
    training_hooks,
)
from d2_smallobj.losses.size_weights import SizeWeights
from detectron2.utils.events import EventStorage

TAG = "image, label, size weights, prediction"
EVERY_THIRD = {"SMALLOBJ.PICTURES.PERIOD": 3, "SMALLOBJ.PICTURES.NUM_IMAGES": 2}
NONE = {"SMALLOBJ.PICTURES.PERIOD": 0}


@pytest.fixture
def events(make_trainer, tmp_path):
    """What TensorBoard reads of a run with a picture every third iteration."""
    make_trainer(EVERY_THIRD, folder=tmp_path / "run").train()
    found = EventAccumulator(str(tmp_path / "run"))
    found.Reload()
    return found


def test_what_tensorboard_shows(events, make_config):
    images = events.Images(TAG)
    # Iterations count from 0; the run has 8.
    assert [image.step for image in images] == [2, 5, 7]
    cfg = make_config(EVERY_THIRD)
    samples = first_samples(cfg, 2)
    sheets = [np.array(Image.open(io.BytesIO(image.encoded_image_string))) for image in images]
    for sheet in sheets:
        assert sheet.shape == (2 * 52, 4 * 52, 3)
        for row, x in zip(sheet.reshape(2, 52, 4, 52, 3)[:, :48, :, :48], samples):
            shown = x["image"].numpy().transpose(1, 2, 0)[..., ::-1].round()
            np.testing.assert_array_equal(row[:, 0], shown)
            np.testing.assert_array_equal(row[:, 1], voc_palette()[x["sem_seg"]])
    # The net has learnt something between the first and the last picture.
    assert (sheets[0][:, 3 * 52 :] != sheets[-1][:, 3 * 52 :]).any()
    np.testing.assert_array_equal(sheets[0][:, : 3 * 52], sheets[-1][:, : 3 * 52])

    scalars = events.Tags()["scalars"]
    rates = {"lr/backbone weights", "lr/head weights", "lr/head biases"}
    assert {"total_loss", "loss_sem_seg", "loss_ewc", "task", "lr", *rates} <= set(scalars)
    last = {name: events.Scalars(name)[-1].value for name in rates}
    factor = (1 - 7 / 8) ** 0.9
    assert last["lr/backbone weights"] == pytest.approx(0.02 * factor, rel=1e-5)
    assert last["lr/head biases"] == pytest.approx(0.04 * factor, rel=1e-5)
    assert events.Scalars("task")[-1].value == 2


def test_training_does_not_notice(make_trainer, tmp_path, assert_same):
    states, draws = [], []
    for name, options in (("with", EVERY_THIRD), ("without", NONE)):
        # Without the seed of every iteration, a stray random number would show.
        make_trainer(options, {"SEED": -1}, folder=tmp_path / name).train()
        draws.append((torch.rand(3), np.random.rand(3)))
        states.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True))
    for key in ("model", "ewc"):
        assert_same(states[0][key], states[1][key])
    assert_same(states[0]["trainer"]["_trainer"], states[1]["trainer"]["_trainer"])
    assert_same(*draws)


def test_a_resumed_run_shows_the_same(make_trainer, tmp_path):
    class Stopped(TwoTaskTrainer):
        def after_step(self):
            super().after_step()
            if self.iter == 4:
                raise KeyboardInterrupt

    shown = {}

    def keep(self, name, picture):
        shown.setdefault(self.iter, []).append(picture.clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventStorage, "put_image", keep)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(EVERY_THIRD, folder=tmp_path / "a", cls=Stopped).train()
        make_trainer(EVERY_THIRD, folder=tmp_path / "a", resume=True).train()
        make_trainer(EVERY_THIRD, folder=tmp_path / "b").train()
    assert {step: len(found) for step, found in shown.items()} == {2: 2, 5: 2, 7: 2}
    for first, second in shown.values():
        assert torch.equal(first, second)


def test_rates_are_those_of_the_iteration(make_trainer, tmp_path):
    make_trainer(NONE, folder=tmp_path / "run").train()
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.json").read_text().splitlines()]
    line = next(x for x in lines if "lr" in x)
    # detectron2 logs the rate of the largest group.
    assert line["lr"] in [value for key, value in line.items() if key.startswith("lr/")]


def test_only_the_main_process_has_the_hooks(make_config, monkeypatch):
    cfg, model = make_config(EVERY_THIRD), torch.nn.Linear(1, 1)
    assert [type(hook) for hook in training_hooks(cfg, model)] == [GroupRates, TrainingPictures]
    assert [type(hook) for hook in training_hooks(make_config(NONE), model)] == [GroupRates]
    monkeypatch.setattr(hooks.comm, "is_main_process", lambda: False)
    assert training_hooks(cfg, model) == []


def test_samples_are_those_of_the_stream(make_config):
    cfg = make_config(EVERY_THIRD)
    loader = TwoTaskTrainer.build_train_loader(cfg)
    for x, y in zip(first_samples(cfg, 2), next(iter(loader))):
        assert x["stream_position"] == y["stream_position"]
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["sem_seg"], y["sem_seg"])


def test_every_module_keeps_its_mode():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.frozen = nn.BatchNorm2d(3).eval()
            self.fails = False

        def forward(self, inputs):
            assert not self.training
            assert not self.norm.training
            assert set(inputs[0]) == {"image"}
            if self.fails:
                raise LookupError
            return [{"sem_seg": self.norm(inputs[0]["image"][None])[0]}]

    model = Model().train()
    model.frozen.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = {"image": torch.rand(3, 4, 5), "sem_seg": torch.zeros(4, 5), "height": 9, "width": 9}
    np.testing.assert_array_equal(predict_sample(model, x), x["image"].argmax(0).numpy())
    model.fails = True
    with pytest.raises(LookupError):
        predict_sample(model, x)
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_are_shown_on_the_scale_of_tau():
    labels = np.zeros((6, 30), int)
    labels[:, :20] = 1
    labels[2, 25] = 2
    image = np.zeros((6, 30, 3), np.uint8)
    row = sample_row(image, labels, labels, SizeWeights(tau=5.0)).reshape(10, 4, 34, 3)
    weights = row[:6, 2, :30].astype(int).sum(axis=2)
    assert weights[2, 25] == weights.max() > weights[0, 0]  # tau against 121 / 120
    assert weights[0, 0] >= weights[0, 24] > 0  # background weighs 1
    assert (row[6:] == 255).all()
    assert (row[:, :, 30:] == 255).all()
