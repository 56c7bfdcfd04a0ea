"""Gradient clipping and schedules."""

from __future__ import annotations

import pytest
import torch
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

from detectron2.solver import LRMultiplier
from detectron2.solver.build import maybe_add_gradient_clipping


@pytest.mark.parametrize(("kind", "expected"), [("value", [0.5, -0.5]), ("norm", [0.3, -0.4])])
def test_gradients_are_clipped_per_parameter(toy_cfg, kind, expected):
    toy_cfg.merge_from_list(
        ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
         "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5]
    )  # fmt: skip
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = maybe_add_gradient_clipping(toy_cfg, torch.optim.SGD)([first, second], lr=1.0)
    assert isinstance(optimizer, torch.optim.SGD)
    first.grad, second.grad = torch.tensor([3.0, -4.0]), torch.tensor([0.0, 0.1])
    optimizer.step()
    torch.testing.assert_close(first.data, -torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(second.data, torch.tensor([0.0, -0.1]))


def rates(scheduler, optimizer, n):
    out = []
    for _ in range(n):
        out.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return out


def test_lr_multiplier_scales_every_group():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 10.0)]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    scheduler = LRMultiplier(optimizer, PolynomialDecayParamScheduler(1.0, 0.9), max_iter=10)
    for i, (low, high) in enumerate(rates(scheduler, optimizer, 10)):
        assert low == pytest.approx((1 - i / 10) ** 0.9)
        assert high == pytest.approx(10 * low)
    assert set(scheduler.state_dict()) == {"base_lrs", "last_epoch"}
