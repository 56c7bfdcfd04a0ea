"""The meta-architecture: losses, MSC, padding, output sizes, any head with ``layers``."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.losses.size_weights import size_weights
from d2_smallobj.modeling import SizeBalancedSegmentor, build_size_weights
from d2_smallobj.modeling.segmentor import loss_options
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

MSC = ("SMALLOBJ.MSC.ENABLED", True)
LOGITS = ("SMALLOBJ.LOSS_RESOLUTION", "logits")
WEIGHTED = ("SMALLOBJ.TASK_A.LOSS", "size_weighted")


def padded(batch, key="sem_seg", fill=255, size=(48, 56)):
    """One field of a batch, padded by hand."""
    first = batch[0][key]
    result = torch.full((len(batch), *first.shape[:-2], *size), fill, dtype=first.dtype)
    for row, x in zip(result, batch):
        height, width = x[key].shape[-2:]
        row[..., :height, :width] = x[key]
    return result


def normalized(batch, size=(48, 56)):
    """The images of a batch, normalised and padded by hand."""
    mean = torch.tensor([104.008, 116.669, 122.675])[:, None, None]
    return padded([{"image": x["image"] - mean} for x in batch], "image", 0.0, size)


def weight_maps(labels, **options):
    return torch.from_numpy(np.stack([size_weights(x.numpy(), **options) for x in labels]))


def manual_loss(logits, labels, weights):
    """The paper's Eq. 4, written down with log-softmax and sums."""
    valid = labels != 255
    log_p = logits.double().log_softmax(1)
    nll = -log_p.gather(1, torch.where(valid, labels, 0)[:, None])[:, 0]
    weights = weights.double() * valid
    return ((weights * nll).sum() / weights.sum()).float()


assert_close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


def upsample(logits, size):
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def test_task_a_is_the_cross_entropy_at_input_resolution(build, batch):
    model = build()
    losses = model(batch)
    assert list(losses) == ["loss_sem_seg"]
    logits = model.logits(normalized(batch))[""]
    assert logits.shape == (2, 5, 6, 7)
    labels = padded(batch)
    expected = F.cross_entropy(upsample(logits, labels.shape[1:]), labels, ignore_index=255)
    torch.testing.assert_close(losses["loss_sem_seg"], expected)
    with pytest.raises(ValueError, match=r"key 'sem_seg' is not in the batch.*\['image'\]"):
        model([{"image": x["image"]} for x in batch])


def test_the_size_weighted_loss_by_hand(build, batch):
    model = build(*WEIGHTED, "SMALLOBJ.TAU", 3.0)
    labels = padded(batch)
    logits = upsample(model.logits(normalized(batch))[""], labels.shape[1:])
    weights = weight_maps(labels, tau=3.0)
    expected = manual_loss(logits, labels, weights)
    assert abs(expected - manual_loss(logits, labels, torch.ones_like(weights))) > 1e-3
    assert_close(model(batch)["loss_sem_seg"], expected)
    for x in batch:  # from the mapper
        x["size_weights"] = torch.from_numpy(size_weights(x["sem_seg"].numpy(), tau=3.0))
    assert_close(model(batch)["loss_sem_seg"], expected)


def test_the_loss_at_logit_resolution_by_hand(build, batch):
    model = build(*WEIGHTED, *LOGITS)
    logits = model.logits(normalized(batch))[""]
    # 48 -> 6 and 56 -> 7: the centre of each cell of 8 is its pixel 4.
    labels = padded(batch)[:, 4::8, 4::8]
    assert labels.shape[1:] == logits.shape[2:]
    expected = manual_loss(logits, labels, weight_maps(labels))
    assert_close(model(batch)["loss_sem_seg"], expected)
    for x in batch:
        x["size_weights"] = torch.ones(x["sem_seg"].shape)
    with pytest.raises(ValueError, match=r"weights must have .*\(2, 6, 7\), got \(2, 48, 56"):
        model(batch)


