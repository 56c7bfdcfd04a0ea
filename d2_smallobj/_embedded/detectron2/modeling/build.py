"""Registries and builders of models, backbones and heads; the interface of backbones."""

from __future__ import annotations

from fvcore.common.registry import Registry
from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

META_ARCH_REGISTRY = Registry("META_ARCH")
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
BACKBONE_REGISTRY = Registry("BACKBONE")


def build_model(cfg: CfgNode) -> nn.Module:
    """Build ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``, without loading weights."""
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(cfg.MODEL.DEVICE)


def build_sem_seg_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``MODEL.SEM_SEG_HEAD.NAME`` for feature maps of these shapes."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


class Backbone(nn.Module):
    """A network from (N, C, H, W) images to feature maps by name.

    A subclass implements ``forward``, and sets ``_out_features`` (names),
    ``_out_feature_channels`` and ``_out_feature_strides`` (by name) or overrides
    :meth:`output_shape`.
    """

    @property
    def size_divisibility(self) -> int:
        """Divisor that height and width of the input must have; 0: none."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further constraints, see ``ImageList.from_tensors``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every feature map that ``forward`` returns."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {f: ShapeSpec(channels=channels[f], stride=strides[f]) for f in self._out_features}


def build_backbone(cfg: CfgNode) -> Backbone:
    """Build ``MODEL.BACKBONE.NAME`` for images with as many channels as ``MODEL.PIXEL_MEAN``."""
    image = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    return BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, image)
