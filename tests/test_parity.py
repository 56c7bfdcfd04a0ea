"""The embedded host against the real detectron2: the demo, trained under both with one seed."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys

import pytest
import torch

from d2_smallobj.demo.dataset import make_demo

ITERATIONS, TASK_A = 8, 4


def _real_host_installed() -> bool:
    """Asks the standard finder, which knows nothing of the embedded host."""
    spec = importlib.machinery.PathFinder.find_spec("detectron2")
    return spec is not None and spec.origin is not None


pytestmark = [
    pytest.mark.real_host,
    pytest.mark.skipif(not _real_host_installed(), reason="no real detectron2 is installed"),
]


@pytest.fixture(scope="module")
def runs(repository, tmp_path_factory):
    """Output folders of the same run under both hosts."""
    root = tmp_path_factory.mktemp("parity")
    make_demo(root / "datasets" / "smallobj_demo", num_train=12, num_val=5, size=128)
    folders = {}
    for host in ("embedded", "detectron2"):
        folders[host] = root / host
        command = [
            *(sys.executable, "tools/train_net.py", "--config-file", "configs/demo_sbce.yaml"),
            *("SOLVER.MAX_ITER", str(ITERATIONS), "SMALLOBJ.TASK_A.ITERS", str(TASK_A)),
            *("SOLVER.IMS_PER_BATCH", "4", "SMALLOBJ.CROP_SIZE", "[64, 64]"),
            *("SMALLOBJ.EWC.NUM_IMAGES", "3", "OUTPUT_DIR", str(folders[host])),
        ]
        search = filter(None, [str(repository), os.environ.get("PYTHONPATH")])
        changes = {"D2_SMALLOBJ_HOST": host, "DETECTRON2_DATASETS": str(root / "datasets")}
        changes |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(search)}
        options = {"cwd": repository, "env": {**os.environ, **changes}}
        done = subprocess.run(command, **options, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        log = (folders[host] / "log.txt").read_text(encoding="utf-8")
        assert f"Host: {host} " in log
    return folders


@pytest.fixture(scope="module")
def checkpoints(runs):
    return [
        torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
        for folder in runs.values()
    ]


def test_losses_and_schedule_agree(runs):
    lines = [
        [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        for folder in runs.values()
    ]
    for embedded, real in zip(*lines):
        assert embedded["iteration"] == real["iteration"]
        for key in ("total_loss", "loss_sem_seg", "loss_ewc", "lr", "task"):
            assert (key in embedded) == (key in real), key
            if key in real:
                assert embedded[key] == pytest.approx(real[key], rel=1e-5), key
    assert len(lines[0]) == len(lines[1]) > 0


def test_checkpoint_keys_and_weights_agree(checkpoints):
    embedded, real = checkpoints
    assert embedded.keys() == real.keys()
    assert list(embedded["model"]) == list(real["model"])
    for name, tensor in real["model"].items():
        torch.testing.assert_close(embedded["model"][name], tensor, rtol=1e-4, atol=1e-5)
    assert embedded["ewc"]["anchor"].keys() == real["ewc"]["anchor"].keys()


def test_optimizer_and_schedule_states_agree(checkpoints):
    embedded, real = (checkpoint["trainer"] for checkpoint in checkpoints)
    assert embedded["iteration"] == real["iteration"] == ITERATIONS - 1
    assert embedded["hooks"] == real["hooks"]
    groups = [state["_trainer"]["optimizer"]["param_groups"] for state in (embedded, real)]
    assert groups[0] == groups[1]


def test_evaluation_results_agree(runs):
    embedded, real = (json.loads((folder / "results.json").read_text()) for folder in runs.values())
    assert embedded.keys() == real.keys() == {"A", "B"}
    for task in "AB":
        for figures, expected in zip(embedded[task].values(), real[task].values()):
            assert figures == pytest.approx(expected, rel=1e-3, nan_ok=True)
