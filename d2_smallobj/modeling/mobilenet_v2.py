"""MobileNetV2 (Sandler et al. 2018, Table 2) as a detectron2 backbone: trains without a GPU.

Blocks are numbered as in torchvision (``features.0`` to ``features.18``), whose weight files load.

Shapes: N images, (N, C, H, W).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj._host import host
from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

# Expansion, output channels, number of blocks, stride of the first of them.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST_CHANNELS = 1280
# Output feature to the number of blocks up to it; res5 may go on to the last convolution.
_ENDS = {"stem": 2, "res2": 4, "res3": 7, "res4": 14, "res5": 18}
_NORMS = ("FrozenBN", "BN", "SyncBN")


def scaled_width(channels: float) -> int:
    """Round to a multiple of 8, at least 8, and up where nearest would lose over a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _convolution(
    channels: int, out_channels: int, kernel: int, norm: str, *, stride: int = 1, **spread: int
) -> Conv2d:
    layer = Conv2d(
        channels,
        out_channels,
        kernel,
        stride=stride,
        padding=spread.get("dilation", 1) * (kernel // 2),
        bias=False,
        norm=get_norm(norm, out_channels),
        **spread,
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer


class ConvReLU6(CNNBlockBase):
    """Convolution, norm and ReLU6: the first and the last block."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, norm: str
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.conv = _convolution(in_channels, out_channels, kernel, norm, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return F.relu6(self.conv(x), inplace=True)


class InvertedResidual(CNNBlockBase):
    """1x1 to ``expansion`` times the channels, 3x3 by channel, 1x1 without activation.

    The input is added where shapes agree. ``stride`` and ``dilation`` are those of the 3x3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        stride: int = 1,
        dilation: int = 1,
        residual: bool,
        norm: str,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        width = in_channels * expansion
        self.expand = _convolution(in_channels, width, 1, norm) if expansion > 1 else None
        # Padding of the sub-grids would count in the statistics of a norm that learns.
        self.subgrids = dilation if norm == "FrozenBN" else 1
        self.depthwise = _convolution(
            width, width, 3, norm, stride=stride, dilation=dilation // self.subgrids, groups=width
        )
        self.project = _convolution(width, out_channels, 1, norm)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        split = _split(out, self.subgrids)
        out = _join(F.relu6(self.depthwise(split), inplace=True), self.subgrids, out)
        out = self.project(out)
        return x + out if self.residual else out


def _split(x: torch.Tensor, step: int) -> torch.Tensor:
    """Take every ``step``-th row and column: (N, C, H, W) to (N step^2, C, H / step, W / step).

    On these sub-grids, padded with zeros to equal size, a convolution without dilation is the
    dilated one on x, and a CPU computes its gradients faster.
    """
    if step == 1:
        return x
    height, width = x.shape[2:]
    rows = F.pad(x, (0, -width % step, 0, -height % step)).permute(0, 2, 3, 1)
    grids = rows.unflatten(2, (-1, step)).unflatten(1, (-1, step)).permute(0, 2, 4, 1, 3, 5)
    return grids.flatten(0, 2).permute(0, 3, 1, 2)


def _join(split: torch.Tensor, step: int, like: torch.Tensor) -> torch.Tensor:
    """Undo :func:`_split` of a tensor that had the size of ``like``."""
    if step == 1:
        return split
    grids = split.permute(0, 2, 3, 1).unflatten(0, (-1, step, step)).permute(0, 3, 1, 4, 2, 5)
    rows = grids.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    return rows[:, :, : like.shape[2], : like.shape[3]]


class MobileNetV2(Backbone):
    """Blocks ``features.N``; outputs by the names of a ResNet's, at its strides.

    "stem" (stride 2) is the output of ``features.1``, "res2" (4) of 3, "res3" (8) of 6, "res4" (16)
    of 13, and "res5" (32) of 17, or of 18 with ``last_conv``.

    A stride that would exceed ``output_stride`` is left out, and the blocks *after* it are dilated
    instead: every 3x3 then reads the positions that it read at stride 32, so that the outputs at
    every second (fourth, ...) position are those of the net at stride 32.

    Args:
        in_channels: channels of the images.
        out_features: what ``forward`` returns; blocks after the last one are not built.
        output_stride: upper limit of the strides, a power of two from 4.
        norm: "FrozenBN", "BN" or "SyncBN".
        width: multiplier of the channels, rounded to multiples of 8 as in torchvision.
        last_conv: whether "res5" includes ``features.18`` (1280 channels instead of 320).
        freeze_at: 1 freezes "stem", 2 also "res2", and so on; 0: nothing.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        out_features: Sequence[str] = ("res5",),
        output_stride: int = 32,
        norm: str = "FrozenBN",
        width: float = 1.0,
        last_conv: bool = False,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        ends = {**_ENDS, "res5": _ENDS["res5"] + last_conv}
        for name in out_features:
            look_up_option("MODEL.RESNETS.OUT_FEATURES", name, ends)
        look_up_option("MODEL.RESNETS.NORM", norm, _NORMS)
        channels, stride, dilation = scaled_width(32 * width), 2, 1
        blocks: list[CNNBlockBase] = [ConvReLU6(in_channels, channels, 3, stride=2, norm=norm)]
        strides = [stride]
        for expansion, out_channels, count, stage_stride in _STAGES:
            out_channels = scaled_width(out_channels * width)
            for index in range(count):
                wanted = stage_stride if index == 0 else 1
                own_stride = wanted if stride * wanted <= output_stride else 1
                blocks.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        expansion=expansion,
                        stride=own_stride,
                        dilation=dilation,
                        residual=wanted == 1 and channels == out_channels,
                        norm=norm,
                    )
                )
                channels, stride = out_channels, stride * own_stride
                dilation *= wanted // own_stride
                strides.append(stride)
        if last_conv:
            last_channels = scaled_width(_LAST_CHANNELS * max(1.0, width))
            blocks.append(ConvReLU6(channels, last_channels, 1, norm=norm))
            strides.append(stride)
        blocks = blocks[: max(ends[name] for name in out_features)]
        self.features = nn.Sequential(*blocks)
        self._out_features = list(out_features)
        self._ends = {ends[name]: name for name in out_features}
        self._out_feature_channels = {
            n: blocks[end - 1].out_channels for end, n in self._ends.items()
        }
        self._out_feature_strides = {n: strides[end - 1] for end, n in self._ends.items()}
        frozen = [0, *ends.values()][freeze_at] if freeze_at < len(ends) else len(blocks)
        for block in blocks[:frozen]:
            block.freeze()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the feature maps named in ``out_features`` for (N, in_channels, H, W) images."""
        outputs = {}
        for number, block in enumerate(self.features, start=1):
            x = block(x)
            if number in self._ends:
                outputs[self._ends[number]] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MobileNetV2:
    """Build a MobileNetV2 with ``SMALLOBJ.OUTPUT_STRIDE`` from ``SMALLOBJ.MOBILENET``.

    ``MODEL.RESNETS.OUT_FEATURES`` and ``.NORM`` hold as for a ResNet, so that a config for one
    needs no other key than ``MODEL.BACKBONE.NAME``; the other keys of that node have no effect.
    """
    return _build(cfg, input_shape, cfg.SMALLOBJ.OUTPUT_STRIDE)


def build_mobilenet_v2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build detectron2's FPN (``MODEL.FPN``) on the MobileNetV2 at strides 4 to 32.

    As with detectron2's own FPN, ``SMALLOBJ.OUTPUT_STRIDE`` has no effect. Registered under the
    real detectron2 only.
    """
    fpn = importlib.import_module("detectron2.modeling.backbone").FPN
    return fpn(
        bottom_up=_build(cfg, input_shape, 32),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


if host().name == "detectron2":
    BACKBONE_REGISTRY.register(build_mobilenet_v2_fpn_backbone)


def _build(cfg: CfgNode, input_shape: ShapeSpec, output_stride: int) -> MobileNetV2:
    options = cfg.SMALLOBJ.MOBILENET
    return MobileNetV2(
        input_shape.channels,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        output_stride=output_stride,
        norm=cfg.MODEL.RESNETS.NORM,
        width=options.WIDTH,
        last_conv=options.LAST_CONV,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
