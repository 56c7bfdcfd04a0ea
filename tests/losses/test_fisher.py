"""Fisher estimates against cases whose Fisher information is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2_smallobj.losses import empirical_fisher
from d2_smallobj.losses.fisher import check_fisher, normalize_min_max_, update_online_


def softmax_regression(bias):
    """A model whose logits are its bias, whatever the input: p = softmax(bias)."""
    model = nn.Linear(1, len(bias))
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.as_tensor(bias))
    return model


def labels_with_frequencies(counts):
    return [label for label, count in enumerate(counts) for _ in range(count)]


def test_bernoulli():
    # p(1) = 3/4; labels in that proportion: F_b = p (1 - p) for the logit b, and x² F_b for the
    # weight on x = 2.
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(math.log(3))

    def loss(label):
        target = torch.tensor([[float(label)]])
        return F.binary_cross_entropy_with_logits(model(torch.tensor([[2.0]])), target)

    batches = labels_with_frequencies([2, 6])
    fisher = empirical_fisher(model, batches, loss, model.named_parameters())
    assert fisher["bias"].item() == pytest.approx(3 / 16)
    assert fisher["weight"].item() == pytest.approx(4 * 3 / 16)


def test_softmax():
    # Probabilities 1/8, 2/8, 5/8, labels in that proportion: F_k = p_k (1 - p_k).
    counts = [1, 2, 5]
    model = softmax_regression([math.log(count) for count in counts])

    def loss(label):
        return F.cross_entropy(model(torch.tensor([[3.0]])), torch.tensor([label]))

    batches = labels_with_frequencies(counts)
    fisher = empirical_fisher(model, batches, loss, model.named_parameters())
    p = torch.tensor(counts) / 8
    torch.testing.assert_close(fisher["bias"], p * (1 - p))
    torch.testing.assert_close(fisher["weight"][:, 0], 9 * p * (1 - p))


def test_the_square_is_taken_image_by_image():
    # Gradients +1 and -1: the mean gradient of the pair is 0, the Fisher is 1.
    model = nn.ParameterList([nn.Parameter(torch.zeros(1))])
    named = model.named_parameters()
    fisher = empirical_fisher(model, [1.0, -1.0], lambda sign: (sign * model[0]).sum(), named)
    assert fisher["0"].item() == 1


def test_does_not_depend_on_how_processes_share_the_images():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    images = [(torch.randn(1, 3), torch.tensor([i % 2])) for i in range(7)]

    def loss(batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    whole = empirical_fisher(model, images, loss, model.named_parameters())
    # The first process's tensors are kept, then added to the second's.
    for divide in (1, 2):
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.clone())
            return tensor

        empirical_fisher(model, images[:2], loss, model.named_parameters(), reduce=keep)

        def add(tensor, kept=kept, divide=divide):
            return (tensor + kept.pop(0)) / divide

        shared = empirical_fisher(model, images[2:], loss, model.named_parameters(), reduce=add)
        for name, tensor in whole.items():
            torch.testing.assert_close(shared[name], tensor)


def test_a_process_without_images_is_fine_as_long_as_another_has_some():
    model = softmax_regression([0.0, 0.0])
    # Names are those of the bare model.
    named = [(f"module.{name}", parameter) for name, parameter in model.named_parameters()]
    fisher = empirical_fisher(model, [], None, named, reduce=lambda tensor: tensor + 2)
    assert set(fisher) == {"weight", "bias"}
    torch.testing.assert_close(fisher["bias"], torch.ones(2))
    with pytest.raises(ValueError, match="batches must hold at least one image, got 0"):
        empirical_fisher(model, [], None, named)


class Net(nn.Module):
    """Everything that a pass in training mode could disturb."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.drop(self.norm(self.conv(x) * self.frozen)).mean((2, 3))


def test_leaves_gradients_modes_and_buffers_as_they_were():
    torch.manual_seed(0)
    model = Net()
    model.conv.eval()
    model.norm.running_mean += 1.5
    model.conv.weight.grad = torch.full_like(model.conv.weight, 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    seen = []

    def loss(image):
        seen.append((model.training, model.norm.training, model.drop.training))
        return F.cross_entropy(model(image), torch.tensor([1]))

    images = [torch.randn(1, 1, 6, 6) for _ in range(3)]
    first = empirical_fisher(model, images, loss, model.named_parameters())
    # The model itself keeps its mode: detectron2's return losses in training mode only.
    assert seen == [(True, False, False)] * 3
    assert [module.training for module in model.modules()] == modes
    assert (model.conv.weight.grad == 7).all()
    assert model.conv.bias.grad is None
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert set(first) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "unused"}
    assert (first["unused"] == 0).all()
    assert first["conv.weight"].shape == model.conv.weight.shape
    # No dropout, no batch statistics: an image's contribution depends on the image alone.
    second = empirical_fisher(model, images[::-1], loss, model.named_parameters())
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor)


