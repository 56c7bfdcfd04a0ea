"""DeepLabV2 and a segmentor that takes its loss as a component; importing registers both."""

from d2_smallobj.modeling.deeplab_v2 import (
    DeepLabV2Head,
    DilatedBasicBlock,
    build_dilated_resnet_backbone,
)
from d2_smallobj.modeling.segmentor import SizeBalancedSegmentor, build_size_weights
from d2_smallobj.modeling.uncertain_segmentor import UncertainSegmentor

__all__ = [
    "DeepLabV2Head",
    "DilatedBasicBlock",
    "SizeBalancedSegmentor",
    "UncertainSegmentor",
    "build_dilated_resnet_backbone",
    "build_size_weights",
]