def test_smaller_images_are_padded_with_mean_ignore_and_weight_0(build, batch):
    model = build(*WEIGHTED)
    for x in batch:
        x["size_weights"] = torch.full(x["sem_seg"].shape, 2.0)
    seen = {}

    def loss(logits, labels, weights):
        seen.update(labels=labels, weights=weights)
        return logits.sum()

    model.loss.forward = loss
    model.backbone.register_forward_pre_hook(lambda _, args: seen.update(images=args[0]))
    model(batch)
    assert torch.equal(seen["labels"], padded(batch))
    assert torch.equal(seen["weights"][0, :40], torch.full((40, 56), 2.0))
    assert not seen["weights"][0, 40:].any()
    assert not seen["weights"][1, :, 32:].any()
    torch.testing.assert_close(seen["images"], normalized(batch))


def test_tau_1_is_the_cross_entropy_in_value_and_gradient(build, batch):
    results = []
    for options in ((*WEIGHTED, "SMALLOBJ.TAU", 1.0), ()):
        model = build(*options, *MSC)
        loss = sum(model(batch).values())
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (weighted, gradients), (plain, expected) = results
    torch.testing.assert_close(weighted, plain)
    assert len(gradients) == len(expected) > 20
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("options", [(), WEIGHTED, (*WEIGHTED, *LOGITS, *MSC)])
def test_the_loss_under_autocast_and_of_an_all_ignored_batch(build, batch, options):
    model = build(*options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())
    for x in batch:
        x["sem_seg"].fill_(255)
    loss = sum(model(batch).values())
    assert loss == 0
    loss.backward()
    assert all(not p.grad.any() for p in model.parameters())


def test_msc_maps_of_the_recipe(build):
    """docs/method.md#recipe: 321 -> 41, 21, 31 and their maximum at 41."""
    model = build(*MSC, "SMALLOBJ.STEM_POOL_CEIL", True)
    maps = model.logits(torch.zeros(1, 3, 321, 321))
    sides = {name: x.shape[2] for name, x in maps.items()}
    assert sides == {"_1": 41, "_0.5": 21, "_0.75": 31, "_max": 41}
    assert all(x.shape[2] == x.shape[3] for x in maps.values())


def test_msc_maximum_by_hand(build, batch):
    model = build(*MSC)
    images = normalized(batch)
    maps = model.logits(images)

    def plain(x):
        return model.sem_seg_head.layers(model.backbone(x))

    full = plain(images)
    half = plain(upsample(images, (24, 28)))
    three_quarters = plain(upsample(images, (36, 42)))
    torch.testing.assert_close(maps["_1"], full)
    torch.testing.assert_close(maps["_0.5"], half)
    torch.testing.assert_close(maps["_0.75"], three_quarters)
    size = full.shape[2:]
    expected = torch.stack([full, upsample(half, size), upsample(three_quarters, size)]).amax(0)
    torch.testing.assert_close(maps["_max"], expected)
    assert (expected > full).any()
    assert (expected == full).any()
    outputs = model.eval()(batch)
    scores = upsample(model.logits(images)["_max"], (48, 56))
    torch.testing.assert_close(outputs[0]["sem_seg"], scores[0, :, :40])


@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_msc_has_one_loss_a_map(build, batch, resolution):
    model = build(*MSC, *WEIGHTED, "SMALLOBJ.LOSS_RESOLUTION", resolution)
    losses = model(batch)
    assert set(losses) == {f"loss_sem_seg_{s}" for s in ("1", "0.5", "0.75", "max")}
    maps = model.logits(normalized(batch))
    labels = padded(batch)
    for suffix, logits in maps.items():
        height, width = logits.shape[2:]
        if resolution == "input":
            logits, seen = upsample(logits, labels.shape[1:]), labels
        else:
            rows = ((torch.arange(height) + 0.5) * 48 / height).long()
            columns = ((torch.arange(width) + 0.5) * 56 / width).long()
            seen = labels[:, rows][:, :, columns]
        assert_close(losses[f"loss_sem_seg{suffix}"], manual_loss(logits, seen, weight_maps(seen)))


def test_outputs_have_the_size_of_the_file(build, batch):
    model = build().eval()
    inputs = [{"image": batch[0]["image"], "height": 80, "width": 84}, {"image": batch[1]["image"]}]
    with torch.no_grad():
        outputs = model(inputs)
        scores = upsample(model.logits(normalized(batch))[""], (48, 56))
    assert [tuple(x["sem_seg"].shape) for x in outputs] == [(5, 80, 84), (5, 48, 32)]
    expected = upsample(scores[:1, :, :40, :56], (80, 84))[0]
    torch.testing.assert_close(outputs[0]["sem_seg"], expected)
    torch.testing.assert_close(outputs[1]["sem_seg"], scores[1, :, :48, :32])


