"""Initial weights in the layouts that they are published in."""

from d2_smallobj.modeling.weights.layouts import (
    CAFFE2,
    DETECTRON2,
    KAZUTO,
    TORCHVISION,
    Conventions,
    Layout,
    detect_layout,
)
from d2_smallobj.modeling.weights.loading import LoadedWeights, load_weights

__all__ = [
    "CAFFE2",
    "DETECTRON2",
    "KAZUTO",
    "TORCHVISION",
    "Conventions",
    "Layout",
    "LoadedWeights",
    "detect_layout",
    "load_weights",
]
