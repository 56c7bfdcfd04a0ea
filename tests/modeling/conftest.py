"""Narrow models: the recipe's geometry at a hundredth of its width."""

import pathlib

import pytest
import torch

import d2_smallobj
from d2_smallobj.engine import build_config
from detectron2.modeling import build_model

_BASE = pathlib.Path(__file__).resolve().parents[2] / "configs/Base-DeepLabV2-R101.yaml"
_NARROW = (
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "4"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.RESNETS.DEPTH", "18"),
    *("SMALLOBJ.ASPP_INIT_STD", "0.5", "SMALLOBJ.STEM_POOL_CEIL", "False"),
)


@pytest.fixture(scope="session")
def narrow_cfg():
    """``narrow_cfg(key, value, ...)``: the base config, ResNet-18, few channels, 5 classes."""

    def make(*options):
        return build_config(str(_BASE), [*_NARROW, *map(str, options)])

    return make


@pytest.fixture
def build(narrow_cfg):
    """``build(key, value, ...)``: a model of :func:`narrow_cfg`, its weights from one seed."""

    def make(*options):
        torch.manual_seed(0)
        return build_model(narrow_cfg(*options))

    return make


@pytest.fixture(scope="session")
def randomize():
    """Give parameters and norm statistics values with which all of them matter."""

    def fill(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 4:
                fan_in = tensor[0].numel()
                tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            elif "running_var" in name or ("norm" in name and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.2, generator=generator)
        return model

    return fill


@pytest.fixture
def fpn_model(build):
    """``fpn_model(key, value, ...)``: detectron2's FPN and its head, on the real host only."""
    if d2_smallobj.host().name != "detectron2":
        pytest.skip("the stand-in has no SemSegFPNHead")

    def make(*options):
        return build(
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
            *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES"),
            *("['res2', 'res3', 'res4', 'res5']", "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"),
            *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"),
            *options,
        )

    return make


@pytest.fixture
def batch():
    """Two images of different sizes with labels in 0..4 and some ignored pixels."""
    generator = torch.Generator().manual_seed(3)
    inputs = []
    for height, width in ((40, 56), (48, 32)):
        labels = torch.zeros(height, width, dtype=torch.int64)
        labels[4:20, 6:26] = 1
        labels[24:27, 8:11] = 3
        labels[30:38, 20:30] = 4
        labels[28:30, 15:] = 255
        image = torch.rand(3, height, width, generator=generator) * 255
        inputs.append({"image": image, "sem_seg": labels})
    return inputs