def test_modes_come_back_after_an_error():
    model = Net()
    with pytest.raises(KeyError, match="image"):
        empirical_fisher(model, [{}], lambda x: x["image"], model.named_parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, x: model(x), r"loss_fn must return a scalar.*image 0 got \(1, 2\)"),
        (lambda model, x: 1.0, "loss_fn must return a scalar.*image 0 got float"),
        (lambda model, x: model(x).sum().detach(), "image 0 got one that depends on none"),
        (lambda model, x: x.sum(), "image 0 got one that depends on none of them"),
        (lambda model, x: model(x).sum() * math.inf, "of image 0 is not finite, its loss is -?inf"),
    ],
)
def test_bad_losses(loss, message):
    model = nn.Linear(1, 2)
    x = torch.ones(1, 1, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        empirical_fisher(model, [x], lambda x: loss(model, x), model.named_parameters())


def test_online_recursion_by_hand():
    # F0 = 1; α = 0.9, g = 2: 0.9 * 4 + 0.1 = 3.7; then g missing: 0.37; then g = 1: 0.937.
    fisher = [torch.ones(1), torch.ones(2)]
    steady = torch.tensor([1.0, 0.0])
    for gradient, expected in ((2.0, 3.7), (None, 0.37), (1.0, 0.937)):
        gradients = [None if gradient is None else torch.tensor([gradient]), steady]
        assert update_online_(fisher, gradients, alpha=0.9, scale=1.0)
        assert fisher[0].item() == pytest.approx(expected)
    assert fisher[1].tolist() == pytest.approx([1.0, 0.001])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_online_scale_is_taken_out(dtype):
    scaled, plain = [torch.ones(3)], [torch.ones(3)]
    gradient = torch.tensor([0.5, -0.25, 0.0])
    update_online_(scaled, [(gradient * 1024).to(dtype)], alpha=0.5, scale=1024.0)
    update_online_(plain, [gradient], alpha=0.5, scale=1.0)
    torch.testing.assert_close(scaled[0], plain[0])
    assert plain[0].tolist() == [0.625, 0.53125, 0.5]


def test_online_depends_on_the_batch_size_and_its_normalised_form_does_not():
    # Gradients of standard deviation 1, 2, 3: a mean over B images has 1/B of their squares.
    generator = torch.Generator().manual_seed(0)
    per_image = torch.randn(16384, 3, generator=generator) * torch.tensor([1.0, 2.0, 3.0])
    spread, normalised = {}, {}
    for size in (1, 16):
        # One row for every batch: the estimates after one batch each.
        batches = per_image.reshape(-1, size, 3).mean(1)
        fisher = [torch.ones_like(batches)]
        update_online_(fisher, [batches], alpha=0.9, scale=1.0)
        mean = fisher[0].mean(0)
        spread[size] = (mean.max() - mean.min()).item()
        normalize_min_max_([mean])
        normalised[size] = mean
    assert spread[1] / spread[16] == pytest.approx(16, rel=0.2)
    for mean in normalised.values():
        torch.testing.assert_close(mean, torch.tensor([0, 3 / 8, 1]), rtol=0, atol=0.05)


def test_min_max_by_hand_and_per_tensor():
    tensors = [torch.tensor([1.0, 3.0, 2.0]), torch.tensor([[5e3, 1e4]]), torch.full((4,), 0.7)]
    normalize_min_max_(tensors)
    torch.testing.assert_close(tensors[0], torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(tensors[1], torch.tensor([[0.0, 1.0]]))
    assert tensors[2].tolist() == [0, 0, 0, 0]
    # The 1e-8 is part of the definition: a spread of 1e-8 reaches 1/2.
    small = [torch.tensor([0.0, 1e-8])]
    normalize_min_max_(small)
    assert small[0].tolist() == pytest.approx([0, 0.5])


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf")])
def test_check_fisher_names_the_tensor(bad):
    check_fisher({"a": torch.tensor([0.0, 2.0])})
    with pytest.raises(ValueError, match="values of b must be finite and >= 0, got a range"):
        check_fisher({"a": torch.ones(2), "b": torch.tensor([1.0, bad])})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_online_waits_for_nothing_and_keeps_every_bit(dtype, bad):
    """The answer stays on the device; what overflowed leaves no trace in any memory format."""
    torch.manual_seed(0)
    layout = torch.channels_last
    fisher = [torch.rand(4, 3, 3, 3, dtype=dtype).to(memory_format=layout), torch.rand(2)]
    before = [tensor.clone() for tensor in fisher]
    gradients = [torch.randn_like(tensor) for tensor in fisher]
    gradients[1][0] = bad
    moved = update_online_(fisher, gradients, alpha=0.9, scale=65536.0)
    assert moved.dtype == torch.bool
    assert moved.shape == ()
    assert not moved
    for tensor, value in zip(fisher, before):
        assert torch.equal(tensor, value)
    gradients[1][0] = 1.0
    assert update_online_(fisher, gradients, alpha=0.9, scale=1.0)
    for tensor, value, gradient in zip(fisher, before, gradients):
        torch.testing.assert_close(tensor, 0.9 * gradient**2 + 0.1 * value, rtol=1e-6, atol=0)
        assert tensor.stride() == value.stride()
