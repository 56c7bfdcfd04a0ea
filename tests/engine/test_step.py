"""One optimiser step: mixed precision, gradient scaling, accumulation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny_runs import ONLINE, as_options
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from d2_smallobj.engine import build_config
from d2_smallobj.engine.loss_log import LossLog
from d2_smallobj.engine.solver import clipping
from d2_smallobj.engine.step import TaskStepTrainer
from d2_smallobj.engine.trainer import amp_dtype
from d2_smallobj.losses import size_balanced
from d2_smallobj.losses.ewc import ElasticWeightConsolidation
from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from detectron2.utils.events import EventStorage

needs_scaler = pytest.mark.skipif(
    not hasattr(torch.amp, "GradScaler"), reason="this torch scales gradients on GPUs only"
)
AMP = {"SOLVER.AMP.ENABLED": True}


class Regression(nn.Module):
    """A linear model with detectron2's contract: batch in, dict of losses out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)

    def forward(self, batch):
        inputs, targets = (torch.stack(part) for part in zip(*batch))
        return {"loss": ((self.linear(inputs) - targets) ** 2).mean()}


def samples(count, size=1.0):
    generator = torch.Generator().manual_seed(1)
    return [
        (size * torch.randn(3, generator=generator), torch.randn(2, generator=generator))
        for _ in range(count)
    ]


def trainer_of(batches, *, estimator="online", scale=None, anchored=False, **options):
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ewc = ElasticWeightConsolidation(model.named_parameters(), strength=0.5, fisher=estimator)
    step = TaskStepTrainer(model, itertools.cycle(batches), optimizer, ewc=ewc, **options)
    if scale is not None:
        step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    if anchored:
        for parameter in model.parameters():
            parameter.grad = torch.arange(1.0, 1 + parameter.numel()).view_as(parameter)
        ewc.record_gradients()
        ewc.anchor()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.25)
        step.in_task_b = True
    return step


def run(step, steps=1):
    with EventStorage() as storage:
        for step.iter in range(steps):
            storage.iter = step.iter
            step.run_step()
    return storage


def parameters(step):
    return [p.detach().clone() for p in step.model.parameters()]


def assert_same_steps(*steppers):
    """Parameters, gradients and Fisher information of two trainers are equal up to rounding."""
    a, b = ([*step.model.parameters()] for step in steppers)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close([p.grad for p in a], [p.grad for p in b])
    torch.testing.assert_close(*(dict(step.ewc.fisher) for step in steppers))


@needs_scaler
@pytest.mark.parametrize("anchored", [False, True])
def test_fisher_and_penalty_use_unscaled_gradients(anchored):
    batches = [samples(4)]
    plain, scaled = (trainer_of(batches, scale=s, anchored=anchored) for s in (None, 1024.0))
    logs = [run(step, 2).histories() for step in (scaled, plain)]
    assert_same_steps(scaled, plain)
    assert not any(torch.equal(f, torch.ones_like(f)) for f in plain.ewc.fisher.values())
    if anchored:
        penalties = [log["loss_ewc"].values() for log in logs]
        assert penalties[0][0] == penalties[1][0]
        assert penalties[0][0][0] > 0


