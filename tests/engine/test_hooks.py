"""The hooks: pictures and rates for TensorBoard, label bootstrapping, the seed of iterations."""

from __future__ import annotations

import io
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import events_of, metrics_rows, saved

from d2_smallobj.annotations.label_maps import read_label_map, voc_palette
from d2_smallobj.engine import TwoTaskTrainer, hooks
from d2_smallobj.engine.hooks import (
    BOOTSTRAP_PICTURE,
    GroupRates,
    IterationSeed,
    TrainingPictures,
    bootstrap_figures,
    bootstrap_picture,
    iteration_seed,
    predict_sample,
    sample_row,
    training_hooks,
    weight_scale,
)
from d2_smallobj.engine.prediction import PredictionWriter
from d2_smallobj.losses.size_weights import SizeWeights
from d2_smallobj.modeling.uncertain_segmentor import Observation
from d2_smallobj.report.drawing import colour_weights
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

TAG = "image, label, size weights, prediction"
EVERY_THIRD = {"SMALLOBJ.PICTURES.PERIOD": 3, "SMALLOBJ.PICTURES.NUM_IMAGES": 2}
NONE = {"SMALLOBJ.PICTURES.PERIOD": 0}


def pictures(shown):
    return [np.array(Image.open(io.BytesIO(picture.encoded_image_string))) for picture in shown]


def test_what_tensorboard_shows(make_trainer, make_config, tmp_path):
    make_trainer(EVERY_THIRD, folder=tmp_path).train()
    events = events_of(tmp_path)
    images = events.Images(TAG)
    # Iterations count from 0; the run has 8.
    assert [image.step for image in images] == [2, 5, 7]
    # The first samples of the training stream.
    samples = next(iter(TwoTaskTrainer.build_train_loader(make_config(EVERY_THIRD))))
    sheets = pictures(images)
    for sheet in sheets:
        assert sheet.shape == (2 * 52 + 20, 4 * 52, 3)
        for row, x in zip(sheet[:104].reshape(2, 52, 4, 52, 3)[:, :48, :, :48], samples):
            shown = x["image"].numpy().transpose(1, 2, 0)[..., ::-1].round()
            np.testing.assert_array_equal(row[:, 0], shown)
            np.testing.assert_array_equal(row[:, 1], voc_palette()[x["sem_seg"]])
    # The net has learnt something between the first and the last picture.
    assert (sheets[0][:, 3 * 52 :] != sheets[-1][:, 3 * 52 :]).any()
    np.testing.assert_array_equal(sheets[0][:, : 3 * 52], sheets[-1][:, : 3 * 52])

    # Rates that differ from detectron2's, which is that of the largest group; each is there once.
    scalars = events.Tags()["scalars"]
    assert [name for name in scalars if name.startswith("lr")] == ["lr/head biases", "lr"]
    assert {"total_loss", "loss_sem_seg", "loss_ewc"} <= set(scalars)
    last = {name: events.Scalars(name)[-1].value for name in ("lr", "lr/head biases")}
    factor = (1 - 7 / 8) ** 0.9
    assert last["lr"] == pytest.approx(0.02 * factor, rel=1e-5)
    assert last["lr/head biases"] == pytest.approx(0.04 * factor, rel=1e-5)
    assert events.Scalars("in_task_B")[-1].value == 1
    # Both tasks are evaluated; what the data set fixes is no curve.
    noted = json.loads((tmp_path / "results.json").read_text())
    found = [(event.step, event.value) for event in events.Scalars("small_objects/IA-mIoU")]
    assert found == [
        (step, pytest.approx(noted[task]["smallobj_demo_val"]["IA-mIoU"]))
        for step, task in ((4, "A"), (8, "B"))
    ]
    assert not [name for name in scalars if "instances" in name or "images" in name]
    assert noted["A"]["smallobj_demo_val"]["instances_S"] > 0
    rows = {row["iteration"]: row for row in metrics_rows(tmp_path)}
    assert rows[4]["small_objects/mIoU"] == noted["A"]["smallobj_demo_val"]["mIoU"]


