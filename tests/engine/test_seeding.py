"""Random numbers of an iteration: the same whatever ran before, others in every iteration."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from d2_smallobj.engine import TwoTaskTrainer
from d2_smallobj.engine.hooks import IterationSeed, iteration_seed


def trainer_at(iteration):
    return SimpleNamespace(iter=iteration, _trainer=SimpleNamespace(_data_loader_iter=None))


def test_seeds_differ():
    arguments = list(itertools.product(range(3), range(4), range(200)))
    seeds = {iteration_seed(*each) for each in arguments}
    assert len(seeds) == len(arguments)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [0, 5])
def test_an_iteration_draws_the_same_again(seed):
    hook = IterationSeed(seed)
    draws = []
    for iteration in (3, 4, 3):
        hook.trainer = trainer_at(iteration)
        hook.before_step()
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_a_negative_seed_seeds_nothing():
    hook = IterationSeed(-1)
    hook.trainer = trainer_at(0)
    before = torch.get_rng_state()
    hook.before_step()
    assert torch.equal(torch.get_rng_state(), before)


class WithDropout(TwoTaskTrainer):
    """Every step drops other features."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.sem_seg_head.aspp[0] = nn.Sequential(nn.Dropout2d(0.5), model.sem_seg_head.aspp[0])
        return model


def test_dropout_resumes_to_the_bit(make_trainer, tiny, tmp_path, assert_same):
    folder = tmp_path / "run"
    make_trainer(tiny.ONLINE, folder=folder, cls=WithDropout).train()
    reference = torch.load(folder / "model_final.pth", weights_only=True)
    for name in ("model_0000002", "model_0000005"):
        (folder / "last_checkpoint").write_text(f"{name}.pth")
        make_trainer(tiny.ONLINE, folder=folder, cls=WithDropout, resume=True).train()
        assert_same(torch.load(folder / "model_final.pth", weights_only=True), reference)
