"""Losses, size weights, label uncertainty and EWC on a GPU against the CPU.

Tolerances: sums over some thousand float32 terms in another order differ by a few units of 2^-24
each, so 1e-5; gradients of half-precision logits are rounded to their 8 or 11 bits at the end, so
one unit of 2^-8 or 2^-10 of the largest value. What is counted or compared (weights, labels,
whether a gradient is finite) must be equal.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from d2_smallobj.losses import (
    ElasticWeightConsolidation,
    SizeWeightedCrossEntropy,
    SizeWeights,
    batch_size_weights,
    resize_labels,
)
from d2_smallobj.losses.fisher import empirical_fisher
from d2_smallobj.losses.uncertainty import UncertaintyCrossEntropy

pytestmark = pytest.mark.gpu
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
CLASSES, SIZE = 5, (33, 41)


def label_maps(count=3):
    """Blocks of classes, some pixels ignored, one image with nothing valid."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, CLASSES, (count, 7, 9), generator=generator)
    labels = blocks.repeat_interleave(5, 1).repeat_interleave(5, 2)[:, : SIZE[0], : SIZE[1]]
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.1, 255)
    labels[-1] = 255
    return labels


def assert_near(found, expected, tolerance):
    """Compare a device's tensor to within a share of the expected one's largest value."""
    found, expected = found.detach().cpu().float(), expected.detach().float()
    error = (found - expected).abs().max()
    assert error <= tolerance * expected.abs().max(), f"{error:g} of {expected.abs().max():g}"


def value_and_gradients(loss, device, tensors, **options):
    """The loss of copies of ``tensors`` on a device, and the gradients of those that are float."""
    moved = [x.to(device, copy=True).requires_grad_(x.is_floating_point()) for x in tensors]
    value = loss(*moved, **{name: x.to(device) for name, x in options.items()})
    return [value, *torch.autograd.grad(value, [x for x in moved if x.requires_grad])]


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_cross_entropy(device, resolution, weighted, dtype, images):
    options = {"resolution": resolution, "size_weighted": weighted, "images_at_once": images}
    loss = SizeWeightedCrossEntropy(**options)
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(3, CLASSES, 9, 11, generator=generator)).to(dtype)
    tensors = (logits, label_maps())
    expected = value_and_gradients(loss, "cpu", tensors)
    with torch.autocast(device, torch.bfloat16, enabled=dtype is not torch.float32):
        found = value_and_gradients(loss, device, tensors)
    assert found[0].dtype is torch.float32
    assert found[0].device.type == device
    assert_near(found[0], expected[0], 1e-5)
    assert_near(found[1], expected[1], ROUNDING[dtype])
    assert expected[1].abs().max() > 0


def test_nothing_valid_is_zero(device):
    loss = SizeWeightedCrossEntropy(size_weighted=True)
    tensors = (torch.randn(1, CLASSES, 9, 11), label_maps()[-1:])
    value, gradient = value_and_gradients(loss, device, tensors)
    assert value.item() == gradient.abs().max().item() == 0


@pytest.mark.parametrize("total", ["foreground", "class"])
def test_size_weights_are_equal(device, total):
    rule, labels = SizeWeights(total=total), label_maps()
    assert torch.equal(
        batch_size_weights(labels.to(device), rule).cpu(), batch_size_weights(labels, rule)
    )
    small = resize_labels(labels.to(device), (9, 11))
    assert torch.equal(small.cpu(), resize_labels(labels, (9, 11)))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("bootstrapping", [False, True])
