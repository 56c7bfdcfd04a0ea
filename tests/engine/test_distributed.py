"""Two gloo processes on a CPU: both tasks, the Fisher information, evaluation, resuming."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_runs import CONFIG, EMPIRICAL, ONLINE, TINY, TRAIN_NET, as_options, saved

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


@pytest.fixture(scope="module")
def launched(train_server, tmp_path_factory):
    """Folder and output of ``train_net.py --num-gpus 2``, whose processes import everything."""
    folder = tmp_path_factory.mktemp("launched")
    two = ["--num-gpus", "2", "--dist-url", "auto"]
    output = train_server.finish(folder, ONLINE, arguments=two, spawn=True).stdout
    assert (folder / "log.txt.rank1").exists()
    return folder, output


def test_two_launched_processes_train_both_tasks(launched):
    folder, output = launched
    assert "EWC matched 17 parameter tensors" in output
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"A", "B"}
    assert results["B"]["smallobj_demo_val"]["images"] == 4
    final = saved(folder)
    assert final["iteration"] == 7
    assert final["ewc"]["anchored"]
    names = (*final["model"], *final["ewc"]["fisher"])
    assert not any(name.startswith("module.") for name in names)


@pytest.mark.slow
def test_torchrun(launched, train_server, tmp_path, assert_same):
    """Processes that torchrun started are joined, and train what detectron2's launch does."""
    options = as_options(TINY, ONLINE, {"OUTPUT_DIR": tmp_path})
    script = [str(TRAIN_NET), "--config-file", str(CONFIG), *options]
    code = "from torch.distributed.run import main; main(job['arguments'])"
    torchrun = ["--standalone", "--monitor_interval", "0.1", "--nproc_per_node", "2", *script]
    answer = train_server.code(code, arguments=torchrun)
    assert answer.code == 0, answer.stderr
    assert (tmp_path / "log.txt.rank1").exists()
    for part in ("model", "ewc"):
        assert_same(dict(saved(tmp_path)[part]), dict(saved(launched[0])[part]))


@pytest.mark.parametrize("call", [2, 6])
def test_two_processes_resume_what_two_began(launched, train_server, tmp_path, assert_same, call):
    strikes = [["d2_smallobj.engine.step:TaskStepTrainer._optimizer_step", call, "kill"]]
    answer = train_server.train(tmp_path, ONLINE, world=2, strikes=strikes)
    assert answer.codes == [KILLED, KILLED], answer.stderr
    train_server.finish(tmp_path, ONLINE, world=2, arguments=["--resume"])
    assert_same(saved(tmp_path), saved(launched[0]))


def test_evaluation_is_the_same_in_one_and_two_processes(launched, train_server, tmp_path):
    weights = {"MODEL.WEIGHTS": launched[0] / "model_final.pth"}
    files = {}
    for world in (1, 2):
        folder = tmp_path / f"{world}"
        train_server.finish(folder, weights, arguments=["--eval-only"], world=world)
        found = folder / "inference" / "smallobj_demo_val"
        files[world] = {path.name: path.read_bytes() for path in found.iterdir()}
    assert {"metrics.json", "instances.csv"} <= set(files[1])
    assert files[1] == files[2]
    assert json.loads(files[1]["metrics.json"])["small_objects"]["images"] == 4


@pytest.mark.parametrize("estimator", ["online", "empirical"])
def test_processes_share_fisher_and_anchor(train_server, tmp_path, assert_same, estimator):
    """Running BatchNorm statistics differ between processes; a resumed run has the main one's."""
    # Without an evaluation in between, which would give both the same statistics.
    options = {"SMALLOBJ.EWC.FISHER": estimator, "SMALLOBJ.EVAL_TASK_A": False}
    arguments = as_options(TINY, options, {"OUTPUT_DIR": tmp_path})
    job = {"config": str(CONFIG), "options": arguments, "world": 2}

    def train(resume):
        answer = train_server.code(TRAIN, resume=resume, **job)
        assert answer.codes == [0, 0], answer.stderr
        return [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]

    ranks = train(resume=False)
    assert [rank["wrapped"] for rank in ranks] == ["DistributedDataParallel"] * 2
    assert_same(ranks[0], ranks[1])
    state = ranks[0]["ewc"]
    assert len(state["fisher"]) == len(state["anchor"]) == 17
    assert "sem_seg_head.aspp.0.weight" in state["fisher"]
    (tmp_path / "last_checkpoint").write_text("model_task_a.pth")
    assert_same(train(resume=True)[0], ranks[0])


