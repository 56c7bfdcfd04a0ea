"""Parameter groups and the poly schedule over two tasks (docs/method.md#recipe)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.engine import build_config
from d2_smallobj.engine.solver import (
    TwoTaskPoly,
    build_lr_scheduler,
    build_optimizer,
    parameter_groups,
)
from detectron2.modeling import build_model


@pytest.fixture(scope="module")
def make_cfg(repository):
    def make(*options):
        narrow = (
            *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18"),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", "4", "MODEL.RESNETS.RES2_OUT_CHANNELS", "4"),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "SOLVER.BASE_LR", "0.01"),
        )
        path = repository / "configs/Base-DeepLabV2-R101.yaml"
        return build_config(str(path), [*narrow, *map(str, options)])

    return make


def by_name(groups):
    named = {group["name"]: group for group in groups}
    assert len(named) == len(groups)
    return named


# ---- Parameter groups --------------------------------------------------------------------------


def test_rates_and_decay_of_the_recipe(make_cfg):
    cfg = make_cfg()
    groups = by_name(parameter_groups(cfg, build_model(cfg)))
    assert {
        name: (group["lr"], group["weight_decay"], len(group["params"]))
        for name, group in groups.items()
    } == {
        "backbone weights": (0.01, 5e-4, 20),
        "head weights": (pytest.approx(0.1), 5e-4, 4),
        "head biases": (pytest.approx(0.2), 0.0, 4),
    }


def test_trained_norms_and_other_factors(make_cfg):
    cfg = make_cfg(
        *("MODEL.RESNETS.NORM", "BN", "SOLVER.WEIGHT_DECAY_NORM", "0.125"),
        *("SMALLOBJ.HEAD_LR_FACTOR", "3.0", "SMALLOBJ.HEAD_BIAS_LR_FACTOR", "5.0"),
        *("SMALLOBJ.BIAS_WEIGHT_DECAY", "0.25"),
    )
    groups = by_name(parameter_groups(cfg, build_model(cfg)))
    assert (groups["head weights"]["lr"], groups["head biases"]["lr"]) == (
        pytest.approx(0.03),
        pytest.approx(0.05),
    )
    assert groups["head biases"]["weight_decay"] == 0.25
    # Weight and bias of the norms of 17 convolutions and 3 shortcuts.
    assert len(groups["backbone norms"]["params"]) == 2 * 20
    assert groups["backbone norms"]["weight_decay"] == 0.125
    assert groups["backbone norms"]["lr"] == 0.01


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_every_trained_parameter_is_in_exactly_one_group(make_cfg, norm, freeze_at):
    cfg = make_cfg(
        *("MODEL.RESNETS.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", freeze_at),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    )
    model = build_model(cfg)
    grouped = [id(p) for group in parameter_groups(cfg, model) for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trained)
    assert (len(trained) < len(list(model.parameters()))) == (freeze_at > 0)


class Toy(nn.Module):
    """A head beside other parts, with a shared weight and every kind of norm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.norms = nn.ModuleList([nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3)])
        self.norms.append(nn.InstanceNorm1d(3, affine=True))
        self.sem_seg_head = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.sem_seg_head_of_old = nn.Linear(3, 3, bias=False)


def test_what_belongs_to_the_head(make_cfg):
    model = Toy()
    model.sem_seg_head[0].weight = model.body.weight  # shared: the first owner's rate
    model.body.bias.requires_grad_(False)
    groups = by_name(parameter_groups(make_cfg(), model))
    members = {name: {id(p) for p in group["params"]} for name, group in groups.items()}
    norms = [p for norm in model.norms for p in norm.parameters()]
    assert len(norms) == 6
    assert members == {
        "backbone weights": {
            id(model.scale),
            id(model.body.weight),
            id(model.sem_seg_head_of_old.weight),
        },
        "backbone norms": {id(p) for p in norms},
        "head biases": {id(model.sem_seg_head[0].bias)},
        "head norms": {id(p) for p in model.sem_seg_head[1].parameters()},
    }
    assert groups["head norms"]["lr"] == pytest.approx(0.1)


def test_nothing_to_train(make_cfg):
    model = Toy().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train: everything is frozen"):
        parameter_groups(make_cfg(), model)


def test_optimizer(make_cfg):
    cfg = make_cfg("SOLVER.MOMENTUM", 0.8, "SOLVER.NESTEROV", True)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.8] * 3
    assert all(group["nesterov"] for group in optimizer.param_groups)
    # Zero gradients: decay alone moves the weights, and nothing moves the biases.
    nn.init.ones_(model.sem_seg_head.aspp[0].bias)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.testing.assert_close(p, before[name], rtol=0, atol=0)
        else:
            rate = 0.1 if "sem_seg_head" in name else 0.01
            expected = before[name] * (1 - rate * 5e-4 * 1.8)  # Nesterov: g + momentum * g
            torch.testing.assert_close(p, expected)


def test_gradient_clipping_is_detectron2s(make_cfg):
    cfg = make_cfg(
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5),
        *("SOLVER.WEIGHT_DECAY", 0.0),
    )
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    bias = model.sem_seg_head.aspp[0].bias
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    torch.testing.assert_close(bias, torch.full_like(bias, -0.5 * 0.2))


# ---- The schedule ------------------------------------------------------------------------------


def test_one_poly_over_both_tasks():
    schedule = TwoTaskPoly(max_iter=30, task_a=15)
    for t in range(31):
        assert schedule.at(t) == pytest.approx((1 - t / 30) ** 0.9)
    assert (schedule.at(0), schedule.at(30)) == (1, 0)


