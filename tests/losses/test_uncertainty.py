"""Doubting labels: identities, limits and hand-computed values, gradients included."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.losses.size_weights import SizeWeights, size_weights
from d2_smallobj.losses.uncertainty import (
    SIGMA_FORMS,
    UncertaintyCrossEntropy,
    all_logits,
    sigma_offset,
    soften,
)

NONE = -300.0
"""A raw spread whose softplus is 0 in float32."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def raw_of(sigma):
    """The number whose softplus is sigma."""
    return torch.as_tensor(sigma).expm1().log()


def random_batch(seed=0, classes=4, size=(6, 7), form="per_class", ignored=0.15):
    """Logits, raw spreads, labels and a mask of box labels."""
    generator = torch.Generator().manual_seed(seed)
    channels = 1 if classes == 2 else classes
    logits = torch.randn(2, channels, *size, generator=generator) * 2
    spreads = channels if form == "per_class" else 1
    raw = torch.randn(2, spreads, *size, generator=generator)
    labels = torch.randint(0, classes, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    inside = torch.rand(labels.shape, generator=generator) < 0.5
    return logits.requires_grad_(), raw.requires_grad_(), labels, inside


def doubted(logits, raw, labels, inside, size_weights=None, *, bootstrapping=False, **options):
    """The loss of a batch."""
    loss = UncertaintyCrossEntropy(**options)
    loss.bootstrapping = bootstrapping
    return loss(logits, labels, size_weights, sigma_raw=raw, doubtable=inside)


def row(mu, sigma, label=1):
    """One row of pixels inside a box, each with the logits in a column of ``mu``."""
    logits = torch.tensor(mu).reshape(1, len(mu), 1, -1)
    pixels = logits.shape[-1]
    raw = raw_of(torch.full((1, 1, 1, pixels), sigma))
    labels = torch.full((1, 1, pixels), label)
    return logits.requires_grad_(), raw.requires_grad_(), labels, labels > -1


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


def plain(logits, labels):
    """Cross-entropy by torch: binary with one logit."""
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, labels, ignore_index=255)
    valid = labels != 255
    return F.binary_cross_entropy_with_logits(logits[:, 0][valid], labels[valid].float())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("form", SIGMA_FORMS)
def test_sigma_0_or_a_certain_label_is_the_plain_cross_entropy(classes, form):
    logits, raw, labels, inside = random_batch(classes=classes, form=form)
    expected = plain(logits, labels)
    expected_gradient = gradients(expected, logits)
    zero, certain = torch.full_like(raw, NONE).detach(), torch.zeros_like(inside)
    for sigma_raw, uncertain in ((zero, inside), (raw, certain)):
        value = doubted(logits, sigma_raw, labels, uncertain, form=form)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, logits), expected_gradient)
    assert not gradients(doubted(logits, raw, labels, certain, form=form), raw)[0].any()


@pytest.mark.parametrize("form", SIGMA_FORMS)
@pytest.mark.parametrize(("classes", "limit"), [(2, math.log(2)), (4, math.log(4))])
def test_without_end_sigma_leaves_the_logarithm_of_the_number_of_classes(form, classes, limit):
    logits, raw, labels, inside = random_batch(classes=classes, form=form)
    endless = torch.full_like(raw, 1e30).detach()
    value = doubted(logits, endless, labels, torch.ones_like(inside), form=form)
    if form == "object" and classes > 2:
        # log 2, and for objects the cross-entropy among their classes.
        found = (labels > 0) & (labels != 255)
        of_class = logits[:, 1:].log_softmax(1)
        nll = -of_class.gather(1, torch.where(found, labels - 1, 0)[:, None])[:, 0]
        limit = math.log(2) + (nll * found).sum().item() / (labels != 255).sum().item()
    assert gradients(value, logits)[0].abs().max() < 1e-20
    assert value.item() == pytest.approx(limit, rel=1e-6)


