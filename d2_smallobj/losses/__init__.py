"""Losses for small objects: size weights, size-balanced cross-entropy, weight consolidation.

Pure PyTorch, numpy and OpenCV: usable in any training code. The names below are the surface; the
modules' own docstrings give formulas, shapes and errors.
"""

from d2_smallobj.losses.ewc import ElasticWeightConsolidation
from d2_smallobj.losses.ewc_penalty import optimized_parameters, plain_name
from d2_smallobj.losses.fisher import empirical_fisher
from d2_smallobj.losses.size_balanced import (
    SizeWeightedCrossEntropy,
    batch_size_weights,
    resize_labels,
    size_weighted_cross_entropy,
)
from d2_smallobj.losses.size_weights import SizeWeights, size_weights
from d2_smallobj.losses.uncertainty import UncertaintyCrossEntropy, soften

__all__ = [
    "ElasticWeightConsolidation",
    "SizeWeightedCrossEntropy",
    "SizeWeights",
    "UncertaintyCrossEntropy",
    "batch_size_weights",
    "empirical_fisher",
    "optimized_parameters",
    "plain_name",
    "resize_labels",
    "size_weighted_cross_entropy",
    "size_weights",
    "soften",
]
