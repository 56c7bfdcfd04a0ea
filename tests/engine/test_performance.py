"""The node SMALLOBJ.SPEED: other ways to compute, the same results."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from d2_smallobj.engine import TwoTaskTrainer, solver
from d2_smallobj.engine.solver import (
    FoldedConv2d,
    build_optimizer,
    fold_frozen_norms,
    memory_format,
    same_implementation,
)
from d2_smallobj.losses import ElasticWeightConsolidation, ewc_penalty
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.utils.env import seed_all_rng

FROZEN = {"MODEL.RESNETS.NORM": "FrozenBN"}
PLAIN = {"SMALLOBJ.SPEED.FOLD_FROZEN_BN": False}
CHANNELS_LAST = {"SMALLOBJ.SPEED.MEMORY_FORMAT": "channels_last"}


def randomise(model):
    """Frozen norms that do something."""
    generator = torch.Generator().manual_seed(3)
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            for name in ("weight", "running_var"):
                getattr(norm, name).uniform_(0.5, 1.5, generator=generator)
            for name in ("bias", "running_mean"):
                getattr(norm, name).normal_(0, 0.1, generator=generator)


def double_batch(count=2, side=40):
    generator = torch.Generator().manual_seed(1)
    images = [255 * torch.rand(3, side, side, generator=generator).double() for _ in range(count)]
    labels = [torch.randint(0, 7, (side, side), generator=generator) for _ in range(count)]
    return [{"image": x, "sem_seg": y} for x, y in zip(images, labels)]


def losses_and_gradients(model, data):
    model.zero_grad()
    loss = sum(model(data).values())
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def build(make_config):
    """Function: the tiny model with frozen norms, in double precision, after preparation."""

    def make(*overrides):
        cfg = make_config(FROZEN, *overrides)
        seed_all_rng(0)
        model = TwoTaskTrainer.build_model(cfg).double().train()
        randomise(model)
        return cfg, model

    return make


@pytest.mark.parametrize(
    "options", [{}, CHANNELS_LAST, {**PLAIN, **CHANNELS_LAST}], ids=["folded", "both", "last"]
)
def test_loss_and_gradients_are_those_of_the_plain_net(build, options):
    """In double precision, where rounding cannot hide a difference."""
    data = double_batch()
    expected = losses_and_gradients(build(PLAIN)[1], data)
    found = losses_and_gradients(build(options)[1], data)
    # The loss is taken in float32 whatever the net computes in.
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-9, msg=name)


def test_folding_changes_neither_names_nor_values(build, assert_same):
    folded, plain = build()[1], build(PLAIN)[1]
    convolutions = [m for m in folded.modules() if isinstance(m, Conv2d)]
    assert sum(isinstance(m, FoldedConv2d) for m in convolutions) == len(convolutions) > 3
    assert not any(isinstance(m, FoldedConv2d) for m in plain.modules())
    assert_same(dict(folded.state_dict()), dict(plain.state_dict()))
    # It follows weights that are loaded later.
    data = double_batch()
    with torch.no_grad():
        for value in plain.state_dict().values():
            value.mul_(1.1)
        folded.load_state_dict(plain.state_dict())
        found, expected = (model.eval()(data)[0]["sem_seg"] for model in (folded, plain))
    torch.testing.assert_close(found, expected)


def test_folded_bias_and_activation():
    """detectron2's convolution may have both; the norm comes between them."""
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(4)
    model = nn.Sequential(Conv2d(3, 4, 3, padding=1, stride=2, bias=True, norm=norm)).double()
    model[0].activation = torch.tanh
    randomise(model)
    x = torch.randn(2, 3, 9, 9, dtype=torch.double)
    expected = torch.tanh(norm(nn.Conv2d.forward(model[0], x)))
    assert fold_frozen_norms(model) == 1
    torch.testing.assert_close(model(x), expected)
    assert fold_frozen_norms(model) == 0
    others = nn.Sequential(Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4)), Conv2d(4, 4, 3), nn.ReLU())
    assert fold_frozen_norms(others) == 0
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)


def test_memory_format(make_config):
    assert memory_format(make_config()) is torch.contiguous_format
    assert memory_format(make_config(CHANNELS_LAST)) is torch.channels_last
    cfg = make_config({"SOLVER.AMP.ENABLED": True}).clone()
    assert memory_format(cfg) is torch.contiguous_format
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda:1"
    assert memory_format(cfg) is torch.channels_last
    cfg.SOLVER.AMP.ENABLED = False
    assert memory_format(cfg) is torch.contiguous_format


def test_fused_sgd_takes_the_steps_of_the_plain_loop(build, monkeypatch):
    """Momentum, decay and every group's own rate included; an old torch has no fused SGD."""
    models = []
    for fused in (True, False):
        cfg, model = build()
        with monkeypatch.context() as patch:
            if not fused:
                without = inspect.signature(lambda params, lr: None)
                patch.setattr(solver.inspect, "signature", lambda _, s=without: s)
            optimizer = build_optimizer(cfg, model)
        assert optimizer.defaults["fused"] is (True if fused else None)
        assert optimizer.defaults["foreach"] is (None if fused else False)
        for step in range(3):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * number + step)
            optimizer.step()
        models.append(model)
    found, expected = ([*model.parameters()] for model in models)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_does_not_decide_how_to_compute():
    """Saved on a GPU, channels-last and fused; resumed otherwise."""

    def make(**kind):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(4, 3, 3, 3))
        return parameter, torch.optim.SGD([parameter], lr=0.1, momentum=0.9, **kind)

    parameter, saved = make(fused=True)
    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    parameter.grad = torch.randn_like(parameter)
    saved.step()
    other, resumed = make(foreach=True)
    with same_implementation(resumed):
        resumed.load_state_dict(saved.state_dict())
    group = resumed.param_groups[0]
    assert (group["foreach"], group["fused"]) == (True, None)
    momentum = resumed.state[other]["momentum_buffer"]
    assert momentum.stride() == other.stride() != parameter.stride()
    assert torch.equal(momentum, saved.state[parameter]["momentum_buffer"])