def test_the_cross_entropy_has_an_object_part_and_a_class_part():
    """Logits 2 of background, 1 and -1 of two classes, label the first, sigma 3 (see below)."""
    logits, *rest = row([2.0, 1.0, -1.0], 3.0)
    value = doubted(logits, *rest, form="object")
    root = math.sqrt(1 + 9 * math.pi / 8)
    any_object = math.log(math.exp(1) + math.exp(-1))
    divided = (any_object - 2) / root
    assert value.item() == pytest.approx(math.log1p(math.exp(-divided)) + any_object - 1, rel=1e-6)
    # d/d mu of the first part is (sigmoid - 1) / root times the object's softmax q, of the second
    # q - onehot, both divided by the root.
    q = np.exp([1, -1]) / np.exp([1, -1]).sum()
    missing = (1 / (1 + math.exp(-divided)) - 1) / root
    expected = [-missing, missing * q[0] + (q[0] - 1) / root, missing * q[1] + q[1] / root]
    gradient = gradients(value, logits)[0].flatten().tolist()
    assert gradient == pytest.approx(expected, rel=1e-5)


def test_the_class_does_not_make_sigma_grow():
    """An object for certain, of the wrong class: sigma shrinks, if anything."""
    logits, raw, *rest = row([-4.0, -3.0, 5.0], math.log(2))
    assert gradients(doubted(logits, raw, *rest, form="object"), raw)[0].item() > 0


def test_forms_of_a_binary_task_are_one():
    values = [doubted(*random_batch(classes=2), form=form) for form in SIGMA_FORMS]
    torch.testing.assert_close(values[1], values[0])


def test_hand_computed_values():
    """One logit 2, sigma 3: 2 / sqrt(1 + 9 pi / 8) = 0.93924; its sigmoid is 0.71894."""
    scaled = 2 / math.sqrt(1 + 9 * math.pi / 8)
    assert scaled == pytest.approx(0.93924, abs=5e-6)
    for label, pixels in ((1, (scaled, 2.0)), (0, (-scaled, -2.0))):
        logits, raw, labels, _ = row([[2.0, 2.0]], 3.0, label)
        value = doubted(logits, raw, labels, torch.tensor([[[True, False]]]))
        expected = sum(math.log1p(math.exp(-x)) for x in pixels) / 2
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_the_formula_is_the_mean_sigmoid_of_a_normal_variable():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    for mu, sigma in ((1.0, 0.5), (2.0, 2.0), (-3.0, 4.0)):
        sampled = torch.sigmoid(mu + sigma * noise).mean().item()
        shape = (1, 1, 1, 1)
        softened = soften(torch.full(shape, mu), torch.full(shape, sigma))
        assert softened.softmax(1)[0, 1].item() == pytest.approx(sampled, abs=0.02)


@pytest.mark.parametrize("classes", [2, 4])
def test_against_a_loop_over_pixels(classes):
    logits, raw, labels, inside = random_batch(3, classes=classes)
    value = doubted(logits, raw, labels, inside)
    total, count = 0.0, 0
    sigma = raw.detach().double().exp().log1p()
    for n, y, x in np.ndindex(*labels.shape):
        if labels[n, y, x] == 255:
            continue
        mu = logits.detach().double()[n, :, y, x]
        if inside[n, y, x]:
            mu = mu / (1 + math.pi * sigma[n, :, y, x] ** 2 / 8).sqrt()
        if classes == 2:
            p = torch.sigmoid(mu[0]).item()
            total -= math.log(p if labels[n, y, x] == 1 else 1 - p)
        else:
            total -= mu.log_softmax(0)[labels[n, y, x]].item()
        count += 1
    assert value.item() == pytest.approx(total / count, rel=1e-6)


def test_doubt_grows_where_the_label_is_wrong_and_shrinks_where_it_is_right():
    """Descent along sigma's gradient: up where mu says background, down where it agrees."""
    logits, raw, *rest = row([[-3.0, 3.0]], math.log(2))
    wrong, right = gradients(doubted(logits, raw, *rest), raw)[0].flatten()
    assert wrong < 0 < right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("form", SIGMA_FORMS)