def test_the_scale_of_the_weights():
    scale = weight_scale(104, 5.0, before=2, after=1)
    assert scale.shape == (20, 4 * 104, 3)
    assert (scale[:, :208] == 255).all()
    assert (scale[:, 308:] == 255).all()
    bar = scale[0, 208:308]
    assert bar[0].tolist() == colour_weights(np.zeros((1, 1)), 5.0)[0, 0].tolist()
    assert bar[-1].tolist() == colour_weights(np.full((1, 1), 5.0), 5.0)[0, 0].tolist()
    # Numbers stand at 0, at 1 (a fifth of the way) and at 5, and nowhere else.
    ink = np.flatnonzero((scale[8:, 208:308] < 255).any(axis=(0, 2)))
    starts = ink[np.diff(ink, prepend=-9) > 5]
    assert len(starts) == 3
    assert abs(starts[1] + 3 - 20) <= 3


def test_training_does_not_notice(make_trainer, tmp_path, assert_same):
    states, draws = [], []
    for name, options in (("with", EVERY_THIRD), ("without", NONE)):
        # Without the seed of every iteration, a stray random number would show.
        make_trainer(options, {"SEED": -1}, folder=tmp_path / name).train()
        draws.append((torch.rand(3), np.random.rand(3)))
        states.append(saved(tmp_path / name))
    for key in ("model", "ewc"):
        assert_same(states[0][key], states[1][key])
    assert_same(states[0]["trainer"]["_trainer"], states[1]["trainer"]["_trainer"])
    assert_same(*draws)


def test_only_the_main_process_has_the_hooks(make_config, monkeypatch):
    cfg, model = make_config(EVERY_THIRD), torch.nn.Linear(1, 1)
    assert [type(hook) for hook in training_hooks(cfg, model)] == [GroupRates, TrainingPictures]
    assert [type(hook) for hook in training_hooks(make_config(NONE), model)] == [GroupRates]
    monkeypatch.setattr(hooks.comm, "is_main_process", lambda: False)
    assert training_hooks(cfg, model) == []


def test_every_module_keeps_its_mode(make_config, assert_same):
    model = TwoTaskTrainer.build_model(make_config())
    frozen = model.backbone.stem.conv1.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = {"image": 255 * torch.rand(3, 24, 32), "sem_seg": torch.zeros(24, 32), "height": 99}
    found = predict_sample(model, x)
    modes = [module for module in model.modules() if not module.training]
    # Another picture size or a training mode would show: statistics move, losses come back.
    assert found.shape == (24, 32)
    with pytest.raises(RuntimeError):
        predict_sample(model, {"image": torch.zeros(2, 24, 32)})
    assert [module for module in model.modules() if not module.training] == modes == [frozen]
    assert_same(dict(model.state_dict()), before)


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


