"""DeepLabV2, MobileNetV2, and a segmentor with a loss of choice; importing registers all."""

from d2_smallobj.modeling.deeplab_v2 import (
    DeepLabV2Head,
    DilatedBasicBlock,
    build_dilated_resnet_backbone,
)
from d2_smallobj.modeling.mobilenet_v2 import MobileNetV2, build_mobilenet_v2_backbone
from d2_smallobj.modeling.segmentor import SizeBalancedSegmentor, build_size_weights
from d2_smallobj.modeling.uncertain_segmentor import UncertainSegmentor

__all__ = [
    "DeepLabV2Head",
    "DilatedBasicBlock",
    "MobileNetV2",
    "SizeBalancedSegmentor",
    "UncertainSegmentor",
    "build_dilated_resnet_backbone",
    "build_mobilenet_v2_backbone",
    "build_size_weights",
]
