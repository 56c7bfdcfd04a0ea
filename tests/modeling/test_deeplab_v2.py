"""The ASPP head and detectron2's head contract."""

import math

import pytest
import torch
from torch.nn import functional as F

import d2_smallobj
from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.modeling import DeepLabV2Head
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_sem_seg_head

SHAPES = {"res4": ShapeSpec(channels=6, stride=8), "res5": ShapeSpec(channels=16, stride=8)}


@pytest.fixture
def head():
    torch.manual_seed(0)
    return DeepLabV2Head(
        SHAPES, in_feature="res5", num_classes=5, init_std=0.1, loss=SizeWeightedCrossEntropy()
    )


@pytest.fixture
def features():
    return {"res5": torch.randn(2, 16, 9, 11, generator=torch.Generator().manual_seed(0))}


def test_initial_weights(narrow_cfg):
    """N(0, 0.01^2) and zero biases (docs/method.md#recipe), at the recipe's width."""
    cfg = narrow_cfg("SMALLOBJ.ASPP_INIT_STD", 0.01, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 21)
    torch.manual_seed(0)
    head = build_sem_seg_head(cfg, {"res5": ShapeSpec(channels=2048, stride=8)})
    assert [conv.dilation for conv in head.aspp] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    assert sum(p.numel() for p in head.parameters()) == 4 * (2048 * 21 * 9 + 21)
    for conv in head.aspp:
        assert conv.kernel_size == (3, 3)
        assert not conv.bias.any()
        count = conv.weight.numel()
        # Five standard errors of the mean and of the standard deviation.
        assert abs(conv.weight.mean()) < 5 * 0.01 / math.sqrt(count)
        assert abs(conv.weight.std() - 0.01) < 5 * 0.01 / math.sqrt(2 * count)
    assert not torch.equal(head.aspp[0].weight, head.aspp[1].weight)


def test_logits_are_the_sum_of_the_four_convolutions(head, features):
    for conv in head.aspp:
        torch.nn.init.normal_(conv.bias)
    x = features["res5"]
    expected = sum(
        F.conv2d(x, conv.weight, conv.bias, padding=rate, dilation=rate)
        for conv, rate in zip(head.aspp, (6, 12, 18, 24))
    )
    torch.testing.assert_close(head.layers(features), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape == (2, 5, 9, 11)


def test_the_contract_in_training(head, features):
    labels = torch.randint(0, 5, (2, 72, 88), generator=torch.Generator().manual_seed(1))
    nothing, losses = head.train()(features, labels)
    assert nothing is None
    assert list(losses) == ["loss_sem_seg"]
    expected = F.cross_entropy(
        F.interpolate(head.layers(features), (72, 88), mode="bilinear", align_corners=False), labels
    )
    torch.testing.assert_close(losses["loss_sem_seg"], expected)
    losses["loss_sem_seg"].backward()
    assert all(p.grad.any() for p in head.parameters())


def test_the_contract_otherwise(head, features):
    with torch.no_grad():
        logits, losses = head.eval()(features)
        expected = F.interpolate(
            head.layers(features), scale_factor=8, mode="bilinear", align_corners=False
        )
    assert losses == {}
    assert logits.shape == (2, 5, 72, 88)
    torch.testing.assert_close(logits, expected)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.layers(features).dtype == torch.bfloat16
        assert head(features)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["res3"], r"'res3' is not among the backbone's outputs \['res4', 'res5'"),
        (["res4", "res5"], r"IN_FEATURES must name one backbone output .*got \["),
        ([], r"IN_FEATURES must name one backbone output .*got \["),
    ],
)
def test_inputs_that_are_refused(narrow_cfg, names, message):
    with pytest.raises(ValueError, match=message):
        build_sem_seg_head(narrow_cfg("MODEL.SEM_SEG_HEAD.IN_FEATURES", names), SHAPES)


@pytest.mark.real_host
@pytest.mark.skipif(
    d2_smallobj.host().name != "detectron2", reason="the stand-in has no SemanticSegmentor"
)
def test_in_detectron2s_own_segmentor(narrow_cfg, batch):
    torch.manual_seed(0)
    model = build_model(narrow_cfg("MODEL.META_ARCHITECTURE", "SemanticSegmentor"))
    losses = model(batch)
    assert list(losses) == ["loss_sem_seg"]
    assert losses["loss_sem_seg"] > 0
    losses["loss_sem_seg"].backward()
    model.eval()
    with torch.no_grad():
        outputs = model([{**batch[0], "height": 80, "width": 112}, batch[1]])
    assert [tuple(x["sem_seg"].shape) for x in outputs] == [(5, 80, 112), (5, 48, 32)]
    # The labels of the smaller images are padded with the head's own ignore value.
    model.train()
    cfg = narrow_cfg(
        *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"), *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 200)
    )
    assert build_model(cfg).sem_seg_head.ignore_value == 200