def test_gradients_are_finite_everywhere(dtype, classes, form):
    """All pairs of extreme logits and spreads, and every label."""
    extremes = (0.0, 1e-6, 0.1, 1.0, 30.0, 1e3, 6e4, torch.finfo(dtype).max)
    values = torch.tensor(sorted({*extremes, *(-x for x in extremes)})).to(dtype)
    channels = 1 if classes == 2 else classes
    pairs = torch.cartesian_prod(values, values)
    logits = pairs[:, 0].repeat(classes).reshape(1, 1, classes, -1).repeat(1, channels, 1, 1)
    # Other channels get other extremes, so that differences of all sizes occur.
    logits = torch.stack([row.roll(7 * c, -1) for c, row in enumerate(logits[0])])[None]
    spreads = channels if form == "per_class" else 1
    raw = pairs[:, 1].repeat(classes).reshape(1, 1, classes, -1).repeat(1, spreads, 1, 1)
    labels = torch.arange(classes).reshape(1, classes, 1).repeat(1, 1, len(pairs))
    logits, raw = logits.clone().requires_grad_(), raw.clone().requires_grad_()
    inside = torch.ones_like(labels, dtype=torch.bool)
    value = doubted(logits, raw, labels, inside, form=form)
    assert value.dtype == torch.float32
    for gradient in gradients(value, logits, raw):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_half_precision_is_widened_first(dtype):
    logits, raw, labels, inside = random_batch()
    logits, raw = logits.detach().to(dtype), raw.detach().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = doubted(logits, raw, labels, inside)
    expected = doubted(logits.float(), raw.float(), labels, inside)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.sampled_from([2, 4]),
    form=st.sampled_from(SIGMA_FORMS),
    weighted=st.booleans(),
    bootstrapping=st.booleans(),
)
def test_ignored_pixels_change_nothing(seed, classes, form, weighted, bootstrapping):
    logits, raw, labels, inside = random_batch(seed, classes=classes, form=form)
    options = {"form": form, "size_weighted": weighted, "bootstrapping": bootstrapping}
    value = doubted(logits, raw, labels, inside, **options)
    ignored = (labels == 255)[:, None]
    with torch.no_grad():
        other = torch.where(ignored, logits * -5 + 1, logits), torch.where(ignored, raw + 9, raw)
    changed = doubted(*other, labels, inside, **options)
    torch.testing.assert_close(changed, value.detach())
    for gradient in gradients(value, logits, raw):
        assert (gradient.abs().sum(1)[labels == 255] == 0).all()


@pytest.mark.parametrize("bootstrapping", [False, True])
def test_an_all_ignored_batch_is_zero_with_zero_gradient(bootstrapping):
    logits, raw, labels, inside = random_batch()
    labels.fill_(255)
    value = doubted(logits, raw, labels, inside, bootstrapping=bootstrapping, size_weighted=True)
    assert value.item() == 0
    assert not any(gradient.any() for gradient in gradients(value, logits, raw))


def pixel(mu, sigma, label, *, inside=True, **options):
    """Relabel one pixel; returns its label and whether it was taken from the model."""
    loss = UncertaintyCrossEntropy(**options)
    mu, sigma = (torch.tensor(x).reshape(1, -1, 1, 1) for x in (mu, sigma))
    label, inside = (torch.tensor([[[x]]]) for x in (label, inside))
    labels, changed, _ = loss.bootstrap(mu, label, sigma, inside)
    return labels.item(), changed.item()


def test_a_doubted_pixel_takes_the_models_label():
    assert pixel([-2.0], [1.1], 1) == (0, True)
    assert pixel([2.0], [1.1], 1) == (1, True)
    assert pixel([-2.0], [1.0], 1) == (1, False), "not larger than the threshold"
    assert pixel([-2.0], [1.1], 1, threshold=1.2) == (1, False)
    assert pixel([-2.0], [9.0], 1, inside=False) == (1, False), "a certain label"
    assert pixel([-2.0], [9.0], 255) == (255, False), "an ignored pixel"


