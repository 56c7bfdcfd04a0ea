"""The segmentor with a sigma branch: losses, what it observes, what it tells of an image."""

import functools

import pytest
import torch
from torch.nn import functional as F

from d2_smallobj.losses import UncertaintyCrossEntropy, soften
from d2_smallobj.modeling import UncertainSegmentor
from d2_smallobj.modeling.uncertain_segmentor import num_logits

DOUBT = ("MODEL.META_ARCHITECTURE", "UncertainSegmentor")
OBJECT = ("SMALLOBJ.UNCERTAINTY.FORM", "object")
BINARY = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)


@pytest.fixture
def uncertain(build):
    return functools.partial(build, *DOUBT)


@pytest.fixture
def boxed(batch):
    """The batch with the second image labelled by boxes."""
    for number, x in enumerate(batch):
        objects = (x["sem_seg"] > 0) & (x["sem_seg"] != 255)
        x["doubtable"] = objects if number else torch.zeros_like(objects)
        x["true_sem_seg"] = x["sem_seg"].clone()
    batch[1]["true_sem_seg"][4:20, 6:16] = 0
    return batch


def channels(model, batch):
    """The head's output for the batch, upsampled to its labels."""
    images = padded([{"image": x["image"] - model.pixel_mean} for x in batch], "image", 0.0)
    output = model.sem_seg_head.layers(model.backbone(images))
    return F.interpolate(output, (48, 56), mode="bilinear", align_corners=False)


def padded(batch, key, fill):
    result = torch.full((2, *batch[0][key].shape[:-2], 48, 56), fill, dtype=batch[0][key].dtype)
    for row, x in zip(result, batch):
        row[..., : x[key].shape[-2], : x[key].shape[-1]] = x[key]
    return result


def softened(model, batch, output, form="per_class"):
    """Logits whose box pixels are divided by what their sigma says."""
    sigma = F.softplus(output[:, 5:] + model.offset)
    return soften(output[:, :5], sigma, padded(batch, "doubtable", False), form)


@pytest.mark.parametrize(
    ("options", "logits", "spreads"),
    [((), 5, 5), (OBJECT, 5, 1), (BINARY, 1, 1), ((*BINARY, *OBJECT), 1, 1)],
)
def test_the_head_makes_logits_and_spreads(uncertain, narrow_cfg, batch, options, logits, spreads):
    model = uncertain(*options)
    assert num_logits(narrow_cfg(*options)) == model.num_logits == logits
    assert channels(model, batch).shape == (2, logits + spreads, 48, 56)
    assert isinstance(model.loss, UncertaintyCrossEntropy)


def test_sigma_starts_where_the_config_says(uncertain, batch):
    model = uncertain("SMALLOBJ.UNCERTAINTY.SIGMA_INIT", 2.5).eval()
    with torch.no_grad():
        for convolution in model.sem_seg_head.aspp:
            convolution.weight.zero_()
        (output, _) = model(batch)
    torch.testing.assert_close(output["sigma"], torch.full((40, 56), 2.5))


@pytest.mark.parametrize("form", ["per_class", "object"])
def test_the_loss_by_hand(uncertain, boxed, form):
    node = "SMALLOBJ.UNCERTAINTY."
    small = ("SMALLOBJ.ASPP_INIT_STD", 0.01)
    model = uncertain(f"{node}FORM", form, f"{node}SIGMA_INIT", 2.0, *small)
    output, labels = channels(model, boxed), padded(boxed, "sem_seg", 255)
    expected = F.cross_entropy(softened(model, boxed, output, form), labels, ignore_index=255)
    loss = model(boxed)["loss_sem_seg"]
    torch.testing.assert_close(loss, expected)
    certain = F.cross_entropy(output[:, :5], labels, ignore_index=255)
    assert abs(loss - certain) > 1e-3


def test_without_box_labels_it_is_the_cross_entropy(uncertain, batch):
    model = uncertain()
    labels = padded(batch, "sem_seg", 255)
    expected = F.cross_entropy(channels(model, batch)[:, :5], labels, ignore_index=255)
    torch.testing.assert_close(model(batch)["loss_sem_seg"], expected)


