"""The weighted cross-entropy: identities, limits and hand-computed values, gradients included."""

import functools
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks.train_steps import num_bytes, peak_bytes
from PIL import Image

from d2_smallobj.losses import (
    SizeWeightedCrossEntropy,
    SizeWeights,
    batch_size_weights,
    resize_labels,
    size_balanced,
    size_weighted_cross_entropy,
    size_weights,
)
from d2_smallobj.losses.size_balanced import ResizedCrossEntropySum

LOSS = SizeWeightedCrossEntropy(size_weighted=True)
NAMES = ("resolution", "normalize", "size_weighted", "images_at_once")
OPTIONS = list(itertools.product(["input", "logits"], ["weights", "pixels"], [False, True], [0]))
OPTIONS += [("input", "weights", True, 1), ("input", "pixels", False, 2)]


@pytest.fixture(params=OPTIONS, ids=str)
def loss(request):
    return SizeWeightedCrossEntropy(**dict(zip(NAMES, request.param)))


def random_batch(seed=0, n=2, k=4, size=(13, 17)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, *size, generator=generator, requires_grad=True)
    labels = torch.randint(0, k, (n, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.15] = 255
    return logits, labels


def value_and_gradient(loss, logits):
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def assert_same(loss, reference, logits):
    value, gradient = value_and_gradient(loss, logits)
    expected, expected_gradient = value_and_gradient(reference, logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("normalize", ["weights", "pixels"])
def test_tau_one_and_one_component_per_image_are_cross_entropy(normalize):
    logits, labels = random_batch()
    single = torch.zeros_like(labels)
    single[0, 2:5, 3:9] = 1
    single[1, 6, 6] = 3
    single[1, 0] = 255
    for found, tau in ((labels, 1), (single, 5)):
        loss = SizeWeightedCrossEntropy(
            weights=SizeWeights(tau=tau), normalize=normalize, size_weighted=True
        )
        assert_same(loss(logits, found), F.cross_entropy(logits, found, ignore_index=255), logits)


def test_switched_off_is_cross_entropy_whatever_the_weights():
    logits, labels = random_batch()
    loss = SizeWeightedCrossEntropy()
    assert loss.size_weighted is False
    weights = torch.full(labels.shape, 3.0)
    weights[0] = 0.1
    reference = F.cross_entropy(logits, labels, ignore_index=255)
    assert_same(loss(logits, labels, weights), reference, logits)
    loss.size_weighted = True
    assert not torch.isclose(loss(logits, labels, weights), reference)


def test_hand_computed_values_and_gradients():
    # Two classes, probabilities of the true class 1/2, 1/4, 1/2; weights 1, 3, 5; one ignored.
    # nll: ln 2, 2 ln 2, ln 2. Σ w nll = (1 + 6 + 5) ln 2 = 12 ln 2; Σ w = 9; 3 valid pixels.
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, 0.0], [1.0, -4.0]])
    logits = logits.T.reshape(1, 2, 2, 2).clone().requires_grad_()
    labels = torch.tensor([[[1, 0], [0, 255]]])
    weights = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    for normalize, divisor in (("weights", 9), ("pixels", 3)):
        loss = size_weighted_cross_entropy(logits, labels, weights, normalize=normalize)
        assert loss.item() == pytest.approx(12 * math.log(2) / divisor)
        # d nll / d logit = p - onehot, times w / divisor.
        _, gradient = value_and_gradient(loss, logits)
        expected = torch.tensor([[1 * 0.5, 3 * -0.75, 5 * -0.5, 0.0]]) / divisor
        torch.testing.assert_close(gradient[0, 0].reshape(1, 4), expected)
        torch.testing.assert_close(gradient[0, 1], -gradient[0, 0])


