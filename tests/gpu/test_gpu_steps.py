"""Training on a GPU against the CPU: one step of every loss, whole runs, resuming, faults.

Tolerances. Of one step, as shares of the length (norm) of the CPU's float32 step:

- float32, TF32 off: sums in another order, 2^-24 each, magnified by some twenty layers: 1e-3;
- bfloat16 has 8 bits, so every layer adds an error of 2^-9 that neither averages out within a
  channel nor grows along the net, which is normalised: 0.15 of the step, 2 % of the loss;
- float16 has 11 bits: an eighth of that.

Runs of many steps part exponentially, whatever the device: their first losses agree to 1e-3, and
later ones are compared by their mean.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from benchmarks import train_steps
from benchmarks.train import find_wait
from benchmarks.train_steps import FISHER, LOSSES, OurSteps, Problem
from tiny_runs import EMPIRICAL, ONLINE, metrics_rows, saved

from d2_smallobj.data.loaders import DeviceLoader
from d2_smallobj.engine.solver import can_compile
from d2_smallobj.losses import ewc_penalty
from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.utils.cli import user_message
from detectron2.engine import HookBase

pytestmark = pytest.mark.gpu
SMALL = Problem(depth=18, width=32, crop=64, batch=2)
FORMATS = {  # of the step, of the loss
    "float32": ((1e-3, 1e-4), ()),
    "bfloat16": ((0.15, 0.02), ("SMALLOBJ.AMP_DTYPE", "bfloat16")),
    "float16": ((0.02, 0.003), ("SMALLOBJ.AMP_DTYPE", "float16")),
}
CHANNELS_LAST = ("SMALLOBJ.SPEED.MEMORY_FORMAT", "channels_last")


def on(device):
    return {"MODEL.DEVICE": device}


def rounded_otherwise(device):
    """In a rehearsal, other kernels of the CPU stand for the GPU's."""
    return {"SMALLOBJ.SPEED.MEMORY_FORMAT": "channels_last" if device == "cpu" else "auto"}


