"""Layouts of published weights: the names of their tensors, and the input they were trained on.

A layout is recognised by a name that only it has. Its names become detectron2's without the
model's prefixes (``res2.0.conv1.weight``, ``aspp.0.bias``); :mod:`.initial_weights` finds their
places in a model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode

# Published means of one data set differ by under a level, another channel order by twenty.
_TOLERANCE = 3.0
# Prefixes that training code adds to a network's names; none is part of a layout.
_WRAPPERS = re.compile(r"^(?:(?:module|model|net|encoder|backbone|base|scale)\.)+")


class Conventions(NamedTuple):
    """Input and geometry that a net was trained with; the config must give it the same.

    ``pixel_mean`` and ``pixel_std`` are in the order of ``image_format``, ``"BGR"`` or ``"RGB"``.
    The others are None where the net has no such choice, or it is not known to matter.
    """

    image_format: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    stride_in_1x1: bool | None = None
    stem_pool_ceil: bool | None = None


class Layout(NamedTuple):
    """One way to name the tensors of a backbone or DeepLab.

    ``mark`` matches a name that only files of this layout hold; ``rename`` maps a name, less
    wrappers, to detectron2's.
    """

    description: str
    mark: re.Pattern[str]
    rename: Callable[[str], str]
    conventions: Conventions | None = None


_CAFFE_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CAFFE_BLOCK = re.compile(r"^(res\d)_(\d+)_branch(1|2[abc])_(.+)$")
# The scale and shift of a norm, with its statistics folded in (s, b) or beside them.
_CAFFE_ENDS = {
    **{"w": "weight", "b": "bias"},
    **dict.fromkeys(("bn_s", "bn_gamma", "gn_s"), "norm.weight"),
    **dict.fromkeys(("bn_b", "bn_beta", "gn_b"), "norm.bias"),
    **dict.fromkeys(("bn_rm", "bn_running_mean"), "norm.running_mean"),
    **dict.fromkeys(("bn_riv", "bn_running_var"), "norm.running_var"),
}
_CAFFE_STEM = re.compile(r"^(?:res_)?conv1_(.+)$")


def _rename_caffe2(name: str) -> str:
    """``res2_0_branch2a_bn_s`` -> ``res2.0.conv1.norm.weight``."""
    name = name.rsplit("/", 1)[-1]  # "gpu_0/..."
    block = _CAFFE_BLOCK.match(name)
    if block and block[4] in _CAFFE_ENDS:
        return f"{block[1]}.{block[2]}.{_CAFFE_BRANCHES[block[3]]}.{_CAFFE_ENDS[block[4]]}"
    stem = _CAFFE_STEM.match(name)
    if stem and stem[1] in _CAFFE_ENDS:
        return f"stem.conv1.{_CAFFE_ENDS[stem[1]]}"
    return name


_TORCHVISION_BLOCK = re.compile(r"^layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)$")


def _rename_torchvision(name: str) -> str:
    """``layer1.0.bn1.bias`` -> ``res2.0.conv1.norm.bias``."""
    block = _TORCHVISION_BLOCK.match(name)
    if block:
        stage, number, kind, index, end = block.groups()
        is_norm = index == "1" if kind == "downsample." else kind == "bn"
        layer = "shortcut" if kind == "downsample." else f"conv{index}"
        return f"res{int(stage) + 1}.{number}.{layer}{'.norm' if is_norm else ''}.{end}"
    name = re.sub(r"^bn1\.", "stem.conv1.norm.", name)
    return re.sub(r"^conv1\.", "stem.conv1.", name)


_KAZUTO_UNITS = {"reduce": "conv1", "conv3x3": "conv2", "increase": "conv3"}
_KAZUTO_UNITS |= dict.fromkeys(("shortcut", "proj"), "shortcut")
_KAZUTO_BLOCK = re.compile(
    rf"^layer([2-5])\.block(\d+)\.({'|'.join(_KAZUTO_UNITS)})\.(conv|bn)\.(.+)$"
)


def _rename_kazuto(name: str) -> str:
    """``layer2.block1.reduce.bn.bias`` -> ``res2.0.conv1.norm.bias``."""
    block = _KAZUTO_BLOCK.match(name)
    if block:
        stage, number, unit, kind, end = block.groups()
        norm = ".norm" if kind == "bn" else ""
        return f"res{stage}.{int(number) - 1}.{_KAZUTO_UNITS[unit]}{norm}.{end}"
    name = re.sub(r"^layer1\.conv1\.conv\.", "stem.conv1.", name)
    name = re.sub(r"^layer1\.conv1\.bn\.", "stem.conv1.norm.", name)
    return re.sub(r"^aspp\.(?:stages\.)?c(\d+)\.", r"aspp.\1.", name)


_MOBILENET_PARTS = tuple(
    f"{layer}{norm}" for layer in ("expand", "depthwise", "project") for norm in ("", ".norm")
)
# A norm stands beside its convolution: in torchvision's files in a list with it, in the older ones
# of tonylins/pytorch-mobilenet-v2 in one list with all of the block, activations included.
_MOBILENET_BLOCK = re.compile(r"^features\.(\d+)\.(conv\.)?(\d(?:\.\d)?)\.([a-z_]+)$")
_MOBILENET_PLACES = {
    "nested": dict(zip(["0.0", "0.1", "1.0", "1.1", "2", "3"], _MOBILENET_PARTS)),
    "nested, no expansion": dict(zip(["0.0", "0.1", "1", "2"], _MOBILENET_PARTS[2:])),
    "flat": dict(zip(["0", "1", "3", "4", "6", "7"], _MOBILENET_PARTS)),
    "flat, no expansion": dict(zip(["0", "1", "3", "4"], _MOBILENET_PARTS[2:])),
}


def _rename_mobilenet(name: str, style: str) -> str:
    """``features.1.conv.1.weight`` -> ``features.1.project.weight``, and so on."""
    block = _MOBILENET_BLOCK.match(name)
    if not block:
        return name
    number, inside, place, end = block.groups()
    places = {"0": "conv", "1": "conv.norm"}  # of the first and the last block
    if inside:
        places = _MOBILENET_PLACES[style + ", no expansion" * (number == "1")]
    return f"features.{number}.{places[place]}.{end}" if place in places else name


# Mean-subtracted BGR of Caffe's nets.
_CAFFE_INPUT = ("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
TORCHVISION_CONVENTIONS = Conventions(
    "RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), stride_in_1x1=False
)

CAFFE2 = Layout(
    "Caffe2 blobs (detectron2's MSRA models)",
    re.compile(r"^(?:.*/)?res2_0_branch2[ab]_w$"),
    _rename_caffe2,
    Conventions(*_CAFFE_INPUT, stride_in_1x1=True),
)
TORCHVISION = Layout(
    "torchvision's ResNet",
    re.compile(r"^layer1\.0\.conv1\.weight$"),
    _rename_torchvision,
    TORCHVISION_CONVENTIONS,
)
KAZUTO = Layout(
    "kazuto1011/deeplab-pytorch",
    re.compile(r"^layer2\.block1\.reduce\.conv\.weight$"),
    _rename_kazuto,
    Conventions(*_CAFFE_INPUT, stride_in_1x1=True, stem_pool_ceil=True),
)
_MOBILENET_CONVENTIONS = TORCHVISION_CONVENTIONS._replace(stride_in_1x1=None)
TORCHVISION_MOBILENET = Layout(
    "torchvision's MobileNetV2",
    re.compile(r"^features\.1\.conv\.0\.0\.weight$"),
    functools.partial(_rename_mobilenet, style="nested"),
    _MOBILENET_CONVENTIONS,
)
FLAT_MOBILENET = Layout(
    "tonylins/pytorch-mobilenet-v2",
    re.compile(r"^features\.1\.conv\.0\.weight$"),
    functools.partial(_rename_mobilenet, style="flat"),
    _MOBILENET_CONVENTIONS,
)
DETECTRON2 = Layout("detectron2's names", re.compile(r"(?!)"), lambda name: name)


def detect_layout(names: Iterable[str]) -> Layout:
    """Return the layout of names; :data:`DETECTRON2` where they have the mark of no other."""
    bare = [strip_wrappers(name) for name in names]
    for layout in (CAFFE2, TORCHVISION, KAZUTO, TORCHVISION_MOBILENET, FLAT_MOBILENET):
        if any(layout.mark.match(name) for name in bare):
            return layout
    return DETECTRON2


def strip_wrappers(name: str) -> str:
    """Remove from a name the prefixes of what the network was wrapped in."""
    return _WRAPPERS.sub("", name)


def convention_mismatches(cfg: CfgNode, conventions: Conventions) -> list[str]:
    """Describe every config key that does not fit the weights, with the value that would."""
    resnet, own = cfg.MODEL.RESNETS, conventions
    now: dict[str, tuple[Any, Any]] = {
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, own.image_format),
        "MODEL.PIXEL_MEAN": (list(cfg.MODEL.PIXEL_MEAN), list(own.pixel_mean)),
        "MODEL.PIXEL_STD": (list(cfg.MODEL.PIXEL_STD), list(own.pixel_std)),
    }
    # ResNet-18 and -34 have no 1x1 convolution but the shortcut.
    if own.stride_in_1x1 is not None and resnet.DEPTH >= 50:
        now["MODEL.RESNETS.STRIDE_IN_1X1"] = (resnet.STRIDE_IN_1X1, own.stride_in_1x1)
    if own.stem_pool_ceil is not None:
        now["SMALLOBJ.STEM_POOL_CEIL"] = (cfg.SMALLOBJ.STEM_POOL_CEIL, own.stem_pool_ceil)
    return [
        f"{key} is {value}, they need {needed}"
        for key, (value, needed) in now.items()
        if not (_near(value, needed) if isinstance(needed, list) else value == needed)
    ]


def _near(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= _TOLERANCE for x, y in zip(a, b))
