"""ResNets with detectron2's parameter names and initialisation.

Shapes: (N, C, H, W); the stem divides H and W by 4, res3 to res5 by their first block's stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.build import BACKBONE_REGISTRY, Backbone


def _conv(channels: int, out_channels: int, kernel: int, norm: str, **options: int) -> Conv2d:
    return Conv2d(
        channels, out_channels, kernel, bias=False, norm=get_norm(norm, out_channels), **options
    )


class BasicStem(CNNBlockBase):
    """7x7 convolution with stride 2, ReLU, and max pooling with stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2, padding=3)
        c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class _ResidualBlock(CNNBlockBase):
    """Convolutions with ReLU between them, added to the input or to its 1x1 projection."""

    def _assemble(self, convolutions: Sequence[Conv2d], norm: str) -> None:
        self.shortcut = None
        if self.in_channels != self.out_channels:
            self.shortcut = _conv(self.in_channels, self.out_channels, 1, norm, stride=self.stride)
        for number, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{number}", convolution)
        self._convolutions = tuple(convolutions)
        # The order of drawing random numbers is part of the interface: one seed, one net.
        for layer in (*convolutions, self.shortcut):
            if layer is not None:
                c2_msra_fill(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, (N, out_channels, H / stride, W / stride)."""
        *first, last = self._convolutions
        out = x
        for convolution in first:
            out = F.relu_(convolution(out))
        out = last(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions, of ResNet-18 and -34."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN"
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        first = _conv(in_channels, out_channels, 3, norm, stride=stride, padding=1)
        self._assemble([first, _conv(out_channels, out_channels, 3, norm, padding=1)], norm)


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3, 1x1 convolutions, of ResNet-50 and deeper.

    Groups and dilation are those of the 3x3; so is the stride, unless it is ``stride_in_1x1``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        width = bottleneck_channels
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        middle = {"padding": dilation, "dilation": dilation, "groups": num_groups}
        convolutions = [
            _conv(in_channels, width, 1, norm, stride=first),
            _conv(width, width, 3, norm, stride=second, **middle),
            _conv(width, out_channels, 1, norm),
        ]
        self._assemble(convolutions, norm)


class ResNet(Backbone):
    """A stem and stages ``res2``, ``res3``, ...

    Args:
        stem: the first layers.
        stages: lists of blocks.
        out_features: what ``forward`` returns, of "stem", "res2", ...; stages after the last
            one named are not built.
        freeze_at: 1 freezes the stem, 2 also res2, and so on; 0: nothing.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        *,
        out_features: Sequence[str],
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self._out_features = list(out_features)
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        stride = stem.stride
        for number, blocks in enumerate(stages, start=2):
            if not any(f"res{i}" in out_features for i in range(number, 2 + len(stages))):
                break
            name = f"res{number}"
            self.add_module(name, nn.Sequential(*blocks))
            for block in blocks:
                stride *= block.stride
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = blocks[-1].out_channels
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        parts = [[self.stem], *list(self.children())[1:]]
        for part in parts[:freeze_at]:
            for block in part:
                block.freeze()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the feature maps named in ``out_features`` for (N, C, H, W) images."""
        outputs = {}
        for name, part in self.named_children():
            x = part(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase],
        num_blocks: int,
        *,
        in_channels: int,
        out_channels: int,
        **kwargs: Any,
    ) -> list[CNNBlockBase]:
        """Build the blocks of a stage.

        ``kwargs`` are arguments of the blocks; ``xx_per_block`` lists the ``xx`` of each one.
        """
        suffix = "_per_block"
        blocks = []
        for i in range(num_blocks):
            options = {
                name.removesuffix(suffix): value[i] if name.endswith(suffix) else value
                for name, value in kwargs.items()
            }
            channels = out_channels if blocks else in_channels
            blocks.append(block_class(channels, out_channels, **options))
        return blocks


_BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet of ``MODEL.RESNETS``, frozen up to ``MODEL.BACKBONE.FREEZE_AT``.

    Raises:
        ValueError: for a ResNet-18 or -34 with groups or dilation.
    """
    options = cfg.MODEL.RESNETS
    basic = options.DEPTH < 50
    if basic and (options.RES5_DILATION, options.NUM_GROUPS) != (1, 1):
        raise ValueError(
            f"MODEL.RESNETS: ResNet-{options.DEPTH} has neither dilation nor groups, got "
            f"RES5_DILATION {options.RES5_DILATION} and NUM_GROUPS {options.NUM_GROUPS}"
        )
    channels = options.STEM_OUT_CHANNELS
    stem = BasicStem(input_shape.channels, channels, options.NORM)
    stages = []
    for i, number in enumerate(_BLOCKS_PER_STAGE[options.DEPTH]):
        dilation = options.RES5_DILATION if i == 3 else 1
        block: dict[str, Any] = {"block_class": BasicBlock}
        if not basic:
            block = {
                "block_class": BottleneckBlock,
                "bottleneck_channels": options.NUM_GROUPS * options.WIDTH_PER_GROUP * 2**i,
                "stride_in_1x1": options.STRIDE_IN_1X1,
                "dilation": dilation,
                "num_groups": options.NUM_GROUPS,
            }
        stages.append(
            ResNet.make_stage(
                num_blocks=number,
                stride_per_block=[1 if i == 0 or dilation > 1 else 2] + [1] * (number - 1),
                in_channels=channels,
                out_channels=options.RES2_OUT_CHANNELS * 2**i,
                norm=options.NORM,
                **block,
            )
        )
        channels = options.RES2_OUT_CHANNELS * 2**i
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return ResNet(stem, stages, out_features=options.OUT_FEATURES, freeze_at=freeze_at)