@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_a_pixel_in_boxes_of_several_classes_takes_the_most_probable(resolution):
    """While bootstrapping only; columns: one class, two, two without the best, ignored, certain."""
    loss = UncertaintyCrossEntropy(form="object", resolution=resolution)
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0]).reshape(1, 4, 1, 1).repeat(1, 1, 1, 5)
    labels = torch.tensor([[[1, 1, 3, 255, 1]]])
    bits = torch.tensor([[[0b001, 0b111, 0b101, 0b111, 0b111]]])
    doubtable = torch.tensor([[[1, 1, 1, 0, 0]]])
    chosen = loss.choose_classes(logits, labels, doubtable, bits)
    assert chosen.tolist() == [[[1, 2, 3, 255, 1]]]
    options = {"sigma_raw": torch.zeros(1, 1, 1, 5), "doubtable": doubtable}
    before = loss(logits, labels, **options)
    assert torch.equal(before, loss(logits, labels, box_classes=bits, **options))
    loss.bootstrapping = True
    assert torch.equal(loss(logits, labels, box_classes=bits, **options),
                       loss(logits, chosen, **options))  # fmt: skip


def test_the_models_own_label():
    for mu, by_class, by_object in (
        ([0.0, 1.0, 5.0], 2, 1),  # another class: an object all the same, whose class the box knows
        ([2.0, 1.0, 0.0], 0, 0),
        ([2.0, 1.5, 1.5], 0, 1),  # e^2 < 2 e^1.5: an object of whatever class is more probable
    ):
        assert pixel(mu, [2.0] * 3, 1) == (by_class, True)
        assert pixel(mu, [2.0], 1, form="object") == (by_object, True)


def test_a_box_keeps_an_object():
    """Two boxes of four pixels, doubted throughout: one would keep an object of 1, one of 3."""
    mu = torch.tensor([[[[2.0, -2.0, -2.0, -2.0, 2.0, 2.0, 2.0, -2.0, -2.0]]]])
    labels = torch.tensor([[[1, 1, 1, 1, 1, 1, 1, 1, 0]]])
    numbers = torch.tensor([[[1, 1, 1, 1, 7, 7, 7, 7, 0]]])
    sigma = torch.full_like(mu, 3.0)
    kept = {
        0.0: [1, 0, 0, 0, 1, 1, 1, 0, 0],
        0.25: [1, 0, 0, 0, 1, 1, 1, 0, 0],
        0.26: [1, 1, 1, 1, 1, 1, 1, 0, 0],
        0.75: [1, 1, 1, 1, 1, 1, 1, 0, 0],
        0.76: [1, 1, 1, 1, 1, 1, 1, 1, 0],
    }
    for least, expected in kept.items():
        loss = UncertaintyCrossEntropy(min_object=least)
        used, changed, _ = loss.bootstrap(mu, labels, sigma, numbers)
        assert used.flatten().tolist() == expected, least
        assert not (changed & (numbers == 0)).any()
    # The same boxes in two images are four boxes.
    twice = [torch.cat([x, x]) for x in (mu, labels, sigma, numbers)]
    twice[0][1] = 2.0
    used, _, _ = UncertaintyCrossEntropy(min_object=0.5).bootstrap(*twice)
    assert used[0, 0].tolist() == kept[0.75]
    assert used[1, 0, :8].tolist() == [1] * 8