class Patches(Backbone):
    """A backbone with every demand on its input's size that detectron2 knows."""

    size_divisibility = 32
    padding_constraints = {"square_size": 64}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x):
        assert x.shape[2:] == (64, 64)
        return {"p": self.conv(x)}

    def output_shape(self):
        return {"p": ShapeSpec(channels=4, stride=4)}


class OneByOne(nn.Module):
    """Somebody else's head: ``layers`` alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 1)

    def layers(self, features):
        return self.conv(features["p"])


def test_any_backbone_and_any_head(batch):
    loss = SizeWeightedCrossEntropy(size_weighted=True)
    parts = {"backbone": Patches(), "sem_seg_head": OneByOne(), "loss": loss}
    model = SizeBalancedSegmentor(**parts, pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1])
    losses = model(batch)
    losses["loss_sem_seg"].backward()
    assert model.sem_seg_head.conv.weight.grad.any()
    model.eval()
    assert [tuple(x["sem_seg"].shape) for x in model(batch)] == [(5, 40, 56), (5, 48, 32)]
    parts["sem_seg_head"] = nn.Identity()
    with pytest.raises(ValueError, match=r"HEAD\.NAME: Identity has no method `layers\(features"):
        SizeBalancedSegmentor(**parts, pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1])


@pytest.mark.real_host
def test_with_detectron2s_fpn_head(fpn_model, batch):
    model = fpn_model(*WEIGHTED)
    assert type(model.sem_seg_head).__name__ == "SemSegFPNHead"
    loss = model(batch)["loss_sem_seg"]
    images = normalized(batch, (64, 64))
    labels = padded(batch, size=(64, 64))
    logits = upsample(model.logits(images)[""], (64, 64))
    expected = manual_loss(logits, labels, weight_maps(labels))
    assert_close(loss, expected)
    loss.backward()
    assert model.sem_seg_head.predictor.weight.grad.any()
    model.eval()
    with torch.no_grad():
        assert [tuple(x["sem_seg"].shape) for x in model(batch)] == [(5, 40, 56), (5, 48, 32)]


def test_every_loss_option_arrives(narrow_cfg):
    cfg = narrow_cfg(
        *("SMALLOBJ.TAU", 2.5, "SMALLOBJ.TOTAL", "class", "SMALLOBJ.COMPONENT_SIZE", "contour"),
        *("SMALLOBJ.NORMALIZE", "pixels", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 200, *LOGITS),
    )
    weights = build_size_weights(cfg)
    assert (weights.tau, weights.total, weights.compat) == (2.5, "class", "contour")
    loss = SizeWeightedCrossEntropy(**loss_options(cfg))
    assert loss.weights == weights
    assert (loss.resolution, loss.normalize) == ("logits", "pixels")
    assert loss.ignore_label == weights.ignore_label == 200
    # It starts as the first task's; without iterations of task A that is task B.
    for iterations in (-1, 0, 5):
        for losses in (("cross_entropy", "size_weighted"), ("size_weighted", "cross_entropy")):
            cfg.SMALLOBJ.TASK_A.ITERS = iterations
            cfg.SMALLOBJ.TASK_A.LOSS, cfg.SMALLOBJ.TASK_B.LOSS = losses
            first = losses[1] if iterations == 0 else losses[0]
            assert loss_options(cfg)["size_weighted"] is (first == "size_weighted")


def test_the_recipes_model(narrow_cfg):
    """ResNet-101 at full width: the sizes of DeepLabV2 for VOC (built, not run)."""
    cfg = narrow_cfg(
        *("MODEL.RESNETS.DEPTH", 101, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.WIDTH_PER_GROUP", 64),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 21),
    )
    with torch.device("meta"):
        model = SizeBalancedSegmentor(**SizeBalancedSegmentor.from_config(cfg))
    count = sum(p.numel() for p in model.parameters())
    # torchvision's ResNet-101: 44,549,160 weights, of them 2,049,000 of the classifier and
    # 2 x 52,672 of the norms; ASPP: 4 x (2048 x 21 x 9 + 21).
    assert count == 44_549_160 - 2_049_000 - 2 * 52_672 + 4 * (2048 * 21 * 9 + 21)
