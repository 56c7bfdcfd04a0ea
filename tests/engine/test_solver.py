"""Parameter groups and the poly schedule over two tasks (docs/method.md#recipe)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.engine import build_config
from d2_smallobj.engine.solver import TwoTaskPoly, build_lr_scheduler, build_optimizer
from d2_smallobj.engine.solver import parameter_groups as groups_of
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


FACTORS = {"SMALLOBJ.HEAD_LR_FACTOR": 3.0, "SMALLOBJ.HEAD_BIAS_LR_FACTOR": 5.0}
FACTORS["SMALLOBJ.BIAS_WEIGHT_DECAY"] = 0.25
NORMS = {"MODEL.RESNETS.NORM": "BN", "SOLVER.WEIGHT_DECAY_NORM": 0.125}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"head weights": (0.1, 5e-4, 4), "head biases": (0.2, 0, 4)}),
        (FACTORS, {"head weights": (0.03, 5e-4, 4), "head biases": (0.05, 0.25, 4)}),
        # Weight and bias of the norms of 17 convolutions and 3 shortcuts.
        (NORMS, {"backbone norms": (0.01, 0.125, 40), "head biases": (0.2, 0, 4)}),
    ],
    ids=["recipe", "factors", "norms"],
)
def test_rates_and_decay(make_cfg, options, expected):
    cfg = make_cfg(*(part for pair in options.items() for part in pair))
    groups = by_name(groups_of(cfg, build_model(cfg)))
    found = {n: (g["lr"], g["weight_decay"], len(g["params"])) for n, g in groups.items()}
    assert len(found) == (4 if options is NORMS else 3)
    for name, values in {"backbone weights": (0.01, 5e-4, 20), **expected}.items():
        assert found[name] == pytest.approx(values)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_every_trained_parameter_is_in_exactly_one_group(make_cfg, norm, freeze_at):
    cfg = make_cfg(
        *("MODEL.RESNETS.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", freeze_at),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    )
    model = build_model(cfg)
    grouped = [id(p) for group in groups_of(cfg, model) for p in group["params"]]
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
    groups = by_name(groups_of(make_cfg(), model))
    weights = [model.scale, model.body.weight, model.sem_seg_head_of_old.weight]
    expected = {
        "backbone weights": weights,
        "backbone norms": [p for norm in model.norms for p in norm.parameters()],
        "head biases": [model.sem_seg_head[0].bias],
        "head norms": list(model.sem_seg_head[1].parameters()),
    }
    assert len(expected["backbone norms"]) == 6
    assert groups.keys() == expected.keys()
    for name, members in expected.items():
        assert set(groups[name]["params"]) == set(members)
    assert groups["head norms"]["lr"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no parameter to train: everything is frozen"):
        groups_of(make_cfg(), model.requires_grad_(False))


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
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5)
    cfg = make_cfg(*clip, "SOLVER.WEIGHT_DECAY", 0.0)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    bias = model.sem_seg_head.aspp[0].bias
    torch.testing.assert_close(bias, torch.full_like(bias, -0.5 * 0.2))


# ---- The schedule ------------------------------------------------------------------------------


def poly(max_iter, task_a, **options):
    """The multipliers of a run, and of its end."""
    schedule = TwoTaskPoly(max_iter=max_iter, task_a=task_a, **options)
    return [schedule.at(t) for t in range(max_iter + 1)]


@pytest.mark.parametrize("task_a", [0, 15, 30])
def test_one_poly_over_both_tasks(task_a):
    assert poly(30, task_a) == pytest.approx([(1 - t / 30) ** 0.9 for t in range(31)])
    # One task alone: the plain poly, whatever the kind of schedule.
    assert (poly(30, task_a, separate=True) == poly(30, task_a)) == (task_a != 15)


@pytest.mark.parametrize("power", [0.5, 0.9, 2.0])
def test_separate_schedules_decay_to_0_twice(power):
    found = poly(50, 20, power=power, separate=True)
    assert found[:20] == pytest.approx([(1 - t / 20) ** power for t in range(20)])
    assert found[20:] == pytest.approx([(1 - t / 30) ** power for t in range(31)])


def test_hold_changes_the_rate_every_so_many_iterations():
    """The released code: every 10 iterations."""
    found = poly(100, 50, hold=10)
    assert found == pytest.approx([(1 - t // 10 * 10 / 100) ** 0.9 for t in range(101)])
    # A separate second task counts its steps from its own start.
    found = poly(100, 45, hold=10, separate=True)
    assert found[44] == pytest.approx((1 - 40 / 45) ** 0.9)
    assert found[45] == found[54] == 1
    assert found[55] == pytest.approx((1 - 10 / 55) ** 0.9)


def test_task_factors():
    plain, found = poly(10, 4), poly(10, 4, factors=(2.0, 0.1))
    assert found == pytest.approx([x * (2.0 if t < 4 else 0.1) for t, x in enumerate(plain)])


def test_warm_up():
    plain, found = poly(40, 20), poly(40, 20, warmup_iters=8, warmup_factor=0.25)
    factors = [0.25 * (1 - t / 8) + t / 8 for t in range(8)]
    assert found[:8] == pytest.approx([a * b for a, b in zip(plain, factors)])
    assert found[8:] == plain[8:]


@pytest.mark.parametrize("max_iter", [1, 3, 7, 700, 30000])
def test_the_fraction_finds_its_iteration_again(max_iter):
    """detectron2 calls schedules with iteration / max_iter."""
    schedule = TwoTaskPoly(max_iter=max_iter, task_a=max_iter // 2, separate=True)
    for t in range(0, max_iter + 1, max(1, max_iter // 997)):
        assert schedule(t / max_iter) == schedule.at(t)


def rates_of(cfg, steps, state=None):
    """Rates of the groups in each step, and the state of optimiser and scheduler after them."""
    optimizer = build_optimizer(cfg, build_model(cfg))
    scheduler = build_lr_scheduler(cfg, optimizer)
    if state:
        optimizer.load_state_dict(state[0])
        scheduler.load_state_dict(state[1])
    seen = []
    for _ in range(steps):
        seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    return seen, (optimizer.state_dict(), scheduler.state_dict())


def test_the_scheduler_drives_every_group(make_cfg):
    cfg = make_cfg(
        *("SOLVER.MAX_ITER", 10, "SMALLOBJ.TASK_A.ITERS", 4, "SMALLOBJ.SCHEDULE", "separate"),
        *("SMALLOBJ.POLY_POWER", 2.0, "SMALLOBJ.POLY_HOLD", 2, "SMALLOBJ.TASK_B.LR_FACTOR", 0.5),
        *("SMALLOBJ.TASK_A.LR_FACTOR", 3.0, "SOLVER.WARMUP_ITERS", 2),
        *("SOLVER.WARMUP_FACTOR", 0.5),
    )
    # 4 + 6 iterations, held for 2: (1 - {0, .5})^2 x 3, then (1 - {0, 1/3, 2/3})^2 x 0.5; the
    # first iteration at half the rate, the second at three quarters.
    a = [3 * 0.5, 3 * 0.75, 3 * 0.25, 3 * 0.25]
    b = [0.5] * 2 + [0.5 * 4 / 9] * 2 + [0.5 / 9] * 2
    base = {"backbone weights": 0.01, "head weights": 0.1, "head biases": 0.2}
    for rates, factor in zip(rates_of(cfg, 10)[0], a + b):
        assert rates == pytest.approx({name: rate * factor for name, rate in base.items()})


def test_the_scheduler_resumes(make_cfg):
    cfg = make_cfg("SOLVER.MAX_ITER", 10, "SMALLOBJ.TASK_A.ITERS", 4)
    begun, state = rates_of(cfg, 6)
    # The multiplier itself is part of no checkpoint: a changed config takes effect.
    assert "_multiplier" not in state[1]
    assert begun + rates_of(cfg, 4, state)[0] == rates_of(cfg, 10)[0]