@pytest.mark.parametrize("normalize", ["weights", "pixels"])
def test_against_a_loop_over_pixels(normalize):
    logits, labels = random_batch(3, n=3)
    loss = SizeWeightedCrossEntropy(normalize=normalize, size_weighted=True)(logits, labels)
    numerator = denominator = 0.0
    for image_logits, label_map in zip(logits.detach().double(), labels):
        weights = size_weights(label_map.numpy())
        log_p = image_logits.log_softmax(0)
        for (y, x), label in np.ndenumerate(label_map.numpy()):
            if label != 255:
                numerator -= float(weights[y, x]) * log_p[label, y, x].item()
                denominator += float(weights[y, x]) if normalize == "weights" else 1.0
    assert loss.item() == pytest.approx(numerator / denominator, rel=1e-6)


def test_weights_normalization_ignores_their_scale_and_pixels_does_not():
    logits, labels = random_batch()
    weights = batch_size_weights(labels, SizeWeights())
    one = size_weighted_cross_entropy(logits, labels, weights)
    torch.testing.assert_close(size_weighted_cross_entropy(logits, labels, 4 * weights), one)
    one = size_weighted_cross_entropy(logits, labels, weights, normalize="pixels")
    four = size_weighted_cross_entropy(logits, labels, 4 * weights, normalize="pixels")
    torch.testing.assert_close(four, 4 * one)


def test_ignored_pixels_change_nothing(loss):
    logits, labels = random_batch()
    value, gradient = value_and_gradient(loss(logits, labels), logits)
    ignored = (labels == 255)[:, None].expand_as(logits)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).all()
    with torch.no_grad():
        changed = torch.where(ignored, logits * -7 + 3, logits)
    torch.testing.assert_close(loss(changed, labels), value)
    # Weight maps that a caller forgot to clear on ignored pixels do no harm.
    weights = batch_size_weights(labels, SizeWeights())
    weights[labels == 255] = 9.0
    torch.testing.assert_close(loss(logits, labels, weights).detach(), value)


@pytest.mark.parametrize("global_divisor", [False, True])
def test_all_ignored_batch_is_zero_with_zero_gradient(loss, global_divisor):
    logits, labels = random_batch()
    expected = loss(logits, labels)
    loss.global_divisor = global_divisor
    assert loss(logits, labels) == expected, "one process divides by its own"
    value, gradient = value_and_gradient(loss(logits, torch.full_like(labels, 255)), logits)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_go_to_float32_first_under_autocast_too(loss, dtype):
    _, labels = random_batch()
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(9)) * 30
    logits = logits.to(dtype)
    expected = loss(logits.float(), labels)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            got = loss(logits, labels)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_input_resolution_upsamples_the_logits_and_uses_the_given_weights():
    _, labels = random_batch()
    logits = torch.randn(2, 4, 4, 5, requires_grad=True)
    weights = torch.rand(labels.shape) + 0.5
    loss = SizeWeightedCrossEntropy(size_weighted=True)
    full = F.interpolate(logits, (13, 17), mode="bilinear", align_corners=False)
    expected = size_weighted_cross_entropy(full, labels, weights)
    assert_same(loss(logits, labels, weights), expected, logits)
    # Without maps they are made from the labels: the same as making them beforehand.
    made = torch.stack([torch.from_numpy(size_weights(label.numpy())) for label in labels])
    assert_same(loss(logits, labels), loss(logits, labels, made), logits)


