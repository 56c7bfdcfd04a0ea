"""DeepLabV2 (docs/method.md#recipe): a dilated ResNet, and the sum of dilated convolutions (ASPP).

The ResNet is assembled from detectron2's own stem and blocks.

Shapes: N images, C input channels, K classes (background included), h x w the feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.modeling.segmentor import brings_a_loss, loss_options, resized
from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode, configurable
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.backbone import BasicStem, BottleneckBlock, ResNet

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_FEATURES = ("stem", "res2", "res3", "res4", "res5")


class CeilPoolStem(BasicStem):
    """detectron2's stem, with sizes rounded up in the max pooling (kazuto1011/deeplab-pytorch)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ~H / 4, ~W / 4)."""
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1, ceil_mode=True)


class DilatedBasicBlock(CNNBlockBase):
    """The two-convolution block of ResNet-18/34 with dilation, which detectron2's own lacks.

    Parameter names are those of ``detectron2.modeling.backbone.BasicBlock``: checkpoints load.
    ``stride`` is that of the first convolution, ``dilation`` that of both.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, norm: str
    ) -> None:
        super().__init__(in_channels, out_channels, stride)

        def convolution(channels: int, kernel: int, stride: int) -> Conv2d:
            spread = {"padding": dilation, "dilation": dilation} if kernel > 1 else {}
            own_norm = get_norm(norm, out_channels)
            layer = Conv2d(
                channels, out_channels, kernel, stride=stride, bias=False, norm=own_norm, **spread
            )
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            return layer

        self.conv1 = convolution(in_channels, 3, stride)
        self.conv2 = convolution(out_channels, 3, 1)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = convolution(in_channels, 1, stride) if changes_shape else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv2(F.relu_(self.conv1(x))) + residual)


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet with ``SMALLOBJ.OUTPUT_STRIDE`` from ``MODEL.RESNETS``.

    detectron2's own builder dilates res5 only; DeepLabV2 at stride 8 needs dilation 2 in res4 and
    4 in res5. Parameter names stay detectron2's.
    """
    options = cfg.MODEL.RESNETS
    if options.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH must be one of {sorted(BLOCKS_PER_STAGE)}, got {options.DEPTH}"
        )
    for name in options.OUT_FEATURES:
        look_up_option("MODEL.RESNETS.OUT_FEATURES", name, _FEATURES)
    stem_class = CeilPoolStem if cfg.SMALLOBJ.STEM_POOL_CEIL else BasicStem
    stem = stem_class(
        in_channels=input_shape.channels, out_channels=options.STEM_OUT_CHANNELS, norm=options.NORM
    )
    block: dict[str, Any] = {"block_class": DilatedBasicBlock}
    if options.DEPTH >= 50:
        block = {
            "block_class": BottleneckBlock,
            "num_groups": options.NUM_GROUPS,
            "stride_in_1x1": options.STRIDE_IN_1X1,
        }
    stages = []
    in_channels, stride, dilation = options.STEM_OUT_CHANNELS, stem.stride, 1
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[options.DEPTH]):
        first_stride = 2 if index > 0 and stride * 2 <= cfg.SMALLOBJ.OUTPUT_STRIDE else 1
        stride *= first_stride
        dilation *= 2 if index > 0 and first_stride == 1 else 1
        out_channels = options.RES2_OUT_CHANNELS * 2**index
        if options.DEPTH >= 50:
            block["bottleneck_channels"] = options.NUM_GROUPS * options.WIDTH_PER_GROUP * 2**index
        stages.append(
            ResNet.make_stage(
                num_blocks=num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                dilation=dilation,
                norm=options.NORM,
                **block,
            )
        )
        in_channels = out_channels
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return ResNet(stem, stages, out_features=options.OUT_FEATURES, freeze_at=freeze_at)


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabV2Head(nn.Module):
    """ASPP head of DeepLabV2 under detectron2's head contract.

    Works in detectron2's own ``SemanticSegmentor`` and, through :meth:`layers`, in
    :class:`~d2_smallobj.modeling.segmentor.SizeBalancedSegmentor`.

    Args:
        input_shape: channels and stride of each backbone output.
        in_feature: the one that the head reads.
        num_classes: K, background included.
        dilations: one 3x3 convolution each; their outputs are summed.
        init_std: standard deviation of the initial weights; biases start at 0.
        loss: called as ``loss(logits, labels)``, returns a scalar; ``None`` where the
            meta-architecture has the loss.
        ignore_value: label with which ``SemanticSegmentor`` pads smaller images.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        in_feature: str,
        num_classes: int,
        dilations: Sequence[int] = (6, 12, 18, 24),
        init_std: float = 0.01,
        loss: nn.Module | None = None,
        ignore_value: int = 255,
    ) -> None:
        super().__init__()
        if in_feature not in input_shape:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES: {in_feature!r} is not among the backbone's "
                f"outputs {sorted(input_shape)} (MODEL.RESNETS.OUT_FEATURES)"
            )
        self.in_feature = in_feature
        self.common_stride = input_shape[in_feature].stride
        self.loss = loss
        self.ignore_value = ignore_value
        channels = input_shape[in_feature].channels
        convolutions = [
            nn.Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        ]
        for convolution in convolutions:
            nn.init.normal_(convolution.weight, std=init_std)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        self.aspp = nn.ModuleList(convolutions)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Map config keys to constructor arguments."""
        head = cfg.MODEL.SEM_SEG_HEAD
        if len(head.IN_FEATURES) != 1:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.IN_FEATURES must name one backbone output for DeepLabV2Head, "
                f"got {list(head.IN_FEATURES)}"
            )
        return {
            "input_shape": input_shape,
            "in_feature": head.IN_FEATURES[0],
            "num_classes": head.NUM_CLASSES,
            "dilations": cfg.SMALLOBJ.ASPP_DILATIONS,
            "init_std": cfg.SMALLOBJ.ASPP_INIT_STD,
            "loss": None if brings_a_loss(cfg) else SizeWeightedCrossEntropy(**loss_options(cfg)),
            "ignore_value": head.IGNORE_VALUE,
        }

    def layers(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (N, K, h, w) at the stride of the feature map (N, C, h, w)."""
        x = features[self.in_feature]
        return sum(convolution(x) for convolution in self.aspp)

    def forward(
        self, features: Mapping[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """``(None, losses)`` in training, ``(upsampled logits, {})`` otherwise."""
        logits = self.layers(features)
        if self.training:
            assert self.loss is not None
            return None, {"loss_sem_seg": self.loss(logits, targets)}
        size = [side * self.common_stride for side in logits.shape[-2:]]
        return resized(logits.float(), size), {}