def test_resumed_penalty_has_the_parameters_memory_format():
    """PyTorch handles lists of tensors one by one where strides differ."""
    torch.manual_seed(0)
    saved, loaded = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    ewc, other = (
        ElasticWeightConsolidation(x.named_parameters(), fisher="empirical")
        for x in (saved, loaded)
    )
    ewc.set_fisher({name: torch.rand_like(p) for name, p in saved.named_parameters()})
    ewc.anchor()
    other.load_state_dict(ewc.state_dict())
    for name, parameter in loaded.named_parameters():
        for part in ("fisher", "anchor_values"):
            state = getattr(other, part)[name]
            assert state.stride() == parameter.stride()
            assert torch.equal(state, getattr(ewc, part)[name])
    loaded.load_state_dict(saved.state_dict())
    assert other.penalty().item() == other.add_gradient_().item() == 0
    with torch.no_grad():
        for model in (saved, loaded):
            model.weight.add_(0.1)
    torch.testing.assert_close(other.penalty(), ewc.penalty())


def test_a_run_with_every_option(make_trainer):
    """Both tasks; what is saved loads into the plain net, and training ends where it does."""
    options = {**FROZEN, "SOLVER.BASE_LR": 1e-4, "SMALLOBJ.EWC.FISHER": "online"}
    ends = []
    periods = {"SMALLOBJ.SPEED.LOSS_PERIOD": 3, "SMALLOBJ.SPEED.LOSS_IMAGES": 1}
    for speed in (PLAIN, {**CHANNELS_LAST, **periods}):
        trainer = make_trainer(options, speed)
        trainer.train()
        ends.append((trainer.model.state_dict(), trainer._trainer.ewc.fisher))
    torch.testing.assert_close(*(list(map(dict, end)) for end in ends), rtol=1e-3, atol=1e-4)


# ---- torch.compile ------------------------------------------------------------------------------


def consolidate(compiled):
    """Fisher, an overflow, anchor and penalty of a net; all that the compiled passes do."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(
        memory_format=torch.channels_last
    )
    ewc = ElasticWeightConsolidation(net.named_parameters(), compiled=compiled, strength=3.0)
    images, found = torch.randn(2, 3, 9, 9), []
    for infinite in (False, False, True):
        net.zero_grad()
        net(images).square().mean().backward()
        if infinite:
            net[0].weight.grad[0, 0, 0, 0] = float("inf")
        else:
            net[0].bias.grad = None  # counts as zero
        found.append(ewc.record_gradients(scale=2.0).item())
    fisher = {name: value.clone() for name, value in ewc.fisher.items()}
    ewc.anchor()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    net.zero_grad()
    net(images).square().mean().backward()
    net[1].bias.grad = None
    penalties = [ewc.penalty(), ewc.add_gradient_(scale=2.0)]
    return found, fisher, penalties, [p.grad for p in net.parameters()]


@pytest.fixture(params=["as written", pytest.param("inductor", marks=pytest.mark.slow)])
def compiler(request, monkeypatch):
    """Passes as Python runs them; and compiled, which takes a minute."""
    ewc_penalty.compiled_pass.cache_clear()
    if request.param == "as written":
        monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    elif not solver.can_compile("cpu"):
        pytest.skip("no C++ compiler")
    yield request.param
    ewc_penalty.compiled_pass.cache_clear()


def test_compiled_passes_are_the_passes(compiler):
    found, expected = (consolidate(compiled) for compiled in (True, False))
    assert found[0] == expected[0] == [True, True, False]
    torch.testing.assert_close(found[1:], expected[1:])


def test_compiled_training(make_trainer, compiler):
    """Both tasks and an evaluation, with MSC's several logit maps."""
    keys = {"SMALLOBJ.SPEED.COMPILE": "default", "SMALLOBJ.SPEED.COMPILE_EWC": True}
    msc = {"SMALLOBJ.MSC.ENABLED": True, "SMALLOBJ.EWC.FISHER": "online", "SOLVER.MAX_ITER": 6}
    # Rounding grows at a high rate and where BatchNorm learns.
    msc |= {**FROZEN, "SOLVER.BASE_LR": 1e-4}
    ends = []
    for speed in ({}, keys):
        trainer = make_trainer(msc, speed)
        compiled = trainer.model._compiled
        assert (compiled is not None) == trainer._trainer.ewc.compiled == bool(speed)
        assert not any("orig_mod" in name for name in trainer.model.state_dict())
        trainer.train()
        ends.append((dict(trainer.model.state_dict()), trainer._trainer.ewc.fisher))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "missing", "told"),
    [
        ({"COMPILE": "default"}, True, r"COMPILE needs a C\+\+ compiler .* leave the key out"),
        ({"COMPILE_EWC": True}, True, r"COMPILE_EWC needs a C\+\+ compiler"),
        ({"COMPILE": "default"}, False, "COMPILE default needs MODEL.META_ARCHITECTURE SizeBal"),
    ],
)
def test_what_compiling_needs(make_config, monkeypatch, keys, missing, told):
    monkeypatch.setattr(solver.shutil, "which", lambda name: None if missing else name)
    cfg = make_config({f"SMALLOBJ.SPEED.{key}": value for key, value in keys.items()})
    with pytest.raises(ValueError, match=told):
        solver.compile_step(cfg, nn.Linear(1, 1))
    solver.compile_step(make_config(), nn.Linear(1, 1))
    assert solver.can_compile("cpu") is not missing