@pytest.fixture
def reference():
    """The CPU's batches and its float32 steps, at the recipe's rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_steps, "_RATE", 2.5e-4)
        batches = SMALL.batches()
        yield batches, OurSteps(SMALL, batches, ["MODEL.DEVICE", "cpu"])


def copy_state(source, target):
    """Give steps on a device the weights, momentum and penalty of others."""
    target.model.load_state_dict(source.model.state_dict())
    target.trainer.load_state_dict(source.trainer.state_dict())
    for loss, ewc in source.ewc.items():
        target.ewc[loss].load_state_dict(ewc.state_dict())


def weights_of(steps):
    values = [p.detach().float().cpu().flatten() for p in steps.model.parameters()]
    return torch.cat(values)


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("kind", FORMATS)
def test_one_step_of_every_loss(device, reference, monkeypatch, kind, images):
    (of_step, of_loss), options = FORMATS[kind]
    monkeypatch.setattr(train_steps, "_RATE", 2.5e-4)
    if kind == "float16":  # the trainer takes bfloat16 on a CPU; here scaling is rehearsed there
        monkeypatch.setattr(train_steps, "amp_dtype", lambda cfg: torch.float16)
    batches, cpu = reference
    options = ["MODEL.DEVICE", device, "SMALLOBJ.SPEED.LOSS_IMAGES", str(images), *options]
    if kind != "float32" or device == "cpu":
        options += CHANNELS_LAST
    if kind != "float32":
        options += ["SOLVER.AMP.ENABLED", "True"]
    steps = OurSteps(SMALL, batches, options)
    if kind == "float16":  # where no gradient overflows
        steps.trainer.grad_scaler.update(new_scale=2.0**6)
    # The next batch of both is the same one.
    for some in (cpu, steps):
        some.trainer.replace_data_loader(some._data(batches))
    for loss in LOSSES:
        copy_state(cpu, steps)
        before = weights_of(cpu)
        for some in (cpu, steps):
            some.run(loss, 1)
        moved, expected = (weights_of(some) - before for some in (steps, cpu))
        assert expected.norm() > 0
        assert distance(moved, expected) < of_step, loss
        assert steps.read_losses()[-1] == pytest.approx(cpu.read_losses()[-1], rel=of_loss), loss
        if loss == FISHER:
            here, there = (
                torch.cat([f.cpu().flatten() for f in s.ewc[FISHER].fisher.values()])
                for s in (steps, cpu)
            )
            assert distance(here, there) < 2 * of_step  # it is the gradient's square
        if loss == "L_SB":
            assert cpu.ewc[loss].penalty() > 0
            penalties = [some.ewc[loss].penalty().item() for some in (steps, cpu)]
            assert penalties[0] == pytest.approx(penalties[1], rel=2 * of_step)


def test_no_step_waits_for_the_device(device):
    if device == "cpu":
        pytest.skip("CUDA's own check of synchronisations; tests/engine/test_step.py counts reads")
    for options in (CHANNELS_LAST, ("SOLVER.AMP.ENABLED", "True", *CHANNELS_LAST)):
        for images in "01":
            options = (*options, "SMALLOBJ.SPEED.LOSS_IMAGES", images)
            assert find_wait(OurSteps(SMALL, SMALL.batches(), options)) == ""


def test_batches_copied_ahead_are_the_batches(device):
    """Each is whole when it is read, also while the GPU is busy and the next one is copied."""
    pin = torch.cuda.is_available()
    batches = [[{"x": torch.full((1 << 18,), float(n)), "name": str(n)}] for n in range(8)]
    for (batch,) in batches:
        batch["x"] = batch["x"].pin_memory() if pin else batch["x"]
    busy = torch.ones(1500, 1500, device=device)
    sums = []
    for number, (batch,) in enumerate(DeviceLoader(batches, torch.device(device))):
        assert (batch["name"], batch["x"].device.type) == (str(number), device)
        busy = (busy @ busy) * 0 + 1
        sums.append(batch["x"].sum() + 0 * busy[0, 0])
        del batch
    assert [x.item() for x in sums] == [n * 2**18 for n in range(8)]


def losses(trainer):
    """The total loss of every iteration."""
    return [value for value, _ in trainer.storage.history("total_loss").values()]


def test_accumulated_batches(make_trainer, device):
    """Two passes a step on the device, and on the CPU: three steps of each task."""
    options = {"SMALLOBJ.ACCUMULATE": 2, "SOLVER.MAX_ITER": 6, "SMALLOBJ.TASK_A.ITERS": 3, **ONLINE}
    ends = []
    for extra in (on("cpu"), {**on(device), **rounded_otherwise(device)}):
        trainer = make_trainer(options, extra)
        trainer.train()
        ends.append(losses(trainer))
    assert ends[1] == pytest.approx(ends[0], rel=1e-2)
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-4)


@pytest.mark.parametrize("fisher", [ONLINE, EMPIRICAL])
def test_thirty_iterations_of_the_demo(make_trainer, tiny, device, fisher):
    """The demo's own net. The figures of so short a run are noise, so its losses are compared."""
    options = {"SOLVER.MAX_ITER": 30, "SMALLOBJ.TASK_A.ITERS": 15, "SMALLOBJ.EWC.NUM_IMAGES": 8}
    options |= {"SOLVER.IMS_PER_BATCH": 4, "DATALOADER.NUM_WORKERS": 0, **fisher}
    curves = []
    for extra in (on("cpu"), {**on(device), **rounded_otherwise(device)}):
        trainer = make_trainer(options, extra, base={})
        results = trainer.train()
        curves.append(losses(trainer))
        assert trainer._trainer.ewc.anchored
        assert results
    found, expected = curves
    assert len(found) == 30
    assert found[:5] == pytest.approx(expected[:5], rel=1e-3)
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    for part in (slice(5, 15), slice(15, 30)):
        assert mean(found[part]) == pytest.approx(mean(expected[part]), rel=0.1)
    assert mean(found[10:15]) < found[0]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps(make_trainer, device, monkeypatch, mode):
    """Fused kernels, and CUDA graphs; a rehearsal runs what would be compiled as it is written."""
    if device == "cpu":
        monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    elif not can_compile(device):
        pytest.skip("no triton")
    ewc_penalty.compiled_pass.cache_clear()
    keys = {"SMALLOBJ.SPEED.COMPILE": mode, "SMALLOBJ.SPEED.COMPILE_EWC": True}
    curves = []
    for extra in ({}, keys):
        trainer = make_trainer(ONLINE, extra, on(device))
        trainer.train()
        curves.append(losses(trainer))
    ewc_penalty.compiled_pass.cache_clear()
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)


