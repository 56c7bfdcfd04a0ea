"""Backbones."""

# ruff: noqa: F401 (all names are for users)

from detectron2.modeling.build import BACKBONE_REGISTRY, Backbone, build_backbone

from .resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