@pytest.mark.parametrize("form", ["per_class", "object"])
def test_label_uncertainty(device, form, bootstrapping, dtype):
    loss = UncertaintyCrossEntropy(form=form, threshold=0.7, min_object=0.2, size_weighted=True)
    loss.bootstrapping = bootstrapping
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(3, CLASSES, 9, 11, generator=generator)).to(dtype)
    spreads = CLASSES if form == "per_class" else 1
    raw = torch.randn(3, spreads, 9, 11, generator=generator).to(dtype)
    labels = label_maps()
    boxes = torch.zeros_like(labels)
    boxes[:, 3:20, 4:30] = 1
    boxes[:, 10:25, 20:38] = 2

    def function(logits, labels, raw, doubtable):
        return loss(logits, labels, sigma_raw=raw, doubtable=doubtable)

    tensors = (logits, labels, raw)
    expected = value_and_gradients(function, "cpu", tensors, doubtable=boxes)
    found = value_and_gradients(function, device, tensors, doubtable=boxes)
    assert_near(found[0], expected[0], 1e-4)
    for ours, theirs in zip(found[1:], expected[1:]):
        assert_near(ours, theirs, max(ROUNDING[dtype], 1e-4))
    # Labels are chosen by comparisons, which rounding decides at ties only: there is none here.
    moved = [x.to(device) for x in (logits, labels, raw, boxes)]
    here, there = (loss.aligned(*some) for some in (moved, (logits, labels, raw, boxes)))
    for ours, theirs in zip(loss.bootstrap(*here), loss.bootstrap(*there)):
        assert torch.equal(ours.cpu(), theirs)


def make_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    return net.train(), [torch.randn(1, 3, 12, 12) for _ in range(4)]


def consolidate(device, estimator, step):
    """Both tasks of a small net: Fisher, anchor, and two penalised steps."""
    net, images = make_net()
    net, images = net.to(device), [x.to(device) for x in images]
    ewc = ElasticWeightConsolidation(net.named_parameters(), fisher=estimator, strength=3.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, fused=True)

    def loss(image):
        return net(image).square().mean()

    if estimator == "empirical":
        ewc.set_fisher(empirical_fisher(net, images, loss, net.named_parameters()))
    for image in images:
        optimizer.zero_grad()
        loss(image).backward()
        if estimator == "online":
            assert ewc.record_gradients()
        optimizer.step()
    fisher = {name: x.clone() for name, x in ewc.fisher.items()}
    ewc.anchor()
    penalties = []
    for image in images[:3]:
        optimizer.zero_grad()
        loss(image).backward()
        penalties.append(ewc.penalty() if step == "proximal" else ewc.add_gradient_())
        optimizer.step()
        if step == "proximal":
            ewc.proximal_step_(ewc.learning_rates(optimizer))
    ewc.check_stability(optimizer)
    return net, fisher, ewc, torch.stack(penalties)


@pytest.mark.parametrize("step", ["gradient", "proximal"])
@pytest.mark.parametrize("estimator", ["online", "empirical"])
def test_ewc(device, estimator, step):
    """Seven steps of a net with BatchNorm magnify rounding: 1e-3."""
    net, fisher, ewc, penalties = consolidate(device, estimator, step)
    there, expected, other, values = consolidate("cpu", estimator, step)
    for name, x in expected.items():
        assert_near(fisher[name], x, 1e-3)
        assert_near(ewc.fisher[name], other.fisher[name], 1e-3)
    for ours, theirs in zip(net.parameters(), there.parameters()):
        assert_near(ours, theirs, 1e-3)
    assert values[0] == penalties[0] == 0 < values[1]
    assert_near(penalties, values, 1e-2)
    other.load_state_dict(copy.deepcopy(ewc.state_dict()))  # a run goes on on another device
    assert torch.equal(other.fisher["0.weight"], ewc.fisher["0.weight"].cpu())


def test_an_overflow_leaves_the_fisher(device):
    net, images = make_net()
    net = net.to(device)
    ewc = ElasticWeightConsolidation(net.named_parameters())
    net(images[0].to(device)).sum().backward()
    net[0].weight.grad[0, 0, 0, 0] = float("inf")
    assert not ewc.record_gradients()
    assert all((x == 1).all() for x in ewc.fisher.values())
