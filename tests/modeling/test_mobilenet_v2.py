"""MobileNetV2: the published net's features, geometry, and weight files."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from d2_smallobj.engine import SafeCheckpointer, build_config
from d2_smallobj.modeling import MobileNetV2, initial_weights, weight_layouts
from d2_smallobj.modeling.initial_weights import load_weights
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone, build_model

ALL = ("stem", "res2", "res3", "res4", "res5")
CHANNELS = (16, 24, 32, 96, 320)
STRIDES = (2, 4, 8, 16, 32)
NARROW = {"width": 0.25, "out_features": ALL}
MINE = ("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "")
# Expansion, channels, blocks, stride: Table 2 of the paper.
TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
TABLE += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def published(weights, x):
    """Output of every block, by the table and the names of the older files alone."""
    stems = itertools.count()

    def layer(x, place, norm, relu=True, **options):
        w = weights[f"features.{place}.weight"]
        padding = w.shape[-1] // 2
        x = F.conv2d(x, w, padding=padding, **options)
        parts = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(weights[f"features.{norm}.{part}"] for part in parts))
        return x.clamp(0, 6) if relu else x

    outputs = [layer(x, f"{next(stems)}.0", "0.1", stride=2)]
    for expansion, channels, count, stride in TABLE:
        for step in [stride] + [1] * (count - 1):
            block, x = f"{next(stems)}.conv", outputs[-1]
            first = 0 if expansion == 1 else 3
            y = layer(x, f"{block}.0", f"{block}.1") if first else x
            depthwise = {"stride": step, "groups": y.shape[1]}
            y = layer(y, f"{block}.{first}", f"{block}.{first + 1}", **depthwise)
            y = layer(y, f"{block}.{first + 3}", f"{block}.{first + 4}", relu=False)
            assert y.shape[1] == channels
            outputs.append(x + y if step == 1 and x.shape == y.shape else y)
    return [*outputs, layer(outputs[-1], "18.0", "18.1")]


@pytest.fixture(scope="module")
def real_file(realdata):
    return realdata / "weights/mobilenetv2_imagenet_deepsort.pth"


@pytest.fixture
def log(monkeypatch):
    told = []
    monkeypatch.setattr(initial_weights.logger, "info", told.append)
    monkeypatch.setattr(initial_weights.logger, "warning", told.append)
    return told


def test_features_of_the_real_weights_are_the_published_nets(real_file, log):
    options = ("MODEL.RESNETS.OUT_FEATURES", str(list(ALL)), "SMALLOBJ.OUTPUT_STRIDE", "32")
    whole = ("SMALLOBJ.MOBILENET.LAST_CONV", "True")
    cfg = build_config("Base-MobileNetV2.yaml", [*MINE, *options, *whole])
    model = build_model(cfg).eval()
    SafeCheckpointer(model, cfg=cfg).load(str(real_file))
    # All but the head's; and no warning: the config's input is the one that they were trained on.
    (text,) = log
    assert "(tonylins/pytorch-mobilenet-v2): 260 of the model's 268 tensors loaded" in text
    assert "not used" not in text
    weights = torch.load(real_file, weights_only=True)
    x = torch.randn(1, 3, 65, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.backbone(x)
        expected = published(weights, x)
    for name, block in zip(ALL, (1, 3, 6, 13, 18)):
        torch.testing.assert_close(features[name], expected[block], rtol=1e-4, atol=1e-4)
    assert expected[18].std() > 0.1
    # Without the last convolution, the file's is left over.
    short = MobileNetV2().eval()
    load_weights(short, weights, source="file", complete=True)
    assert "in the file, not used: features.18.0.weight" in log[-1]
    with torch.no_grad():
        torch.testing.assert_close(short(x)["res5"], expected[17], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1.0, 0.35, 1.4])
def test_features_and_names_are_torchvisions(width, log):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.mobilenet_v2(weights=None, width_mult=width).eval()
    for name, value in theirs.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 1.5)
    ours = MobileNetV2(width=width, last_conv=True).eval()
    load_weights(ours, theirs.state_dict(), source="file", complete=True)
    assert "torchvision's MobileNetV2): 260 of the model's 260" in log[0]
    assert "in the file, not used: classifier.1.weight, classifier.1.bias" in log[0]
    x = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        expected = theirs.features(x)
        torch.testing.assert_close(ours(x)["res5"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("nested", "flat", "ours"),
    [
        ("features.0.0.weight", "features.0.0.weight", "features.0.conv.weight"),
        ("features.1.conv.0.1.bias", "features.1.conv.1.bias", "features.1.depthwise.norm.bias"),
        ("features.1.conv.2.bias", "features.1.conv.4.bias", "features.1.project.norm.bias"),
        ("features.2.conv.0.0.weight", "features.2.conv.0.weight", "features.2.expand.weight"),
        ("features.17.conv.2.weight", "features.17.conv.6.weight", "features.17.project.weight"),
        ("features.18.1.running_var",) * 2 + ("features.18.conv.norm.running_var",),
        ("classifier.1.weight",) * 3,
    ],
)
def test_names_of_both_kinds_of_files(nested, flat, ours):
    layouts = weight_layouts.TORCHVISION_MOBILENET, weight_layouts.FLAT_MOBILENET
    assert [layout.rename(name) for layout, name in zip(layouts, (nested, flat))] == [ours] * 2


def test_another_input_than_the_weights_had_is_told(narrow_cfg):
    """But not the choices of a ResNet."""
    cfg = narrow_cfg("MODEL.RESNETS.DEPTH", 101)
    told = weight_layouts.convention_mismatches(cfg, weight_layouts.FLAT_MOBILENET.conventions)
    keys = ["INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
    assert [text.split()[0] for text in told] == keys


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_dilated_nets_compute_the_same_at_more_positions(randomize, stride):
    whole = randomize(MobileNetV2(**NARROW)).eval()
    dilated = MobileNetV2(**NARROW, output_stride=stride).eval()
    dilated.load_state_dict(whole.state_dict())
    shapes = dilated.output_shape()
    assert [shapes[name].stride for name in ALL] == [min(s, stride) for s in STRIDES]
    x = torch.randn(1, 3, 101, 64)
    with torch.no_grad():
        coarse, fine = whole(x), dilated(x)
    for name, own in zip(ALL, STRIDES):
        assert fine[name].shape[-2:] == tuple(-(-s // min(own, stride)) for s in x.shape[-2:])
        step = max(1, own // stride)
        every = fine[name][..., ::step, ::step]
        torch.testing.assert_close(every, coarse[name], rtol=1e-4, atol=1e-4)
        assert coarse[name].std() > 0


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("size", [(64, 64), (101, 70)])
def test_sub_grids_are_the_dilated_convolution(randomize, stride, size):
    """With a norm that learns, nothing is split: the same outputs and gradients."""
    split = randomize(MobileNetV2(**NARROW, output_stride=stride)).eval().double()
    plain = MobileNetV2(**NARROW, output_stride=stride, norm="BN").eval().double()
    plain.load_state_dict(split.state_dict(), strict=False)
    for net, most in ((plain, 1), (split, 32 // stride)):
        assert max(block.subgrids for block in net.features[1:]) == most
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    found = [net(x) for net in (split, plain)]
    for name in ALL:
        torch.testing.assert_close(found[0][name], found[1][name])
    for outputs in found:
        sum(out.square().mean() for out in outputs.values()).backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in split.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad)


def test_outputs_of_the_config():
    names = ["MODEL.RESNETS.OUT_FEATURES", str(list(ALL))]
    cfg = build_config("Base-MobileNetV2.yaml", [*MINE, *names])
    backbone = build_backbone(cfg)
    expected = zip(ALL, CHANNELS, (2, 4, 8, 16, 16))
    assert backbone.output_shape() == {n: ShapeSpec(channels=c, stride=s) for n, c, s in expected}
    assert MobileNetV2(last_conv=True).output_shape()["res5"].channels == 1280
    cut = MobileNetV2(out_features=["res3"])
    assert len(cut.features) == 7
    assert cut.output_shape() == {"res3": ShapeSpec(channels=32, stride=8)}


@pytest.mark.parametrize("freeze_at", range(7))
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_freezing(freeze_at, norm):
    net = MobileNetV2(**NARROW, norm=norm, freeze_at=freeze_at, last_conv=True)
    frozen = (0, 2, 4, 7, 14, 19, 19)[freeze_at]
    for number, block in enumerate(net.features):
        assert {p.requires_grad for p in block.parameters()} == {number >= frozen}
        norms = {isinstance(m, FrozenBatchNorm2d) for n, m in block.named_modules() if "norm" in n}
        assert norms == {number < frozen or norm == "FrozenBN"}


WRONG = "a MobileNetV2, and the model is a ResNet", "a ResNet, and the model is a MobileNetV2"
NESTED, FLAT = "features.1.conv.0.0.weight", "features.1.conv.0.weight"
STEM = "backbone.stem.conv1.weight"


@pytest.mark.parametrize(
    ("build", "file", "told"),
    [
        ("narrow", {NESTED: (8, 1, 3, 3)}, WRONG[0]),
        ("narrow", {FLAT: (8, 1, 3, 3)}, WRONG[0]),
        ("mobile", {"layer1.0.conv1.weight": (4, 4, 1, 1)}, WRONG[1]),
        ("mobile", {"res2_0_branch2a_w": (4, 4, 1, 1)}, WRONG[1]),
        ("mobile", {STEM: (4, 3, 7, 7)}, WRONG[1]),
        ("mobile", {NESTED: (8, 1, 3, 3)}, r"another MobileNetV2 .*only in the model.*NET\.WIDTH"),
        ("mobile", {NESTED: (9, 1, 3, 3)}, "another MobileNetV2 .*other shapes"),
        ("mobile", {"features.0.weight": (64, 3, 3, 3)}, "fits nothing in the model"),
    ],
)
def test_a_file_of_another_backbone_is_one_clear_line(narrow_cfg, build, file, told):
    name = ("MODEL.BACKBONE.NAME", "build_mobilenet_v2_backbone", "SMALLOBJ.MOBILENET.WIDTH", 0.25)
    model = build_backbone(narrow_cfg(*(name if build == "mobile" else ())))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: torch.ones(shape) for key, shape in file.items()}
    with pytest.raises(ValueError, match=told) as error:
        load_weights(torch.nn.ModuleDict({"backbone": model}), weights, source="file.pth")
    assert str(error.value).startswith("file.pth")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("MODEL.RESNETS.NORM", "GN"), r"MODEL\.RESNETS\.NORM: unknown value 'GN'"),
        (("MODEL.RESNETS.OUT_FEATURES", "['res6']"), r"OUT_FEATURES: unknown value 'res6'"),
        (("SMALLOBJ.MOBILENET.WIDTH", "0"), r"SMALLOBJ\.MOBILENET\.WIDTH must be > 0, got 0"),
    ],
)
def test_refused_configs(options, told):
    with pytest.raises(ValueError, match=told):
        build_backbone(build_config("Base-MobileNetV2.yaml", [*MINE, *options]))