def test_every_parameter_learns_from_boxes(uncertain, boxed):
    model = uncertain("SMALLOBJ.ASPP_INIT_STD", 0.01)
    model(boxed)["loss_sem_seg"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert all(channel.any() for channel in model.sem_seg_head.aspp[0].weight.grad)


def test_multi_scale_training_has_one_loss_a_map(uncertain, boxed):
    model = uncertain("SMALLOBJ.MSC.ENABLED", True)
    losses = model(boxed)
    assert set(losses) == {f"loss_sem_seg{s}" for s in ("_1", "_0.5", "_0.75", "_max")}
    assert all(loss.isfinite() for loss in losses.values())
    assert model.eval()(boxed)[0]["sem_seg"].shape == (5, 40, 56)


def test_size_weights_of_the_mapper_are_used(uncertain, boxed):
    model = uncertain("SMALLOBJ.TASK_A.LOSS", "size_weighted")
    for x in boxed:
        x["size_weights"] = 1.0 + (x["sem_seg"] == 3) * 4.0
    weights, labels = padded(boxed, "size_weights", 0.0), padded(boxed, "sem_seg", 255)
    logits = softened(model, boxed, channels(model, boxed))
    nll = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    weights = weights * (labels != 255)
    expected = (weights * nll).sum() / weights.sum()
    torch.testing.assert_close(model(boxed)["loss_sem_seg"], expected)


@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_a_watched_step_leaves_what_the_loss_saw(uncertain, boxed, resolution):
    model = uncertain("SMALLOBJ.LOSS_RESOLUTION", resolution)
    model(boxed)
    assert model.observation is None
    model.watched = True
    model.loss.bootstrapping = True
    model.loss.threshold = 0.5
    model(boxed)
    seen = model.observation
    size = (2, 48, 56) if resolution == "input" else (2, 6, 7)
    for name in ("labels", "used", "true_labels", "doubtable", "relabelled", "sigma"):
        assert getattr(seen, name).shape == size, name
        assert not getattr(seen, name).requires_grad
    assert seen.image.shape == (3, 48, 56)
    assert seen.relabelled.any()
    assert not (seen.relabelled & ~seen.doubtable).any()
    assert torch.equal(seen.used[~seen.relabelled], seen.labels[~seen.relabelled])
    if resolution == "input":
        assert torch.equal(seen.labels, padded(boxed, "sem_seg", 255))
        assert torch.equal(seen.true_labels, padded(boxed, "true_sem_seg", 255))
    for x in boxed:
        del x["true_sem_seg"]
    model.loss.bootstrapping = False
    model(boxed)
    assert not model.observation.relabelled.any()
    assert model.observation.true_labels is None


def test_scores_and_sigma_of_an_image(uncertain, batch, randomize):
    model = randomize(uncertain()).eval()
    inputs = [{"image": batch[0]["image"], "height": 80, "width": 84}, batch[1]]
    with torch.no_grad():
        outputs = model(inputs)
        output = channels(model, batch)
    assert outputs[0]["sem_seg"].shape == (5, 80, 84)
    assert outputs[0]["sigma"].shape == (80, 84)
    mu, sigma = output[1, :5, :48, :32], F.softplus(output[1, 5:, :48, :32] + model.offset)
    torch.testing.assert_close(outputs[1]["sem_seg"], mu)
    predicted = mu.argmax(0)
    assert len(predicted.unique()) > 1
    expected = sigma.gather(0, predicted[None])[0]
    torch.testing.assert_close(outputs[1]["sigma"], expected)
    # A binary net, too, answers with two scores.
    (output, _) = randomize(uncertain(*BINARY)).eval()(batch)
    assert output["sem_seg"].shape == (2, 40, 56)
    assert not output["sem_seg"][0].any()
    assert (output["sigma"] >= 0).all()


@pytest.mark.real_host
def test_with_detectron2s_fpn_head(fpn_model, boxed):
    model = fpn_model(*DOUBT)
    assert isinstance(model, UncertainSegmentor)
    assert model.sem_seg_head.predictor.out_channels == 10
    model(boxed)["loss_sem_seg"].backward()
    assert model.sem_seg_head.predictor.weight.grad[5:].any()
