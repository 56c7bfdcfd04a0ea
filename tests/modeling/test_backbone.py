"""The dilated ResNet: geometry, detectron2's names, and equality with detectron2's own."""

import pytest
import torch
from torch import nn

from d2_smallobj.modeling.deeplab_v2 import BLOCKS_PER_STAGE, DilatedBasicBlock
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock

INPUT = ShapeSpec(channels=3)
ALL = "['stem', 'res2', 'res3', 'res4', 'res5']"


def build(cfg, name="build_dilated_resnet_backbone"):
    return BACKBONE_REGISTRY.get(name)(cfg, INPUT).eval()


def options(depth, stride, *more):
    # detectron2's own builder takes ResNet-18 and -34 with 64 channels only.
    names = ("MODEL.RESNETS.RES2_OUT_CHANNELS", "MODEL.RESNETS.STEM_OUT_CHANNELS")
    width = (names[0], 64, names[1], 64) if depth < 50 else ()
    head = ("MODEL.RESNETS.DEPTH", depth, "SMALLOBJ.OUTPUT_STRIDE", stride)
    return (*head, *width, "MODEL.RESNETS.OUT_FEATURES", ALL, *more)


@pytest.fixture(scope="module")
def resnet101(narrow_cfg):
    """The recipe's geometry (docs/method.md#recipe)."""
    return build(narrow_cfg("MODEL.RESNETS.DEPTH", 101))


def test_output_stride_and_dilations_of_the_recipe(resnet101):
    assert resnet101.output_shape() == {"res5": ShapeSpec(channels=64, stride=8)}
    with torch.no_grad():
        assert resnet101(torch.zeros(1, 3, 321, 321))["res5"].shape == (1, 64, 41, 41)
        assert resnet101(torch.zeros(1, 3, 64, 128))["res5"].shape == (1, 64, 8, 16)
    expected = {"res2": 1, "res3": 1, "res4": 2, "res5": 4}
    for stage, dilation in expected.items():
        blocks = getattr(resnet101, stage)
        assert len(blocks) == BLOCKS_PER_STAGE[101][int(stage[3]) - 2]
        for block in blocks:
            assert block.conv2.kernel_size == (3, 3)
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)


