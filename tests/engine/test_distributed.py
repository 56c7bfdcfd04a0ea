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


def start_two(demo_root, tiny, folder, *, launcher=(), arguments=()):
    """Run ``train_net.py`` in two processes as a user starts them; what it printed."""
    options = tiny.as_options(tiny.options, tiny.ONLINE, {"OUTPUT_DIR": folder})
    search = [str(tiny.repository), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            *(sys.executable, *launcher, str(tiny.repository / "tools" / "train_net.py")),
            *("--config-file", tiny.config_file, *arguments, *options),
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
    assert (folder / "log.txt.rank1").exists()
    return done.stdout


@pytest.fixture(scope="module")
def launched(demo_root, tmp_path_factory):
    """Folder and output of ``train_net.py --num-gpus 2``."""
    made = []

    def get(tiny):
        if not made:
            folder = tmp_path_factory.mktemp("launched")
            two = ["--num-gpus", "2", "--dist-url", "auto"]
            made.append((folder, start_two(demo_root, tiny, folder, arguments=two)))
        return made[0]

    return get


def test_two_launched_processes_train_both_tasks(launched, tiny):
    folder, output = launched(tiny)
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
    assert json.loads(files[1]["metrics.json"])["small_objects"]["images"] == 4


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


# ---- Several processes learn what one does -----------------------------------------------------

STEPS = """
import itertools, json
import torch
from torch import distributed as dist
from d2_smallobj.engine import TwoTaskTrainer, build_config
from d2_smallobj.engine.distributed import distribute
from d2_smallobj.engine.loss_log import LossLog
from d2_smallobj.engine.solver import build_optimizer
from d2_smallobj.engine.step import TaskStepTrainer
from d2_smallobj.engine.tasks import build_ewc, set_loss
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

def sample(position, side=48):
    generator = torch.Generator().manual_seed(position)
    labels = torch.zeros(side, side, dtype=torch.long)
    for label in range(1, 5):
        size = int(torch.randint(1, 14, (), generator=generator))
        y, x = torch.randint(0, side - size, (2,), generator=generator).tolist()
        labels[y:y + size, x:x + size] = label
    # From none to all of an image is ignored.
    labels[:, :(0, 7, 40, 48)[position % 4]] = 255
    image = 255 * torch.rand(3, side, side, generator=generator, dtype=torch.double)
    return {"image": image, "sem_seg": labels, "stream_position": position}

cfg = build_config(job["config"], job["options"])
rank, world = comm.get_rank(), comm.get_world_size()
seed_all_rng(0)
# In double precision: what is left of a difference is one of meaning, not of rounding.
model = TwoTaskTrainer.build_model(cfg).double().train()
optimizer = build_optimizer(cfg, model)
per_pass = 4
passes = [[sample(p) for p in range(first + rank, first + per_pass, world)]
          for first in range(0, 100, per_pass)]
ewc = build_ewc(cfg, model, optimizer)
step = TaskStepTrainer(distribute(model), passes, optimizer, ewc=ewc,
                       accumulate=cfg.SMALLOBJ.ACCUMULATE, loss_log=LossLog(3))
set_loss(model, job["loss"])
losses, gradients = [], []
with EventStorage() as storage:
    for step.iter in range(3):
        storage.iter = step.iter
        step.run_step()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    if rank == 0:
        losses = [value for value, _ in storage.history("total_loss").values()]
torch.save({"losses": losses, "gradients": gradients, "weights": dict(model.named_parameters()),
            "fisher": ewc.fisher}, f"{job['folder']}/{world}-{rank}.pt")
"""

SAME = {
    "cross-entropy": ("cross_entropy", {}),
    "size weights": ("size_weighted", {}),
    "per pixel": ("size_weighted", {"SMALLOBJ.NORMALIZE": "pixels"}),
    "accumulated": ("size_weighted", {"SMALLOBJ.ACCUMULATE": 2}),
    "multi-scale": ("size_weighted", {"SMALLOBJ.MSC.ENABLED": True}),
    "on logits": (
        "size_weighted",
        {"SMALLOBJ.MSC.ENABLED": True, "SMALLOBJ.LOSS_RESOLUTION": "logits"},
    ),
}


@pytest.fixture
def few_steps(train_server, tiny, tmp_path):
    """Function: three steps on images of which unequal parts are ignored; what each rank has."""

    def run(loss, overrides, world):
        frozen = {"MODEL.RESNETS.NORM": "FrozenBN", "SOLVER.BASE_LR": 1e-3, **tiny.ONLINE}
        options = tiny.as_options(tiny.options, frozen, overrides)
        job = {"config": tiny.config_file, "options": options, "loss": loss}
        answer = train_server.code(STEPS, world=world, folder=str(tmp_path), **job)
        assert answer.codes == [0] * world, answer.stderr
        return [torch.load(tmp_path / f"{world}-{r}.pt", weights_only=True) for r in range(world)]

    return run


def difference(found, expected):
    """The largest difference over the largest value, of two dicts of tensors."""
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    return max((found[n] - v).abs().max().item() for n, v in expected.items()) / largest


@pytest.mark.parametrize("case", SAME)
def test_two_processes_learn_what_one_does(few_steps, case):
    (one,) = few_steps(*SAME[case], 1)
    for rank in few_steps(*SAME[case], 2):
        for found, expected in zip(rank["gradients"], one["gradients"]):
            assert difference(found, expected) < 1e-6
        assert difference(rank["weights"], one["weights"]) < 1e-6
        assert difference(rank["fisher"], one["fisher"]) < 1e-6
        if rank["losses"]:
            assert rank["losses"] == pytest.approx(one["losses"], rel=1e-6)


def test_divisors_of_their_own_are_another_loss(few_steps):
    """The key has an effect: without it, images with ignored pixels count more."""
    local = {"SMALLOBJ.GLOBAL_DIVISOR": False}
    (one,) = few_steps("cross_entropy", local, 1)
    two = few_steps("cross_entropy", local, 2)[0]
    assert difference(two["gradients"][0], one["gradients"][0]) > 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_does_not_divide(train_server, tmp_path, batch):
    near = "2" if batch == 1 else "2 or 4"
    message = (
        "SOLVER.IMS_PER_BATCH must be a positive multiple of the number of processes (2), got "
        f"{batch}; take {near}, or other processes"
    )
    sizes = {"SOLVER.IMS_PER_BATCH": batch}
    # Before any process is started,
    answer = train_server.train(tmp_path, sizes, arguments=["--num-gpus", "2"])
    assert answer.code == 1
    assert answer.stderr.strip().splitlines()[-1] == f"error: {message}"
    # and in processes that somebody else has started.
    answer = train_server.train(tmp_path, sizes, world=2)
    assert 1 in answer.codes
    assert 0 not in answer.codes


NAN = """
import torch
from d2_smallobj.engine.loss_log import LossLog, samples_of
from detectron2.utils.events import EventStorage

rank = job["rank"]
log = LossLog(4, job["folder"])
with EventStorage() as storage:
    for iteration in range(3):
        bad = iteration == 1 and rank == 1
        loss = torch.tensor(float("nan") if bad else 2.0 + rank)
        log.add(iteration, {"loss": loss}, 1.0 + rank, samples_of([{"file_name": f"{rank}.jpg"}]))
    try:
        log.flush()
    except FloatingPointError as error:
        print(error)
    if rank == 0:
        assert storage.history("total_loss").values() == [(2.5, 0)]
        assert storage.history("data_time").values() == [(2.0, 0)]
"""


def test_a_loss_of_one_process_stops_all(train_server, tmp_path):
    answer = train_server.code(NAN, world=2, folder=str(tmp_path))
    assert answer.codes == [0, 0], answer.stderr
    assert "not finite at iteration=1: {'loss': 'nan'}" in answer.stdout
    saved = json.loads((tmp_path / "nan_batch.json").read_text())
    assert [process["rank"] for process in saved["processes"]] == [0, 1]
    steps = [process["step"] for process in saved["processes"]]
    assert [step["losses"]["loss"] for step in steps] == [2.0, "nan"]
    assert steps[1]["samples"] == [{"file_name": "1.jpg"}]


def test_torchrun(launched, demo_root, tiny, tmp_path, assert_same):
    """Processes that torchrun started are joined, and train what detectron2's launch does."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    start_two(demo_root, tiny, tmp_path, launcher=torchrun)
    found, expected = (
        torch.load(folder / "model_final.pth", weights_only=True)
        for folder in (tmp_path, launched(tiny)[0])
    )
    for part in ("model", "ewc"):
        assert_same(dict(found[part]), dict(expected[part]))
