"""Two gloo processes on a CPU: both tasks, the Fisher information, evaluation, resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

KILLED = -9

TRAIN = """
import torch
from d2_smallobj.engine import TwoTaskTrainer, build_config
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

cfg = build_config(job["config"], job["options"])
seed_all_rng(cfg.SEED + comm.get_rank())
trainer = TwoTaskTrainer(cfg)
trainer.resume_or_load(resume=job["resume"])
results = trainer.train()
state = {"wrapped": type(trainer.model).__name__, "ewc": trainer._trainer.ewc.state_dict()}
torch.save(state, f"{cfg.OUTPUT_DIR}/rank{job['rank']}.pt")
"""


@pytest.fixture
def train_code(train_server, tiny):
    """Function: train through TRAIN and return what each process noted."""

    def run(folder, *overrides, world=2, resume=False):
        folder.mkdir(parents=True, exist_ok=True)
        options = tiny.as_options(tiny.options, *overrides, {"OUTPUT_DIR": folder})
        answer = train_server.code(
            TRAIN, config=tiny.config_file, options=options, world=world, resume=resume
        )
        assert answer.code == 0, answer.stderr
        return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(world)]

    return run


@pytest.fixture(scope="module")
def launched(demo_root, tmp_path_factory):
    """Folder and output of ``train_net.py --num-gpus 2``, as a user starts it."""

    def launch(tiny):
        folder = tmp_path_factory.mktemp("launched")
        options = tiny.as_options(tiny.options, tiny.ONLINE, {"OUTPUT_DIR": folder})
        search = [str(tiny.repository), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [
                *(sys.executable, str(tiny.repository / "tools" / "train_net.py")),
                *("--config-file", tiny.config_file, "--num-gpus", "2", "--dist-url", "auto"),
                *options,
            ],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, search)),
                "OMP_NUM_THREADS": "1",
                "DETECTRON2_DATASETS": str(demo_root),
            },
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return folder, done.stdout

    made = []

    def get(tiny):
        if not made:
            made.append(launch(tiny))
        return made[0]

    return get


def test_two_launched_processes_train_both_tasks(launched, tiny):
    folder, output = launched(tiny)
    assert (folder / "log.txt.rank1").exists()
    assert "EWC matched 17 parameter tensors" in output
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"A", "B"}
    assert results["B"]["smallobj_demo_val"]["images"] == 4
    final = torch.load(folder / "model_final.pth", weights_only=True)
    assert final["iteration"] == 7
    assert final["ewc"]["anchored"]
    assert not any(
        name.startswith("module.") for name in (*final["model"], *final["ewc"]["fisher"])
    )


def test_two_processes_resume_what_two_began(launched, train_server, tiny, tmp_path, assert_same):
    folder, _ = launched(tiny)
    reference = torch.load(folder / "model_final.pth", weights_only=True)
    for call in (2, 6):
        target = "d2_smallobj.engine.step:TaskStepTrainer._optimizer_step"
        strikes = [[target, call, "kill"]]
        run = tmp_path / f"killed{call}"
        answer = train_server.train(run, tiny.ONLINE, world=2, strikes=strikes)
        assert answer.codes == [KILLED, KILLED], answer.stderr
        answer = train_server.train(run, tiny.ONLINE, world=2, arguments=["--resume"])
        assert answer.code == 0, answer.stderr
        assert_same(torch.load(run / "model_final.pth", weights_only=True), reference)


def test_evaluation_is_the_same_in_one_and_two_processes(launched, train_server, tiny, tmp_path):
    weights = {"MODEL.WEIGHTS": launched(tiny)[0] / "model_final.pth"}
    files = {}
    for world in (1, 2):
        folder = tmp_path / f"{world}"
        answer = train_server.train(folder, weights, arguments=["--eval-only"], world=world)
        assert answer.code == 0, answer.stderr
        found = folder / "inference" / "smallobj_demo_val"
        files[world] = {path.name: path.read_bytes() for path in found.iterdir()}
    assert {"metrics.json", "instances.csv"} <= set(files[1])
    assert files[1] == files[2]
    assert json.loads(files[1]["metrics.json"])["sem_seg"]["images"] == 4


@pytest.mark.parametrize("estimator", ["online", "empirical"])
def test_processes_share_fisher_and_anchor(train_code, tiny, tmp_path, assert_same, estimator):
    # Without an evaluation in between, which would give both the same BatchNorm statistics.
    options = {"SMALLOBJ.EWC.FISHER": estimator, "SMALLOBJ.EVAL_TASK_A": False}
    ranks = train_code(tmp_path, options)
    assert [rank["wrapped"] for rank in ranks] == ["DistributedDataParallel"] * 2
    assert_same(ranks[0], ranks[1])
    state = ranks[0]["ewc"]
    assert len(state["fisher"]) == len(state["anchor"]) == 17
    assert "sem_seg_head.aspp.0.weight" in state["fisher"]


def test_empirical_fisher_is_that_of_one_process(train_code, tiny, tmp_path):
    train_code(tmp_path / "weights", tiny.EMPIRICAL, {"SMALLOBJ.TASK_A.ITERS": 7}, world=1)
    options = {
        **tiny.EMPIRICAL,
        "SMALLOBJ.TASK_A.ITERS": 0,
        "SOLVER.MAX_ITER": 1,
        # An odd number: the processes hold different shares.
        "SMALLOBJ.EWC.NUM_IMAGES": 5,
        "MODEL.WEIGHTS": tmp_path / "weights" / "model_final.pth",
    }
    two, one = (train_code(tmp_path / f"{n}", options, world=n)[0]["ewc"] for n in (2, 1))
    assert any(value.max() > 0 for value in one["fisher"].values())
    for name, value in one["fisher"].items():
        torch.testing.assert_close(two["fisher"][name], value, rtol=1e-4, atol=1e-10)
        assert torch.equal(two["anchor"][name], one["anchor"][name])


def test_fisher_uses_the_statistics_that_are_saved(train_code, tiny, tmp_path, assert_same):
    """Running BatchNorm statistics differ between processes; a resumed run has the main one's."""
    options = {**tiny.EMPIRICAL, "SMALLOBJ.EVAL_TASK_A": False}
    straight = train_code(tmp_path / "run", options)[0]
    (tmp_path / "run" / "last_checkpoint").write_text("model_task_a.pth")
    resumed = train_code(tmp_path / "run", options, resume=True)[0]
    assert_same(resumed, straight)


def test_accumulation_over_processes_equals_one_large_batch(train_server, tiny, tmp_path):
    """Four images a step, as 2 processes x 2 passes x 1 image, and as one batch of four."""
    plain = {
        "SMALLOBJ.TASK_A.ITERS": -1,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "SOLVER.MAX_ITER": 3,
        "SOLVER.BASE_LR": 0.001,
    }
    finals = []
    for world, batch, accumulate in ((2, 2, 2), (1, 4, 1)):
        run = tmp_path / f"{world}"
        sizes = {"SOLVER.IMS_PER_BATCH": batch, "SMALLOBJ.ACCUMULATE": accumulate}
        answer = train_server.train(run, plain, sizes, world=world)
        assert answer.code == 0, answer.stderr
        finals.append(torch.load(run / "model_final.pth", weights_only=True))
    for name, value in finals[0]["model"].items():
        torch.testing.assert_close(value, finals[1]["model"][name], rtol=1e-4, atol=1e-6)