@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_an_object_the_model_does_not_see_keeps_its_labels(sigma):
    """Of two boxes the model sees an object in the second one alone."""
    mu = torch.tensor([[[[-2.0, -2.0, -2.0, 2.0, -2.0, 2.0]]]])
    labels, numbers = torch.tensor([[[1, 1, 1, 1, 1, 255]]]), torch.tensor([[[1, 1, 1, 2, 2, 2]]])
    loss = UncertaintyCrossEntropy(min_object=0.5, threshold=1.0)
    spread = torch.full_like(mu, sigma)
    used, changed, uncertain = loss.bootstrap(mu, labels, spread, numbers)
    takes_own = sigma > loss.threshold
    assert used.flatten().tolist() == [1, 1, 1, 1, 0 if takes_own else 1, 255]
    assert changed.flatten().tolist() == [False] * 3 + [takes_own] * 2 + [False]
    assert uncertain.flatten().tolist() == [False] * 3 + [not takes_own] * 2 + [False]
    loss.bootstrapping = True
    value = loss(mu, labels, sigma_raw=torch.log(torch.expm1(spread)), doubtable=numbers)
    expected = F.cross_entropy(soften(mu, spread, uncertain), used, ignore_index=255)
    torch.testing.assert_close(value, expected)


def test_numbered_boxes_are_doubted_like_a_mask_of_them():
    *tensors, inside = random_batch()
    assert doubted(*tensors, inside.long() * torch.arange(1, 8)) == doubted(*tensors, inside)


def test_the_threshold_is_for_the_sigma_of_the_models_own_label():
    """Sigma 0.5 of the model's own label 0, 1.5 of the label 1, 3 of another."""
    for threshold, changed in ((0.49, True), (0.51, False)):
        assert pixel([4.0, 1.0, 0.0], [0.5, 1.5, 3.0], 1, threshold=threshold)[1] is changed
    assert pixel([4.0, 1.0, 0.0], [1.2], 1, form="object") == (0, True)


def test_relabelled_pixels_are_certain():
    logits, raw, labels, inside = random_batch(ignored=0)
    raw = raw.detach() + 2
    value = doubted(logits, raw, labels, inside, bootstrapping=True, threshold=2.0)
    assert value != doubted(logits, raw, labels, inside)
    loss, sigma = UncertaintyCrossEntropy(threshold=2.0), F.softplus(raw)
    assert loss.state_dict() == {}
    used, changed, _ = loss.bootstrap(logits, labels, sigma, inside)
    assert (used != labels).any()
    assert (inside & ~changed).any()
    expected = F.cross_entropy(soften(logits, sigma, inside & ~changed), used)
    torch.testing.assert_close(value, expected)


def test_without_sigma_it_is_its_parent():
    logits, raw, labels, inside = random_batch()
    for weighted in (False, True):
        expected = SizeWeightedCrossEntropy(size_weighted=weighted)(logits, labels)
        assert UncertaintyCrossEntropy(size_weighted=weighted)(logits, labels) == expected
    # And with tau = 1 it is the loss without size weights.
    options = {"size_weighted": True, "weights": SizeWeights(tau=1)}
    value = doubted(logits, raw, labels, inside, **options)
    torch.testing.assert_close(value, doubted(logits, raw, labels, inside))


@pytest.mark.parametrize("normalize", ["weights", "pixels"])
def test_size_weights_on_top(normalize):
    """Weights as in L_SW: the weighted mean of the softened logits' cross-entropy."""
    logits, raw, labels, inside = random_batch()
    weights = torch.stack([torch.from_numpy(size_weights(x.numpy())) for x in labels])
    nll = F.cross_entropy(
        soften(logits, F.softplus(raw), inside), labels, ignore_index=255, reduction="none"
    )
    divisor = weights.sum() if normalize == "weights" else (labels != 255).sum()
    expected = (weights * nll).sum() / divisor
    for given_weights in (weights, None):
        options = {"size_weighted": True, "normalize": normalize}
        value = doubted(logits, raw, labels, inside, given_weights, **options)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_a_box_keeps_its_weight_when_labels_change(resolution, given):
    """A box of 8 pixels whose right half becomes background: both halves weigh as before."""
    labels = torch.zeros(1, 4, 12, dtype=torch.int64)
    labels[0, 0:2, 0:4] = 1
    labels[0, 0:4, 8:12] = 1
    inside = torch.zeros_like(labels, dtype=torch.bool)
    inside[0, :2, :4] = True
    logits = torch.randn(1, 1, 4, 12, generator=torch.Generator().manual_seed(1))
    logits[0, 0, :2, :2], logits[0, 0, :2, 2:4] = 3.0, -3.0
    options = {"size_weighted": True, "resolution": resolution, "bootstrapping": True}
    ready = torch.from_numpy(size_weights(labels[0].numpy()))[None] if given else None
    value = doubted(logits, torch.full_like(logits, 4.0), labels, inside, ready, **options)
    used = labels.clone()
    used[0, :2, 2:4] = 0
    # 8 + 16 foreground pixels: the box weighs 24 / 8, the other object 24 / 16.
    weights = torch.ones(1, 4, 12)
    weights[0, :2, :4], weights[0, :, 8:] = 3.0, 1.5
    nll = F.binary_cross_entropy_with_logits(logits[:, 0], used.float(), reduction="none")
    torch.testing.assert_close(value, (weights * nll).sum() / weights.sum())