@pytest.mark.parametrize("size_weighted", [False, True])
@pytest.mark.parametrize("normalize", ["weights", "pixels"])
@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_some_images_at_once_are_all_up_to_rounding(images, normalize, size_weighted):
    """Also where the last images are fewer, the loss is scaled, and the logits are the larger."""
    _, labels = random_batch(n=3)
    options = {"normalize": normalize, "size_weighted": size_weighted}
    all_at_once, some = (SizeWeightedCrossEntropy(**options, images_at_once=n) for n in (0, images))
    for size in ((4, 5), (20, 9)):
        logits = torch.randn(3, 4, *size, requires_grad=True)
        assert_same(1024 * some(logits, labels), 1024 * all_at_once(logits, labels), logits)
        with torch.no_grad():
            torch.testing.assert_close(some(logits, labels), all_at_once(logits, labels))
        half = logits.detach().bfloat16().requires_grad_()
        assert_same(some(half, labels), all_at_once(half, labels), half)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_some_images_at_once_against_differences(weighted):
    """In double precision, against finite differences; a second derivative is refused."""
    _, labels = random_batch(n=3, k=3, size=(7, 6))
    weights = torch.rand(labels.shape, dtype=torch.double) * (labels != 255) if weighted else None
    logits = torch.randn(3, 3, 3, 2, dtype=torch.double, requires_grad=True)

    def function(x):
        return ResizedCrossEntropySum.apply(x, labels, weights, 255, 2)

    assert torch.autograd.gradcheck(function, logits)
    (gradient,) = torch.autograd.grad(function(logits), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


def test_memory_of_some_images_at_once():
    """What lives from forward to backward, and the peak, in copies of the upsampled logits."""
    logits = torch.randn(8, 21, 8, 8, requires_grad=True)
    labels = torch.randint(0, 21, (8, 64, 64))
    copy = 4 * 8 * 21 * 64 * 64
    kept, peak = {}, {}
    for images in (0, 1):
        loss, saved = SizeWeightedCrossEntropy(images_at_once=images), []

        def pack(x, saved=saved):
            saved.append(weakref.ref(x))
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            result = loss(logits, labels)
        kept[images] = num_bytes(x for x in (ref() for ref in saved) if x is not None) / copy
        del result
        work = functools.partial(lambda loss: loss(logits, labels).backward(), loss)
        peak[images] = peak_bytes(work, torch.device("cpu")) / copy
    assert kept[0] > 1
    assert kept[1] < 1.1 / 64  # the logits' own size, once
    assert peak[0] > 3
    assert peak[1] < 4 / 8


def test_logits_resolution_resizes_the_labels_and_weighs_them_anew(monkeypatch):
    _, labels = random_batch(size=(26, 34))
    logits = torch.randn(2, 4, 4, 5, requires_grad=True)
    loss = SizeWeightedCrossEntropy(resolution="logits", size_weighted=True)
    small = F.interpolate(labels[:, None].float(), (4, 5), mode="nearest-exact")[:, 0].long()
    weights = torch.stack([torch.from_numpy(size_weights(label.numpy())) for label in small])
    for given in (None, weights):
        expected = size_weighted_cross_entropy(logits, small, weights)
        assert_same(loss(logits, labels, given), expected, logits)
    monkeypatch.setattr(size_balanced, "batch_size_weights", None)
    torch.testing.assert_close(loss(logits, labels, weights), expected)


def test_small_objects_vanish_at_logit_resolution_only():
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[0, 9:12, 9:12] = 1
    labels[0, 32:64, 32:64] = 2
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    for resolution in ("input", "logits"):
        loss = SizeWeightedCrossEntropy(resolution=resolution, size_weighted=True)
        _, gradient = value_and_gradient(loss(logits, labels), logits)
        # At logit resolution no pixel asks for class 1.
        assert (gradient[:, 1].min() < 0) == (resolution == "input")


@pytest.mark.parametrize("size", [41, 21, 31])
def test_resize_agrees_with_pil_and_torch_at_the_recipes_sizes(size):
    # Column numbers as labels show which source pixel was taken.
    source = np.arange(321, dtype=np.float32)[None].repeat(321, 0)
    pil = np.asarray(Image.fromarray(source).resize((size, size), resample=Image.NEAREST))
    labels = torch.from_numpy(source)[None]
    exact = F.interpolate(labels[:, None], (size, size), mode="nearest-exact")[0, 0]
    got = resize_labels(labels.long(), (size, size))
    assert got.dtype == torch.int64
    np.testing.assert_array_equal(got[0].numpy(), pil)
    np.testing.assert_array_equal(got[0].numpy(), exact.numpy())
    transposed = resize_labels(labels.long().transpose(1, 2), (size, size))
    np.testing.assert_array_equal(transposed[0].numpy(), pil.T)


def test_resize_takes_the_pixel_under_the_centre():
    labels = torch.arange(6).reshape(1, 1, 6)
    # 6 to 4: centres at 0.75, 2.25, 3.75, 5.25. 6 to 3: at 1, 3, 5, on the border: the right one.
    assert resize_labels(labels, (1, 4)).tolist() == [[[0, 2, 3, 5]]]
    assert resize_labels(labels, (1, 3)).tolist() == [[[1, 3, 5]]]
    assert resize_labels(labels, (2, 6)).tolist() == [[[0, 1, 2, 3, 4, 5]] * 2]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("images_at_once", -1, "images_at_once must be >= 0, got -1"),
        ("resolution", "inputs", "resolution.*inputs.*did you mean 'input'"),
        ("normalize", "pixel", "normalize.*pixel.*did you mean 'pixels'"),
        ("ignore_label", 0, "ignore_label must not be 0"),
        ("weights", SizeWeights(ignore_label=254), "must be the loss's ignore_label 255, got 254"),
    ],
)
def test_bad_options(option, value, message):
    with pytest.raises(ValueError, match=message):
        SizeWeightedCrossEntropy(**{option: value})