class Stop(HookBase):
    """End a run after an iteration, as a kill does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            raise InterruptedError("stopped")


@pytest.mark.parametrize("amp", ["float32", "bfloat16", "float16"])
def test_resume_in_the_middle_of_both_tasks(make_trainer, device, tmp_path, amp):
    """Twice interrupted, a run ends as the undisturbed one; on a GPU up to its own rounding."""
    options = {"SOLVER.MAX_ITER": 8, "SMALLOBJ.TASK_A.ITERS": 4, "SOLVER.CHECKPOINT_PERIOD": 2}
    options |= {"SMALLOBJ.EVAL_TASK_A": False, **ONLINE, **on(device)}
    if amp != "float32":
        options |= {"SOLVER.AMP.ENABLED": True, "SMALLOBJ.AMP_DTYPE": amp}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(options, folder=whole).train()
    for number, stop in enumerate((2, 6)):  # 0..3 are task A; checkpoints after 1, 3, 5, 7
        trainer = make_trainer(options, folder=parts, resume=number > 0)
        assert trainer.start_iter == 4 * number
        trainer.register_hooks([Stop(stop)])
        with pytest.raises(InterruptedError):
            trainer.train()
        if number == 0:
            trainer = make_trainer(options, folder=parts, resume=True)
            assert trainer.start_iter == 2
            trainer.register_hooks([Stop(4)])
            with pytest.raises(InterruptedError):
                trainer.train()
    trainer = make_trainer(options, folder=parts, resume=True)
    assert trainer.start_iter == 6
    trainer.train()
    ends, begin = [saved(folder) for folder in (whole, parts)], saved(whole, "model_0000001")
    assert ends[0]["ewc"]["anchored"]
    tolerance = 0 if device == "cpu" else 0.02
    for name, value in ends[0]["model"].items():
        moved = (value.float() - begin["model"][name].float()).norm()
        apart = (value.float() - ends[1]["model"][name].float()).norm()
        assert apart <= tolerance * (moved + 1e-6), name
    for name, value in ends[0]["ewc"]["fisher"].items():
        apart = (value - ends[1]["ewc"]["fisher"][name]).norm()
        assert apart <= 2 * tolerance * value.norm(), name  # it is the gradient's square
    if amp == "float16" and device == "cuda":
        assert "grad_scaler" in ends[0]["trainer"]["_trainer"]


class Poisoned:
    """A loader of which one batch has an image of NaN."""

    def __init__(self, loader, iteration):
        self.loader, self.iteration = loader, iteration

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            if number == self.iteration:
                batch[0]["image"] = batch[0]["image"] * math.nan
            yield batch


@pytest.mark.parametrize("amp", [False, True])
def test_a_nan_batch_ends_the_run_and_is_named(make_trainer, device, tmp_path, amp):
    options = {"SMALLOBJ.SPEED.LOSS_PERIOD": 20, "SOLVER.AMP.ENABLED": amp, **ONLINE}
    trainer = make_trainer(on(device), options, folder=tmp_path)
    step = trainer._trainer
    step.replace_data_loader(Poisoned(step.data_loader, 1))
    with pytest.raises(FloatingPointError, match="iteration=1"):
        trainer.train()
    report = json.loads((tmp_path / "nan_batch.json").read_text())
    assert report["iteration"] == 1
    assert [x["stream_position"] for x in report["processes"][0]["step"]["samples"]] == [2, 3]
    assert not (tmp_path / "last_checkpoint").exists()


def test_out_of_memory_is_one_line_and_the_next_run_works(make_trainer, device, monkeypatch):
    original = SizeWeightedCrossEntropy.forward

    def greedy(self, logits, *arguments, **options):
        torch.empty(1 << 60, device=logits.device)
        return original(self, logits, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SizeWeightedCrossEntropy, "forward", greedy)
        with pytest.raises(MemoryError) as caught:
            make_trainer(on(device)).train()
    message = user_message(caught.value)
    assert "lower SOLVER.IMS_PER_BATCH and raise SMALLOBJ.ACCUMULATE" in message
    assert "\n" not in message
    caught = None  # the traceback holds the failed step's tensors
    make_trainer(on(device), {"SOLVER.MAX_ITER": 5}).train()


PROCESS = """
import json, sys
import torch
from torch import distributed as dist
from d2_smallobj.data import register_all
from d2_smallobj.engine import TwoTaskTrainer, build_config
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

job = json.loads(sys.argv[1])
where = {"init_method": f"file://{job['group']}", "rank": job["rank"]}
dist.init_process_group("gloo", world_size=2, **where)
comm.create_local_process_group(2)
register_all(job["root"])
cfg = build_config(job["config"], job["options"])
seed_all_rng(cfg.SEED + comm.get_rank())
trainer = TwoTaskTrainer(cfg)
assert type(trainer._trainer.model).__name__ == "DistributedDataParallel"
trainer.train()
comm.synchronize()
dist.destroy_process_group()
"""


def test_two_processes_on_one_device(make_trainer, demo_root, tiny, device, tmp_path):
    """They talk through gloo and share the GPU; with frozen norms they learn what one does."""
    folder = tmp_path / "two"
    index = "cuda:0" if device == "cuda" else device
    frozen = {
        "MODEL.RESNETS.NORM": "FrozenBN",
        "SOLVER.BASE_LR": 1e-4,
        "SMALLOBJ.EWC.LAMBDA": 1.0,
        **ONLINE,
    }
    options = tiny.as_options(tiny.options, frozen, on(index), {"OUTPUT_DIR": folder})
    job = {"config": tiny.config_file, "options": options, "root": str(demo_root)}
    job["group"] = str(tmp_path / "group")
    search = os.pathsep.join(filter(None, [str(tiny.repository), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps({**job, "rank": rank})],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-3000:]
    make_trainer(frozen, on(device), folder=tmp_path / "one").train()
    rows = [
        next(row for row in reversed(metrics_rows(tmp_path / name)) if "total_loss" in row)
        for name in ("two", "one")
    ]
    for key in ("total_loss", "loss_sem_seg"):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-3)
    assert saved(folder)["ewc"]["anchored"]