@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_resolutions(resolution):
    logits, raw, _, _ = random_batch(size=(3, 4))
    _, _, labels, inside = random_batch(size=(12, 16))
    value = doubted(logits, raw, labels, inside, resolution=resolution)
    if resolution == "logits":
        # 12 -> 3 and 16 -> 4: the centre of each cell of 4 is its pixel 2.
        labels, inside = labels[:, 2::4, 2::4], inside[:, 2::4, 2::4]
    else:
        logits, raw = (F.interpolate(x, (12, 16), mode="bilinear") for x in (logits, raw))
    torch.testing.assert_close(value, doubted(logits, raw, labels, inside, resolution=resolution))


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-3, 50))
def test_the_offset_gives_the_initial_sigma(sigma):
    raw = torch.tensor(sigma_offset(sigma), dtype=torch.float64)
    assert F.softplus(raw).item() == pytest.approx(sigma, rel=1e-9)


def test_a_binary_logit_gets_a_background_of_zero():
    logits = torch.randn(2, 1, 3, 3)
    both = all_logits(logits)
    torch.testing.assert_close(both.softmax(1)[:, 1:], torch.sigmoid(logits))
    assert all_logits(both) is both


def test_bad_options():
    for option, value, message in (
        ("threshold", 0.0, r"threshold must be > 0, got 0\.0"),
        ("threshold", math.nan, "threshold must be > 0, got nan"),
        ("min_object", 1.0, r"min_object must be in \[0, 1\), got 1\.0"),
        ("form", "class", "form: unknown value 'class'.*did you mean 'per_class'"),
    ):
        with pytest.raises(ValueError, match=message):
            UncertaintyCrossEntropy(**{option: value})


RAW = torch.zeros(2, 4, 6, 7)


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("per_class", {"sigma_raw": RAW[:, :2]}, r"\(2, 4, 6, 7\), got .*\(2, 2, 6, 7\)"),
        ("object", {}, r"sigma_raw must be .*\(2, 1, 6, 7\), got .*\(2, 4, 6, 7\)"),
        ("per_class", {"sigma_raw": RAW.long()}, r"sigma_raw must be floating.*got torch\.int64"),
        ("per_class", {"doubtable": None}, r"doubtable must be bool .*\(2, 6, 7\).*got None"),
        ("per_class", {"doubtable": RAW[:, 0]}, r"must be bool .*got \(torch\.float32"),
        ("per_class", {"doubtable": RAW[:, 0, :3] > 0}, r"got \(torch\.bool, \(2, 3, 7\)\)"),
        ("per_class", {"labels": RAW[:, 0].long() + 4}, r"labels must be 0\.\.3 .* 255, got 4;"),
    ],
)
def test_bad_tensors(form, change, message):
    logits, raw, labels, inside = random_batch()
    tensors = {"labels": labels, "sigma_raw": raw, "doubtable": inside, **change}
    with pytest.raises(ValueError, match=message):
        UncertaintyCrossEntropy(form=form)(logits, **tensors)