def fuse(step, fused):
    step.optimizer = torch.optim.SGD(step.model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    return step


@needs_scaler
@pytest.mark.parametrize("fused", [True, False])
def test_overflow_skips_the_step_and_leaves_the_fisher(fused):
    step = fuse(trainer_of([samples(4, size=1e3)], scale=2.0**126, loss_log=LossLog(100)), fused)
    before = parameters(step), {n: f.clone() for n, f in step.ewc.fisher.items()}
    run(step)
    assert step.grad_scaler.get_scale() == 2.0**125
    assert all(map(torch.equal, parameters(step), before[0]))
    assert all(torch.equal(value, before[1][name]) for name, value in step.ewc.fisher.items())
    step.grad_scaler.update(new_scale=2.0**60)
    run(step)
    assert not torch.equal(parameters(step)[0], before[0][0])
    assert all(torch.isfinite(f).all() for f in step.ewc.fisher.values())


@needs_scaler
def test_loss_scale_is_part_of_the_state():
    step = trainer_of([samples(4)], scale=512.0)
    step.iter = 0
    other = trainer_of([samples(4)], scale=1.0)
    other.load_state_dict(step.state_dict())
    assert other.grad_scaler.get_scale() == 512.0
    unscaled = trainer_of([samples(4)])
    unscaled.iter = 0
    assert "grad_scaler" not in unscaled.state_dict()
    unscaled.load_state_dict(step.state_dict())


@pytest.mark.parametrize("anchored", [False, True])
def test_accumulated_batches_are_one_large_batch(anchored):
    """The penalty is added once a step, not once a pass."""
    data = samples(8)
    twice = [data[:2], data[2:4], data[4:6], data[6:]]
    twice = trainer_of(twice, accumulate=2, anchored=anchored)
    once = trainer_of([data[:4], data[4:]], anchored=anchored)
    logged = [run(step, 2).history("total_loss").latest() for step in (twice, once)]
    assert_same_steps(twice, once)
    assert logged[0] == pytest.approx(logged[1])


def test_evaluation_mode_and_a_loss_that_is_not_finite_are_refused():
    step = trainer_of([[(torch.full((3,), math.inf), torch.zeros(2))]])
    with pytest.raises(FloatingPointError, match="iteration=0"):
        run(step)
    step.model.eval()
    with pytest.raises(RuntimeError, match="left in evaluation mode"):
        run(step)


@pytest.mark.parametrize("estimator", ["online", "empirical"])
def test_bfloat16_trains_both_tasks(make_trainer, monkeypatch, estimator):
    types = []
    original = SizeWeightedCrossEntropy.forward

    def forward(self, logits, *arguments):
        types.append((self.size_weighted, logits.dtype))
        return original(self, logits, *arguments)

    monkeypatch.setattr(SizeWeightedCrossEntropy, "forward", forward)
    trainer = make_trainer({**AMP, "SMALLOBJ.EWC.FISHER": estimator})
    trainer.train()
    assert {(False, torch.bfloat16), (True, torch.bfloat16)} <= set(types)
    # The Fisher information of single images is taken in full precision.
    assert types.count((False, torch.float32)) == (4 if estimator == "empirical" else 0)
    values = [value for value, _ in trainer.storage.history("loss_ewc").values()]
    assert values[0] == 0 < values[1]
    assert math.isfinite(values[-1])
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_number_formats(make_config):
    assert amp_dtype(make_config()) is None
    cfg = make_config(AMP).clone()
    assert amp_dtype(cfg) is torch.bfloat16
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    assert amp_dtype(cfg) is torch.float16
    cfg.SMALLOBJ.AMP_DTYPE = "bfloat16"
    assert amp_dtype(cfg) is torch.bfloat16


# ---- Clipping ----------------------------------------------------------------------------------

CLIPS = ("value", "norm", "full_model")


def clipped_by_hand(gradients, kind, limit):
    """Gradients of parameters after clipping, written out."""
    if kind == "value":
        return [g.clamp(-limit, limit) for g in gradients]
    norms = [g.norm() for g in gradients]
    if kind == "full_model":
        norms = [torch.stack(norms).norm()] * len(norms)
    return [g * min(1.0, limit / norm) for g, norm in zip(gradients, norms)]


def clipping_trainer(kind, limit, **options):
    step = trainer_of([samples(2), samples(4)[2:]], accumulate=2, **options)
    key = "SOLVER.CLIP_GRADIENTS"
    given = {f"{key}.ENABLED": True, f"{key}.CLIP_TYPE": kind, f"{key}.CLIP_VALUE": limit}
    cfg = build_config("", as_options(given))
    step.optimizer = clipping(cfg, torch.optim.SGD)(step.model.parameters(), lr=0.1, fused=True)
    return step


@pytest.mark.parametrize("scale", [None, pytest.param(1024.0, marks=needs_scaler)])
@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("task", ["A", "B, gradient", "B, proximal"])
def test_clipping_in_both_tasks(kind, task, scale):
    """Clipped is the unscaled mean gradient: with the penalty's if that is a gradient, too.

    The Fisher information and a proximal step are of what has not been clipped.
    """
    limit, proximal = 0.3, task == "B, proximal"
    options = {"anchored": task != "A", "proximal": proximal}
    step = clipping_trainer(kind, limit, scale=scale, **options)
    twin = trainer_of([samples(4)], **options)
    before = parameters(twin)
    twin.optimizer.zero_grad()
    twin.model(samples(4))["loss"].backward()
    raw = [p.grad.clone() for p in twin.model.parameters()]
    if task == "A":
        twin.ewc.record_gradients()
    elif not proximal:
        twin.ewc.add_gradient_()
    gradients = clipped_by_hand([p.grad for p in twin.model.parameters()], kind, limit)
    assert not any(map(torch.allclose, gradients, raw))
    with torch.no_grad():
        for p, value, gradient in zip(twin.model.parameters(), before, gradients):
            p.copy_(value - 0.1 * gradient)
    if proximal:
        twin.ewc.proximal_step_(dict.fromkeys(twin.ewc.names, 0.1))
    run(step)
    torch.testing.assert_close(parameters(step), parameters(twin))
    torch.testing.assert_close(dict(step.ewc.fisher), dict(twin.ewc.fisher))


@needs_scaler
@pytest.mark.parametrize("kind", CLIPS)
def test_clipping_waits_for_nothing_and_an_overflow_is_still_skipped(kind):
    step = clipping_trainer(kind, 0.3, loss_log=LossLog(100))
    assert reads_of(step) == 0
    before = parameters(step)
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    step.model.linear.weight.register_hook(lambda gradient: gradient * 1e30)
    run(step)
    assert step.grad_scaler.get_scale() == 2.0**126
    assert all(map(torch.equal, parameters(step), before))


@pytest.mark.parametrize(
    ("kind", "limit", "told"),
    [
        ("norms", 1.0, r"CLIP_GRADIENTS\.CLIP_TYPE: unknown value 'norms'.*did you mean 'norm'"),
        ("full_model", 0.0, r"CLIP_GRADIENTS\.CLIP_VALUE must be > 0, got 0\.0"),
        ("value", -1.0, r"CLIP_GRADIENTS\.CLIP_VALUE must be > 0, got -1\.0"),
    ],
)
def test_refused_clipping(kind, limit, told):
    with pytest.raises(ValueError, match=told):
        clipping_trainer(kind, limit)


# ---- Waiting for the device --------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts values that are read as numbers: each would let the host wait for a GPU.

    Not integers: detectron2 pads images by sizes in tensors, which are on the CPU.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.count += arguments[0].dtype != torch.int64
        return function(*arguments, **(options or {}))


def reads_of(step):
    """Reads in a step that is not the first."""
    run(step)
    with EventStorage(), Reads() as reads:
        step.run_step()
    return reads.count


@pytest.mark.parametrize("estimator", ["online", "empirical"])
@pytest.mark.parametrize("proximal", [False, True])
def test_no_step_reads_a_value(estimator, proximal):
    """Task A with the Fisher information recorded, and task B with either step of the penalty."""
    batches = [samples(4)]
    options = {"loss_log": LossLog(100), "accumulate": 2, "amp_dtype": torch.bfloat16}
    assert reads_of(trainer_of(batches, estimator=estimator, **options)) == 0
    penalised = trainer_of(batches, anchored=True, proximal=proximal, **options)
    assert reads_of(penalised) == 0
    assert penalised.ewc.penalty() > 0


@needs_scaler
@pytest.mark.parametrize("fused", [True, False])
def test_loss_scaling_reads_unless_the_optimiser_is_fused(fused):
    step = fuse(trainer_of([samples(4)], scale=1024.0, loss_log=LossLog(100)), fused)
    assert (reads_of(step) == 0) == fused


@needs_scaler
def test_overflow_without_end_is_a_fault():
    """Steps that are left out one after the other, until the scale has gone."""
    step = trainer_of([samples(4, size=1e3)], scale=2.0**-23)
    for parameter in step.model.parameters():
        parameter.register_hook(lambda gradient: gradient * math.inf)
    told = r"overflow in every step up to iteration=1 .*fallen to 2\.98.*bfloat16"
    with pytest.raises(FloatingPointError, match=told):
        run(step, 2)


def test_a_size_balanced_step_of_the_real_net_reads_nothing(make_trainer, monkeypatch):
    """Losses at the logits' resolution included, whose weights come from the loader too."""
    monkeypatch.setattr(size_balanced, "batch_size_weights", None)
    released = {"SMALLOBJ.LOSS_RESOLUTION": "logits", "SMALLOBJ.MSC.ENABLED": True}
    for options in ({}, released):
        trainer = make_trainer(ONLINE, options, {"SMALLOBJ.SPEED.LOSS_PERIOD": 100})
        counts = []
        original = trainer._trainer.run_step

        def counted(original=original, counts=counts):
            with Reads() as reads:
                original()
            counts.append(reads.count)

        trainer._trainer.run_step = counted
        trainer.train()
        assert counts == [0] * 8