def test_the_joint_schedule_has_no_reset_at_the_switch():
    values = [TwoTaskPoly(max_iter=40, task_a=a).at(t) for a in (0, 20, 40) for t in range(41)]
    assert values[:41] == values[41:82] == values[82:]
    steps = [a - b for a, b in zip(values[:40], values[1:41])]
    assert all(step > 0 for step in steps)
    assert steps[19] == pytest.approx(steps[18], rel=0.01)


@pytest.mark.parametrize("power", [0.5, 0.9, 2.0])
def test_separate_schedules_decay_to_0_twice(power):
    schedule = TwoTaskPoly(max_iter=50, task_a=20, power=power, separate=True)
    for t in range(20):
        assert schedule.at(t) == pytest.approx((1 - t / 20) ** power)
    for t in range(20, 51):
        assert schedule.at(t) == pytest.approx((1 - (t - 20) / 30) ** power)
    assert schedule.at(20) == 1


def test_hold_changes_the_rate_every_so_many_iterations():
    """The released code: every 10 iterations."""
    schedule = TwoTaskPoly(max_iter=100, task_a=50, hold=10)
    for t in range(100):
        assert schedule.at(t) == pytest.approx((1 - t // 10 * 10 / 100) ** 0.9)
    assert len({schedule.at(t) for t in range(100)}) == 10
    # A separate second task counts its steps from its own start.
    schedule = TwoTaskPoly(max_iter=100, task_a=45, hold=10, separate=True)
    assert schedule.at(44) == pytest.approx((1 - 40 / 45) ** 0.9)
    assert schedule.at(45) == schedule.at(54) == 1
    assert schedule.at(55) == pytest.approx((1 - 10 / 55) ** 0.9)


def test_task_factors():
    plain = TwoTaskPoly(max_iter=10, task_a=4)
    schedule = TwoTaskPoly(max_iter=10, task_a=4, factors=(2.0, 0.1))
    for t in range(10):
        assert schedule.at(t) == pytest.approx(plain.at(t) * (2.0 if t < 4 else 0.1))


def test_warm_up():
    plain = TwoTaskPoly(max_iter=40, task_a=20)
    schedule = TwoTaskPoly(max_iter=40, task_a=20, warmup_iters=8, warmup_factor=0.25)
    assert schedule.at(0) == 0.25
    assert schedule.at(4) == pytest.approx(plain.at(4) * 0.625)
    assert schedule.at(7) == pytest.approx(plain.at(7) * (0.25 * 1 / 8 + 7 / 8))
    assert [schedule.at(t) for t in range(8, 41)] == [plain.at(t) for t in range(8, 41)]


@pytest.mark.parametrize(("task_a", "separate"), [(0, True), (9, True), (9, False), (0, False)])
def test_one_task_alone(task_a, separate):
    """Task B from the start, or no task B: the plain poly, whatever the kind of schedule."""
    schedule = TwoTaskPoly(max_iter=9, task_a=task_a, separate=separate)
    for t in range(9):
        assert schedule.at(t) == pytest.approx((1 - t / 9) ** 0.9)
    assert schedule.at(9) == 0


@pytest.mark.parametrize("max_iter", [1, 3, 7, 700, 30000])
def test_the_fraction_finds_its_iteration_again(max_iter):
    """detectron2 calls schedules with iteration / max_iter."""
    schedule = TwoTaskPoly(max_iter=max_iter, task_a=max_iter // 2, separate=True)
    for t in range(0, max_iter + 1, max(1, max_iter // 997)):
        assert schedule(t / max_iter) == schedule.at(t)


def test_the_scheduler_drives_every_group(make_cfg):
    cfg = make_cfg(
        *("SOLVER.MAX_ITER", 10, "SMALLOBJ.TASK_A.ITERS", 4, "SMALLOBJ.SCHEDULE", "separate"),
        *("SMALLOBJ.POLY_POWER", 2.0, "SMALLOBJ.POLY_HOLD", 2, "SMALLOBJ.TASK_B.LR_FACTOR", 0.5),
        *("SMALLOBJ.TASK_A.LR_FACTOR", 3.0, "SOLVER.WARMUP_ITERS", 2),
        *("SOLVER.WARMUP_FACTOR", 0.5),
    )
    optimizer = build_optimizer(cfg, build_model(cfg))
    scheduler = build_lr_scheduler(cfg, optimizer)
    # 4 + 6 iterations, held for 2: (1 - {0, .5})^2 x 3, then (1 - {0, 1/3, 2/3})^2 x 0.5; the
    # first iteration at half the rate, the second at three quarters.
    a = [3 * 0.5, 3 * 0.75, 3 * 0.25, 3 * 0.25]
    b = [0.5] * 2 + [0.5 * 4 / 9] * 2 + [0.5 / 9] * 2
    seen = []
    for _ in range(10):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    names = [group["name"] for group in optimizer.param_groups]
    base = [{"backbone weights": 0.01, "head weights": 0.1, "head biases": 0.2}[n] for n in names]
    for rates, factor in zip(seen, a + b):
        assert rates == pytest.approx([rate * factor for rate in base])


def test_the_scheduler_resumes(make_cfg):
    cfg = make_cfg("SOLVER.MAX_ITER", 10, "SMALLOBJ.TASK_A.ITERS", 4)
    rates = []
    for stop in (10, 6):
        optimizer = build_optimizer(cfg, build_model(cfg))
        scheduler = build_lr_scheduler(cfg, optimizer)
        for _ in range(stop):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    state = optimizer.state_dict(), scheduler.state_dict()
    optimizer = build_optimizer(cfg, build_model(cfg))
    scheduler = build_lr_scheduler(cfg, optimizer)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[10:] == rates[:10]
    # The multiplier itself is part of no checkpoint: a changed config takes effect.
    assert "_multiplier" not in scheduler.state_dict()
