"""DeepLabV2's head: the sum of dilated 3x3 convolutions (ASPP).

Shapes: N images, C input channels, K classes (background included), h x w the feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj.modeling.loss import build_loss
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabV2Head(nn.Module):
    """ASPP head of DeepLabV2 (docs/method.md#recipe) under detectron2's head contract.

    Works in detectron2's own ``SemanticSegmentor`` and, through :meth:`layers`, in
    :class:`~d2_smallobj.modeling.segmentor.SizeBalancedSegmentor`.

    Args:
        input_shape: channels and stride of each backbone output.
        in_feature: the one that the head reads.
        num_classes: K, background included.
        dilations: one 3x3 convolution each; their outputs are summed.
        init_std: standard deviation of the initial weights; biases start at 0.
        loss: called as ``loss(logits, labels, size_weights)``, returns a scalar.
        ignore_value: label of pixels without a class; ``SemanticSegmentor`` reads it from here
            to pad the labels of smaller images.
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
        loss: nn.Module,
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
        self.aspp = nn.ModuleList(
            nn.Conv2d(
                input_shape[in_feature].channels,
                num_classes,
                3,
                padding=dilation,
                dilation=dilation,
            )
            for dilation in dilations
        )
        for convolution in self.aspp:
            nn.init.normal_(convolution.weight, std=init_std)
            nn.init.zeros_(convolution.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Map config keys to constructor arguments."""
        features = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
        if len(features) != 1:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.IN_FEATURES must name one backbone output for DeepLabV2Head, "
                f"got {list(features)}"
            )
        return {
            "input_shape": input_shape,
            "in_feature": features[0],
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "dilations": cfg.SMALLOBJ.ASPP_DILATIONS,
            "init_std": cfg.SMALLOBJ.ASPP_INIT_STD,
            "loss": build_loss(cfg),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def layers(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (N, K, h, w) at the stride of the feature map (N, C, h, w)."""
        x = features[self.in_feature]
        return sum(convolution(x) for convolution in self.aspp)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss of logits (N, K, h, w) on labels (N, H, W)."""
        return {"loss_sem_seg": self.loss(logits, targets)}

    def forward(
        self, features: Mapping[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """``(None, losses)`` in training, ``(upsampled logits, {})`` otherwise."""
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        logits = F.interpolate(
            logits.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )
        return logits, {}
