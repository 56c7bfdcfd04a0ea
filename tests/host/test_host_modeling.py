"""Layers, ResNet, registries, image lists."""

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_backbone,
    build_model,
    build_sem_seg_head,
)
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList


def batch_norm(channels=5, seed=0):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_is_batch_norm_in_eval_mode(requires_grad):
    norm = batch_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    x = torch.randn(2, 5, 3, 4, requires_grad=requires_grad)
    assert frozen.eps == norm.eps
    torch.testing.assert_close(frozen.train()(x), norm(x))
    assert not list(frozen.parameters())
    if requires_grad:
        gradients = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (frozen, norm)]
        torch.testing.assert_close(*gradients)


def test_frozen_batch_norm_starts_as_the_identity_and_loads_weights_without_statistics():
    frozen = FrozenBatchNorm2d(4)
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(frozen(x), x)
    net = nn.Sequential(FrozenBatchNorm2d(2))
    net[0].running_mean.fill_(5)
    loaded = net.load_state_dict({"0.weight": torch.ones(2), "0.bias": torch.zeros(2)})
    assert not loaded.missing_keys
    assert net[0].running_mean.tolist() == [0, 0]
    assert net[0].running_var.tolist() == [1, 1]


def test_conv_normalises():
    torch.manual_seed(0)
    norm = batch_norm(4)
    conv = Conv2d(3, 4, 3, bias=False, norm=norm)
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(conv(x), norm(nn.functional.conv2d(x, conv.weight)))
    plain = Conv2d(3, 4, 3)
    assert list(plain.state_dict()) == ["weight", "bias"]
    assert plain.norm is None


def test_get_norm():
    kinds = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "FrozenBN": FrozenBatchNorm2d}
    for name, kind in {**kinds, "GN": nn.GroupNorm, "": type(None)}.items():
        assert type(get_norm(name, 32)) is kind
    with pytest.raises((ValueError, KeyError), match="FrozenBn"):
        get_norm("FrozenBn", 3)


def resnet_cfg(depth, **options):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.update(DEPTH=depth, **options)
    return cfg


def resnet_keys(depth):
    """The parameter names, written down by the rule."""
    norm_keys = ("weight", "bias", "running_mean", "running_var")
    convolutions = (1, 2) if depth < 50 else (1, 2, 3)
    names = ["stem.conv1"]
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    for stage, number in enumerate(blocks, start=2):
        for block in range(number):
            projects = block == 0 and (depth >= 50 or stage > 2)
            names += [f"res{stage}.{block}.shortcut"] * projects
            names += [f"res{stage}.{block}.conv{i}" for i in convolutions]
    return {f"{n}.{k}" for n in names for k in ("weight", *(f"norm.{k}" for k in norm_keys))}


@pytest.mark.parametrize(("depth", "number"), [(18, 100), (50, 265), (101, 520)])
def test_resnet_keys_are_detectron2s(depth, number):
    backbone = build_backbone(resnet_cfg(depth, OUT_FEATURES=["res5"]))
    keys = set(backbone.state_dict())
    assert keys == resnet_keys(depth)
    assert len(keys) == number
    width = {18: 512}.get(depth, 2048)
    assert backbone.output_shape() == {"res5": ShapeSpec(channels=width, stride=32)}


def test_resnet_returns_what_it_is_asked_for():
    names = ["stem", "res2", "res3"]
    cfg = resnet_cfg(50, OUT_FEATURES=names)
    backbone = build_backbone(cfg)
    assert not hasattr(backbone, "res4")
    features = backbone(torch.randn(1, 3, 64, 96))
    assert list(features) == names
    for name, shape in backbone.output_shape().items():
        size = (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == size
    assert (backbone.size_divisibility, backbone.padding_constraints) == (0, {})


def test_registries_build_what_the_config_names():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"

    def host_test_net(cfg):
        return nn.Linear(2, 3)

    def host_test_head(cfg, input_shape):
        return input_shape

    META_ARCH_REGISTRY.register(host_test_net)
    SEM_SEG_HEADS_REGISTRY.register(host_test_head)
    cfg.MODEL.META_ARCHITECTURE = "host_test_net"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "host_test_head"
    assert isinstance(build_model(cfg), nn.Linear)
    assert build_sem_seg_head(cfg, {"res2": 1}) == {"res2": 1}
    cfg.MODEL.BACKBONE.NAME = cfg.MODEL.META_ARCHITECTURE = "HostTestUnknown"
    for build in (build_backbone, build_model):
        with pytest.raises(KeyError, match="HostTestUnknown"):
            build(cfg)
    assert "build_resnet_backbone" in BACKBONE_REGISTRY
    assert issubclass(Backbone, nn.Module)


def test_image_list_pads_right_and_below():
    images = [torch.ones(3, 4, 5), torch.ones(3, 6, 2)]
    batch = ImageList.from_tensors(images, size_divisibility=4, pad_value=7.0)
    assert batch.tensor.shape == (2, 3, 8, 8)
    assert batch.image_sizes == [(4, 5), (6, 2)]
    for i, image in enumerate(images):
        _, height, width = image.shape
        assert torch.equal(batch.tensor[i, :, :height, :width], image)
        assert batch.tensor[i].sum() == image.numel() + 7 * (3 * 64 - image.numel())
    single = ImageList.from_tensors([torch.ones(4, 5, dtype=torch.int64)], 0, 255)
    assert single.tensor.shape == (1, 4, 5)
    square = {"square_size": 10, "size_divisibility": 4}
    assert ImageList.from_tensors(images, padding_constraints=square).tensor.shape[-2:] == (12, 12)


def test_sem_seg_postprocess_cuts_then_resizes():
    scores = torch.randn(2, 8, 8)
    out = sem_seg_postprocess(scores, (4, 6), 12, 9)
    expected = nn.functional.interpolate(scores[None, :, :4, :6], (12, 9), mode="bilinear")
    torch.testing.assert_close(out, expected[0])