def test_empirical_fisher_is_that_of_one_process(train_server, launched, tmp_path, assert_same):
    options = {
        **EMPIRICAL,
        "SMALLOBJ.TASK_A.ITERS": 0,
        "SOLVER.MAX_ITER": 1,
        # An odd number: the processes hold different shares.
        "SMALLOBJ.EWC.NUM_IMAGES": 5,
        "MODEL.WEIGHTS": launched[0] / "model_final.pth",
    }
    for world in (1, 2):
        train_server.finish(tmp_path / f"{world}", options, world=world)
    one, two = (saved(tmp_path / name)["ewc"] for name in "12")
    assert any(value.max() > 0 for value in one["fisher"].values())
    torch.testing.assert_close(dict(two["fisher"]), dict(one["fisher"]), rtol=1e-4, atol=1e-10)
    assert_same(dict(two["anchor"]), dict(one["anchor"]))


def test_accumulation_over_processes_equals_one_large_batch(train_server, tmp_path):
    """Four images a step, as 2 processes x 2 passes x 1 image, and as one batch of four."""
    plain = {"SMALLOBJ.TASK_A.ITERS": -1, "MODEL.RESNETS.NORM": "FrozenBN", "SOLVER.MAX_ITER": 3}
    finals = []
    for world, batch, accumulate in ((2, 2, 2), (1, 4, 1)):
        sizes = {"SOLVER.IMS_PER_BATCH": batch, "SMALLOBJ.ACCUMULATE": accumulate}
        run = tmp_path / f"{world}"
        train_server.finish(run, plain, sizes, {"SOLVER.BASE_LR": 0.001}, world=world)
        finals.append(saved(run)["model"])
    torch.testing.assert_close(*map(dict, finals), rtol=1e-4, atol=1e-6)


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

MULTI = {"SMALLOBJ.MSC.ENABLED": True}
SAME = {
    "cross-entropy": ("cross_entropy", {}),
    "size weights": ("size_weighted", {}),
    "per pixel": ("size_weighted", {"SMALLOBJ.NORMALIZE": "pixels"}),
    "accumulated": ("size_weighted", {"SMALLOBJ.ACCUMULATE": 2}),
    "multi-scale": ("size_weighted", MULTI),
    "on logits": ("size_weighted", {**MULTI, "SMALLOBJ.LOSS_RESOLUTION": "logits"}),
}


@pytest.fixture
def few_steps(train_server, tmp_path):
    """Function: three steps on images of which unequal parts are ignored; what each rank has."""

    def run(loss, overrides, world):
        frozen = {"MODEL.RESNETS.NORM": "FrozenBN", "SOLVER.BASE_LR": 1e-3, **ONLINE}
        job = {"config": str(CONFIG), "options": as_options(TINY, frozen, overrides)}
        answer = train_server.code(STEPS, world=world, folder=str(tmp_path), loss=loss, **job)
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


@pytest.mark.parametrize(("batch", "near"), [(1, "2"), (3, "2 or 4")])
def test_a_batch_that_does_not_divide(train_server, tmp_path, batch, near):
    sizes = {"SOLVER.IMS_PER_BATCH": batch}
    # Before any process is started,
    answer = train_server.train(tmp_path, sizes, arguments=["--num-gpus", "2"])
    assert answer.code == 1
    assert answer.error == (
        "error: SOLVER.IMS_PER_BATCH must be a positive multiple of the number of processes (2), "
        f"got {batch}; take {near}, or other processes"
    )
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
    saved_losses = json.loads((tmp_path / "nan_batch.json").read_text())["processes"]
    assert [process["rank"] for process in saved_losses] == [0, 1]
    steps = [process["step"] for process in saved_losses]
    assert [step["losses"]["loss"] for step in steps] == [2.0, "nan"]
    assert steps[1]["samples"] == [{"file_name": "1.jpg"}]
