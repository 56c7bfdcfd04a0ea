"""Gradient clipping and schedules."""

import pytest
import torch
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

from detectron2.solver import LRMultiplier
from detectron2.solver.build import maybe_add_gradient_clipping


@pytest.mark.parametrize(("kind", "expected"), [("value", [0.5, -0.5]), ("norm", [0.3, -0.4])])
def test_gradients_are_clipped_per_parameter(toy_cfg, kind, expected):
    toy_cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE=kind, CLIP_VALUE=0.5)
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = maybe_add_gradient_clipping(toy_cfg, torch.optim.SGD)([first, second], lr=1.0)
    assert isinstance(optimizer, torch.optim.SGD)
    first.grad, second.grad = torch.tensor([3.0, -4.0]), torch.tensor([0.0, 0.1])
    optimizer.step()
    torch.testing.assert_close(first.data, -torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(second.data, torch.tensor([0.0, -0.1]))


def test_lr_multiplier_scales_every_group():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 10.0)]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    scheduler = LRMultiplier(optimizer, PolynomialDecayParamScheduler(1.0, 0.9), max_iter=10)
    for i in range(10):
        rate = (1 - i / 10) ** 0.9
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([rate, 10 * rate])
        optimizer.step()
        scheduler.step()
    assert set(scheduler.state_dict()) == {"base_lrs", "last_epoch"}
