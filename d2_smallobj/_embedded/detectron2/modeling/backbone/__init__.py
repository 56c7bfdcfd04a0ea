"""Backbones."""

from detectron2.modeling.build import BACKBONE_REGISTRY, Backbone, build_backbone

from .resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "build_backbone",
]