@pytest.mark.parametrize("value", [-1, 4, 254])
@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_labels_out_of_range_are_named(value, resolution):
    logits, labels = random_batch()
    # A pixel that resizing would drop still counts.
    labels[1, 0, 0] = value
    loss = SizeWeightedCrossEntropy(resolution=resolution)
    message = rf"labels must be 0\.\.3 or the ignore label 255, got {value};"
    with pytest.raises(ValueError, match=message):
        loss(logits[:, :, :4, :4], labels)


ONES = torch.ones(2, 4, 4)
PLAIN = size_weighted_cross_entropy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: LOSS(x.long(), y), r"logits must be floating point.*torch.int64"),
        (lambda x, y: LOSS(x[0], y), r"logits must be .*\(N, K, h, w\).*\(4, 13, 17\)"),
        (lambda x, y: LOSS(x, y.byte()), r"labels must be int64 of shape \(2, H, W\), got .*uint8"),
        (lambda x, y: LOSS(x, y[:1]), r"labels must be int64.*shape \(1, 13, 17\)"),
        (lambda x, y: LOSS(x, y, ONES), r"weights must have.*\(2, 13, 17\), got \(2, 4, 4\)"),
        (lambda x, y: PLAIN(x, y, ONES), r"weights must have.*\(2, 13, 17\), got \(2, 4, 4\)"),
        (lambda x, y: PLAIN(x[:, :, :5, :5], y), r"one size, got \(5, 5\) and \(13, 17\)"),
        (lambda x, y: PLAIN(x, y, normalize="sum"), "normalize: unknown value 'sum'"),
    ],
)
def test_bad_tensors(call, message):
    logits, labels = random_batch()
    with pytest.raises(ValueError, match=message):
        call(logits.detach(), labels)


def test_the_mean_of_shares_is_the_loss_of_all(monkeypatch, loss):
    """As processes do it: each its own images, the divisor averaged over all, in double precision.

    2^24 + 1 pixels are not 2^24 in float32.
    """
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 6, 8, requires_grad=True)
    labels = torch.randint(0, 3, (4, 12, 16))
    labels[1, 3:] = 255
    labels[2] = 255  # the second share
    labels[3] = 255
    whole = loss(logits, labels)
    (expected,) = torch.autograd.grad(whole, logits)
    seen = []
    loss.global_divisor = True
    monkeypatch.setattr(
        size_balanced, "mean_over_processes", lambda divisor: seen.append(divisor) or divisor
    )
    shares = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    for share in shares:
        loss(*share)
    mean = torch.stack(seen).mean()
    assert seen[0] > seen[1] == 0
    assert seen[0].dtype == torch.float64
    monkeypatch.setattr(size_balanced, "mean_over_processes", lambda divisor: mean)
    together = sum(loss(*share) for share in shares) / 2
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(torch.autograd.grad(together, logits)[0], expected)
