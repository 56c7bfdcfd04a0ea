"""``MODEL.WEIGHTS`` through ``tools/train_net.py`` (all layouts: test_initial_weights.py)."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import EMPIRICAL, ONLINE, saved

# The tiny net with bottlenecks: stem and res2 of a ResNet-50.
RESNET50 = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.PIXEL_STD": "[1.0, 1.0, 1.0]",
    "SMALLOBJ.TASK_A.ITERS": -1,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.BASE_LR": 1e-12,
}
SHAPES = ((4, 8, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1))


def filled(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture
def weights(tmp_path):
    """A file of torchvision's ResNet-50, cut behind its first stage."""
    layers = [("conv1", "bn1", 0, (8, 3, 7, 7))]
    for block in range(3):
        for i, shape in enumerate(SHAPES, 1):
            layers.append((f"layer1.{block}.conv{i}", f"layer1.{block}.bn{i}", block, shape))
    tensors = {"fc.bias": torch.zeros(1000)}
    for name, norm, seed, shape in layers:
        tensors[f"{name}.weight"] = filled(seed, shape)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = torch.full(shape[:1], 0.9)
    torch.save(tensors, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_training_starts_from_the_weights(train_server, weights, tmp_path):
    run = tmp_path / "run"
    train_server.finish(run, RESNET50, {"MODEL.WEIGHTS": weights})
    log = (run / "log.txt").read_text()
    assert f"{weights} (torchvision's ResNet): " in log
    assert f"Initial weights: {weights}" in log
    assert "in the file, not used: fc" in log
    assert "trained on another input" in log
    state = saved(run)["model"]
    for key, seed in (("stem.conv1", 0), ("res2.0.conv1", 0), ("res2.2.conv3", 2)):
        weight, bias = (state[f"backbone.{key}.{x}"] for x in ("weight", "norm.bias"))
        torch.testing.assert_close(weight, filled(seed, weight.shape), rtol=0, atol=1e-6)
        torch.testing.assert_close(bias, torch.full(weight.shape[:1], 0.9))


def test_a_head_for_other_classes_trains_but_is_not_evaluated(train_server, undisturbed, tmp_path):
    path = undisturbed(ONLINE)[0] / "model_final.pth"
    nine = {"MODEL.WEIGHTS": path, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9, "DATASETS.TEST": "()"}
    answer = train_server.finish(tmp_path / "b", nine)
    assert "a head for 7 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 9" in answer.stdout
    assert "start from their random initialisation" in answer.stdout
    answer = train_server.train(tmp_path / "c", nine, arguments=["--eval-only"])
    assert answer.code == 1
    assert answer.error.startswith(f"error: {path} does not hold the whole model")
    assert "a head for 7 classes" in answer.error


def test_task_b_from_the_start_needs_the_whole_model(make_trainer, weights):
    """Its penalty would hold a head of random weights."""
    start = {**RESNET50, **EMPIRICAL, "SMALLOBJ.TASK_A.ITERS": 0, "MODEL.WEIGHTS": weights}
    told = r"weights\.pth does not hold the whole model: it lacks se"
    with pytest.raises(ValueError, match=told):
        make_trainer(start)


def test_weights_that_cannot_be_fetched(make_trainer, monkeypatch):
    from iopath.common import file_io

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(file_io, "download", offline)
    weights = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/nothing.pkl"}
    told = r"detectron2://.*nothing\.pkl.*download it elsewhere and giv"
    with pytest.raises(OSError, match=told):
        make_trainer(weights)