def test_strides_and_frozen_norms_of_the_recipe(resnet101):
    convolutions = [(n, m) for n, m in resnet101.named_modules() if isinstance(m, nn.Conv2d)]
    strided = {name for name, module in convolutions if module.stride == (2, 2)}
    assert strided == {"stem.conv1", "res3.0.conv1", "res3.0.shortcut"}
    norms = [m for m in resnet101.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 1 + 33 * 3 + 4
    assert not any("norm" in name for name, _ in resnet101.named_parameters())
    assert all(p.requires_grad for p in resnet101.parameters())


@pytest.mark.parametrize(
    ("stride", "dilations"),
    [(4, (1, 2, 4, 8)), (8, (1, 1, 2, 4)), (16, (1, 1, 1, 2)), (32, (1, 1, 1, 1))],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_other_output_strides(narrow_cfg, depth, stride, dilations):
    backbone = build(narrow_cfg(*options(depth, stride)))
    features = {k: shape.stride for k, shape in backbone.output_shape().items()}
    assert features["res5"] == stride
    assert features == {f: min(s, stride) for f, s in zip(features, (4, 4, 8, 16, 32))}
    for stage, dilation in zip(("res2", "res3", "res4", "res5"), dilations):
        assert {b.conv2.dilation for b in getattr(backbone, stage)} == {(dilation, dilation)}
    x = torch.zeros(1, 3, 64, 96)
    for name, value in backbone(x).items():
        assert value.shape[-2:] == (64 // features[name], 96 // features[name])


@pytest.mark.parametrize(
    ("depth", "stride", "res5_dilation"), [(18, 32, 1), (50, 32, 1), (50, 16, 2), (101, 32, 1)]
)
def test_equal_to_detectron2s_own(narrow_cfg, randomize, depth, stride, res5_dilation):
    """The same parameter names, and after loading the same features."""
    cfg = narrow_cfg(*options(depth, stride, "MODEL.RESNETS.RES5_DILATION", res5_dilation))
    theirs = randomize(build(cfg, "build_resnet_backbone"))
    ours = build(cfg)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 70, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, features = theirs(x), ours(x)
    assert list(features) == list(expected)
    for name, value in features.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert value.abs().max() > 0


def test_stride_8_loads_a_stride_32_checkpoint(narrow_cfg):
    dense, strided = (build(narrow_cfg(*options(101, stride))).state_dict() for stride in (8, 32))
    assert {k: v.shape for k, v in dense.items()} == {k: v.shape for k, v in strided.items()}


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_dilation_gives_the_strided_features_in_between(narrow_cfg, randomize, size):
    """The hole algorithm: with the stride on the 1x1, every 4th feature is the strided net's."""
    nets = [randomize(build(narrow_cfg(*options(50, stride)))) for stride in (8, 32)]
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense, strided = (net(x)["res5"] for net in nets)
    assert dense.shape[-1] > 3 * strided.shape[-1]
    torch.testing.assert_close(dense[..., ::4, ::4], strided, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "stride"), [((8, 8), 1), ((8, 16), 1), ((8, 16), 2)])
def test_the_basic_block_without_dilation_is_detectron2s(randomize, channels, stride):
    theirs = randomize(BasicBlock(*channels, stride=stride, norm="BN")).eval()
    ours = DilatedBasicBlock(*channels, stride=stride, norm="BN").eval()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 8, 9, 11, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_the_basic_block_with_dilation_keeps_the_size_and_reaches_further(randomize):
    block = randomize(DilatedBasicBlock(2, 2, dilation=3, norm="FrozenBN")).eval()
    x = torch.zeros(1, 2, 31, 31, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    # Two 3x3 convolutions with dilation 3 see rows 15 + {-6, -3, 0, 3, 6}.
    (gradient,) = torch.autograd.grad(
        block.conv2(block.conv1(x))[0, :, 15, 15].sum(), x, allow_unused=True
    )
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
    assert rows == [9, 12, 15, 18, 21]


@pytest.mark.parametrize(("side", "down", "up"), [(321, 41, 41), (160, 20, 21), (240, 30, 31)])
def test_the_stem_rounds_sizes_up_on_request(narrow_cfg, randomize, side, down, up):
    floor, ceil = (
        randomize(build(narrow_cfg("SMALLOBJ.STEM_POOL_CEIL", value))) for value in (False, True)
    )
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert floor(x)["res5"].shape[-2:] == (down, down)
        assert ceil(x)["res5"].shape[-2:] == (up, up)
        small, large = floor.stem(x), ceil.stem(x)
    # One row and column more, of windows that reach over the edge; the others are the same.
    rows = small.shape[2]
    assert large.shape[2] == rows + (up > down)
    assert torch.equal(large[:, :, :rows, :rows], small)
    assert ceil.state_dict().keys() == floor.state_dict().keys()


@pytest.mark.parametrize("depth", sorted(BLOCKS_PER_STAGE))
def test_every_depth(narrow_cfg, depth):
    backbone = build(narrow_cfg("MODEL.RESNETS.DEPTH", depth))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in backbone.modules())
    # The name counts the weight layers with the classifier and without the four shortcuts (the
    # narrow ResNet-18's stem has fewer channels than res2, so that res2 has one as well).
    assert convolutions - 4 == depth - 1
    assert backbone(torch.zeros(1, 3, 32, 32))["res5"].shape[-2:] == (4, 4)


def test_freezing_and_options_that_are_refused(narrow_cfg):
    for freeze_at in (0, 1, 3):
        backbone = build(narrow_cfg("MODEL.BACKBONE.FREEZE_AT", freeze_at))
        frozen = {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad}
        assert frozen == set(("stem", "res2", "res3")[:freeze_at])
    for key, value, message in (
        ("DEPTH", 42, r"DEPTH must be one of \[18, 34, 50, 101, 152\], got 42"),
        ("OUT_FEATURES", "['res6']", "OUT_FEATURES: unknown value 'res6'.*did you mean 'res"),
    ):
        with pytest.raises(ValueError, match=rf"MODEL\.RESNETS\.{message}"):
            build(narrow_cfg(f"MODEL.RESNETS.{key}", value))
