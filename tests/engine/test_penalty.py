"""The EWC penalty inside the real trainer: when it acts, and what it adds to the gradients."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from d2_smallobj.engine import TwoTaskTrainer
from d2_smallobj.engine.solver import build_optimizer
from d2_smallobj.engine.tasks import build_ewc

LAMBDA = 1.0


def history(trainer, name):
    """``{iteration: value}`` of a logged scalar."""
    return {int(step): value for value, step in trainer.storage.history(name).values()}


def one_step(trainer):
    """Run the next iteration only, at the rate that the whole run has there."""
    trainer.max_iter = trainer.start_iter + 1
    trainer.train()
    return trainer


@pytest.fixture
def in_task_b(make_trainer, tiny, tmp_path):
    """Function: a trainer that resumes two steps into task B, and the checkpoint it read."""
    base = tmp_path / "base"
    gradient = {**tiny.ONLINE, "SMALLOBJ.EWC.LAMBDA": LAMBDA, "SOLVER.CHECKPOINT_PERIOD": 1}
    make_trainer(gradient, folder=base).train()
    (base / "last_checkpoint").write_text("model_0000005.pth")

    def resume(name, *overrides):
        folder = tmp_path / name
        shutil.copytree(base, folder)
        trainer = make_trainer(gradient, *overrides, folder=folder, resume=True)
        assert trainer.start_iter == 6
        return trainer, torch.load(folder / "model_0000005.pth", weights_only=True)

    return resume


@pytest.mark.parametrize("step", ["gradient", "proximal"])
@pytest.mark.parametrize("estimator", ["online", "empirical"])
def test_penalty_is_zero_at_the_switch_and_grows(make_trainer, estimator, step):
    trainer = make_trainer({"SMALLOBJ.EWC.FISHER": estimator, "SMALLOBJ.EWC.STEP": step})
    trainer.train()
    values = history(trainer, "loss_ewc")
    assert list(values) == [4, 5, 6, 7]
    assert values[4] == 0
    assert 0 < values[5] < values[6] < values[7]
    totals, losses = history(trainer, "total_loss"), history(trainer, "loss_sem_seg")
    assert totals[6] == pytest.approx(losses[6] + values[6])


def test_gradient_is_that_of_autograd(in_task_b):
    penalised, saved = in_task_b("with")
    plain, _ = in_task_b("without", {"SMALLOBJ.EWC.LAMBDA": 0.0})
    with_, without = (one_step(trainer).model for trainer in (penalised, plain))
    fisher, anchor = saved["ewc"]["fisher"], saved["ewc"]["anchor"]
    largest = 0.0
    for (name, a), b in zip(with_.named_parameters(), without.parameters()):
        theta = saved["model"][name].clone().requires_grad_()
        (LAMBDA * (fisher[name] * (theta - anchor[name]) ** 2).sum()).backward()
        torch.testing.assert_close(a.grad - b.grad, theta.grad, rtol=1e-3, atol=1e-7)
        largest = max(largest, theta.grad.abs().max().item())
    assert largest > 1e-4


def test_proximal_step_follows_the_optimisers_own(in_task_b):
    proximal, saved = in_task_b("with", {"SMALLOBJ.EWC.STEP": "proximal"})
    plain, _ = in_task_b("without", {"SMALLOBJ.EWC.LAMBDA": 0.0})
    rates = proximal._trainer.ewc.learning_rates(proximal.optimizer)
    assert len(set(rates.values())) > 1
    with_, without = (one_step(trainer).model for trainer in (proximal, plain))
    moved = 0.0
    for (name, a), b in zip(with_.named_parameters(), without.parameters()):
        pull = 2 * LAMBDA * rates[name] * saved["ewc"]["fisher"][name]
        expected = (b + pull * saved["ewc"]["anchor"][name]) / (1 + pull)
        torch.testing.assert_close(a, expected, rtol=1e-5, atol=1e-7)
        moved = max(moved, (a - b).abs().max().item())
    assert moved > 1e-5


def test_matched_parameters_are_counted_in_the_log(make_trainer, log):
    trainer = make_trainer()
    trainer.train()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    weights = sum(p.numel() for p in trained)
    assert f"EWC matched {len(trained)} parameter tensors ({weights:,} weights)" in log.text


def test_frozen_parameters_are_left_out(make_trainer):
    trainer = make_trainer({"MODEL.BACKBONE.FREEZE_AT": 1})
    names = trainer._trainer.ewc.names
    assert set(names) == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert not any("stem" in name for name in names)
    assert any("stem" in name for name, _ in trainer.model.named_parameters())


def test_no_trained_parameter_is_an_error(make_trainer):
    class Frozen(TwoTaskTrainer):
        @classmethod
        def build_model(cls, cfg):
            return super().build_model(cfg).requires_grad_(False)

    with pytest.raises(ValueError, match="no parameter to train: everything is frozen"):
        make_trainer(cls=Frozen)


def test_no_match_is_an_error(make_config):
    """The released code's mistake: names that fit nothing. Here it cannot pass unseen."""
    cfg = make_config()
    model = TwoTaskTrainer.build_model(cfg)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds no parameter that requires a gradient"):
        build_ewc(cfg, model, other)


def test_names_do_not_depend_on_wrapping(make_config):
    cfg = make_config()
    model = TwoTaskTrainer.build_model(cfg)
    wrapped = nn.Module()
    wrapped.module = model
    bare = build_ewc(cfg, model, build_optimizer(cfg, model))
    inside = build_ewc(cfg, wrapped, build_optimizer(cfg, model))
    assert bare.names == inside.names
    inside.load_state_dict(bare.state_dict())
