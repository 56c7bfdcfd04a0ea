"""``MODEL.WEIGHTS`` in every layout, through ``tools/train_net.py`` and nothing else."""

from __future__ import annotations

import pickle

import pytest
import torch

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
LAYERS = {
    "conv1": (4, 8, 1, 1),
    "conv2": (4, 4, 3, 3),
    "conv3": (8, 4, 1, 1),
}
STATISTICS = ("weight", "bias", "running_mean", "running_var")
CAFFE = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
KAZUTO = {"conv1": "reduce", "conv2": "conv3x3", "conv3": "increase"}


def norm(weight, prefix, parts):
    return {f"{prefix}{part}": torch.full(weight.shape[:1], 0.9) for part in parts}


def filled(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def caffe2():
    weights = {"conv1_w": filled(0, (8, 3, 7, 7)), "fc1000_w": torch.zeros(1000, 8)}
    weights.update(norm(weights["conv1_w"], "res_conv1_bn_", "sb"))
    for block in range(3):
        for layer, branch in CAFFE.items():
            name = f"res2_{block}_{branch}"
            shape = (4, 8, 1, 1) if layer == "conv1" else LAYERS[layer]
            weights[f"{name}_w"] = filled(block, shape)
            weights.update(norm(weights[f"{name}_w"], f"{name}_bn_", "sb"))
    return weights


def torchvision():
    weights = {"conv1.weight": filled(0, (8, 3, 7, 7)), "fc.bias": torch.zeros(1000)}
    weights.update(norm(weights["conv1.weight"], "bn1.", STATISTICS))
    for block in range(3):
        for layer, shape in LAYERS.items():
            weights[f"layer1.{block}.{layer}.weight"] = weight = filled(block, shape)
            weights.update(norm(weight, f"layer1.{block}.bn{layer[-1]}.", STATISTICS))
    return weights


def kazuto():
    weights = {"layer1.conv1.conv.weight": filled(0, (8, 3, 7, 7)), "fc.bias": torch.zeros(91)}
    weights.update(norm(weights["layer1.conv1.conv.weight"], "layer1.conv1.bn.", STATISTICS))
    for block in range(3):
        for layer, shape in LAYERS.items():
            name = f"layer2.block{block + 1}.{KAZUTO[layer]}"
            weights[f"{name}.conv.weight"] = weight = filled(block, shape)
            weights.update(norm(weight, f"{name}.bn.", STATISTICS))
    return weights


def write(folder, weights, suffix):
    path = folder / f"weights.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps({n: v.numpy() for n, v in weights.items()}, protocol=2))
    else:
        torch.save(weights, path)
    return path


@pytest.mark.parametrize(
    ("make", "suffix", "told"),
    [
        (caffe2, "pkl", "Caffe2 blobs (detectron2's MSRA models)"),
        (torchvision, "pth", "torchvision's ResNet"),
        (kazuto, "pth", "kazuto1011/deeplab-pytorch"),
    ],
)
def test_training_starts_from_the_weights(train_server, tmp_path, make, suffix, told):
    path = write(tmp_path, make(), suffix)
    run = tmp_path / "run"
    answer = train_server.train(run, RESNET50, {"MODEL.WEIGHTS": path})
    assert answer.code == 0, answer.stderr
    log = (run / "log.txt").read_text()
    assert f"{path} ({told}): " in log
    assert f"Initial weights: {path}" in log
    assert "in the file, not used: fc" in log
    assert ("trained on another input" in log) == (make is not caffe2)
    state = torch.load(run / "model_final.pth", weights_only=True)["model"]
    for key, seed in (("stem.conv1", 0), ("res2.0.conv1", 0), ("res2.2.conv3", 2)):
        weight = state[f"backbone.{key}.weight"]
        torch.testing.assert_close(weight, filled(seed, weight.shape), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            state[f"backbone.{key}.norm.bias"], torch.full(weight.shape[:1], 0.9)
        )


def test_a_head_for_other_classes_trains_but_is_not_evaluated(train_server, tmp_path):
    assert train_server.train(tmp_path / "a").code == 0
    seven = {"MODEL.WEIGHTS": tmp_path / "a" / "model_final.pth"}
    nine = {**seven, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9, "DATASETS.TEST": "()"}
    answer = train_server.train(tmp_path / "b", nine)
    assert answer.code == 0, answer.stderr
    assert "a head for 7 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 9" in answer.stdout
    assert "start from their random initialisation" in answer.stdout
    answer = train_server.train(tmp_path / "c", nine, arguments=["--eval-only"])
    assert answer.code == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/a/model_final.pth does not hold the whole model")
    assert "a head for 7 classes" in last


def test_task_b_from_the_start_needs_the_whole_model(make_trainer, tiny, tmp_path):
    """Its penalty would hold a head of random weights."""
    path = write(tmp_path, torchvision(), "pth")
    start = {**RESNET50, **tiny.EMPIRICAL, "SMALLOBJ.TASK_A.ITERS": 0, "MODEL.WEIGHTS": path}
    with pytest.raises(
        ValueError, match=r"weights\.pth does not hold the whole model: it lacks se"
    ):
        make_trainer(start)


def test_weights_that_cannot_be_fetched(make_trainer, monkeypatch):
    from iopath.common import file_io

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(file_io, "download", offline)
    weights = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/nothing.pkl"}
    with pytest.raises(
        OSError, match=r"detectron2://.*nothing\.pkl.*download it elsewhere and giv"
    ):
        make_trainer(weights)