UNCERTAIN = {
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
SHORT = {"SOLVER.MAX_ITER": 2, "SMALLOBJ.PICTURES.PERIOD": 0}


def train(trainer):
    """Train; returns whether the loss relabelled, by iteration."""
    states = []
    hook = HookBase()
    hook.after_step = lambda: states.append(hook.trainer._trainer.model.loss.bootstrapping)
    trainer.register_hooks([hook])
    trainer.train()
    return states


def test_labels_change_when_the_warm_up_is_over(make_trainer, tmp_path, monkeypatch, log):
    monkeypatch.setattr(hooks, "LOG_PERIOD", 2)
    states = train(make_trainer(UNCERTAIN, folder=tmp_path))
    assert states == [False] * 4 + [True] * 4
    assert "Bootstrapping starts at iteration 4: box pixels with sigma > 0.4" in log.text

    events = events_of(tmp_path)
    scalars = {tag for tag in events.Tags()["scalars"] if tag.startswith("doubt/")}
    names = {"relabelled", "changed", "sigma", "box_accuracy", "accuracy", "relabelled_accuracy"}
    assert scalars == {f"doubt/{name}" for name in names}
    assert any("doubt/relabelled" in row for row in metrics_rows(tmp_path))
    # Written at the end, the last value: after the switch, all of a young net is doubted.
    assert events.Scalars("doubt/relabelled")[-1].value > 0

    shown = events.Images(BOOTSTRAP_PICTURE)
    assert [picture.step for picture in shown] == [2, 5, 7]
    assert pictures(shown)[-1].shape == (48, 4 * 48, 3)


def test_a_resumed_run_goes_on_alike(make_trainer, tmp_path, assert_same, monkeypatch):
    shown = {}

    def keep(self, name, picture):
        shown.setdefault((self.iter, name), []).append(picture.clone())

    monkeypatch.setattr(EventStorage, "put_image", keep)
    whole = make_trainer(UNCERTAIN, folder=tmp_path)
    train(whole)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    resumed = make_trainer(UNCERTAIN, folder=tmp_path, resume=True)
    assert train(resumed) == [False] + [True] * 4
    assert_same(resumed._trainer.model.state_dict(), whole._trainer.model.state_dict())
    # Both kinds of pictures after 5 and 7 are drawn again, and are the same.
    assert {key: len(found) for key, found in shown.items()} == {
        (step, name): 1 + (step > 2) for step in (2, 5, 7) for name in (TAG, BOOTSTRAP_PICTURE)
    }
    assert all(torch.equal(found[0], found[-1]) for found in shown.values())


@pytest.mark.parametrize("always", [True, False])
def test_always_and_never(make_trainer, always, log):
    options = {"SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP": 0.0 if always else 1.0}
    assert train(make_trainer(UNCERTAIN, SHORT, options)) == [always] * 2
    assert ("Bootstrapping starts" in log.text) == always


def test_the_size_balanced_loss_on_top(make_trainer):
    """Two tasks with EWC, the second one size-weighted and bootstrapped."""
    penalty = {"SMALLOBJ.EWC.FISHER": "empirical", "SMALLOBJ.EWC.LAMBDA": 1.0}
    trainer = make_trainer(UNCERTAIN, SHORT, penalty, {"SMALLOBJ.TASK_A.ITERS": 1})
    assert train(trainer) == [False, True]
    assert trainer._trainer.model.loss.size_weighted
    assert np.isfinite(trainer._last_eval_results["small_objects"]["mIoU"])


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
    # Figures that rest on nothing are left out.
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


def test_sigma_is_written_as_numbers_and_as_a_picture(tmp_path):
    sigma = torch.tensor([[0.0, 1.0, 3e38], [0.25, 3.0, 1e6]])
    output = {"sem_seg": torch.zeros(2, 2, 3), "sigma": sigma}
    PredictionWriter(tmp_path, "BGR", uncertainty=True)("a/b", output, torch.zeros(3, 2, 3))
    numbers = np.load(tmp_path / "uncertainty/a/b.npy", allow_pickle=False)
    assert numbers.dtype == np.float16
    assert numbers.tolist() == [[0.0, 1.0, 65504.0], [0.25, 3.0, 65504.0]]
    picture = read_label_map(tmp_path / "uncertainty/a/b.png")
    assert picture.tolist() == [[0, 128, 255], [51, 191, 255]]


def test_seeds_differ():
    arguments = list(itertools.product(range(3), range(4), range(200)))
    seeds = {iteration_seed(*each) for each in arguments}
    assert len(seeds) == len(arguments)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [0, 5, -1])
def test_an_iteration_draws_the_same_again(seed):
    """A negative seed seeds nothing."""
    hook = IterationSeed(seed)
    draws = []
    for iteration in (3, 4, 3):
        inner = SimpleNamespace(_data_loader_iter=None)
        hook.trainer = SimpleNamespace(iter=iteration, _trainer=inner)
        before = torch.get_rng_state()
        hook.before_step()
        assert torch.equal(torch.get_rng_state(), before) == (seed < 0)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[2]) == (seed >= 0)
    assert not torch.equal(draws[0], draws[1])
