"""The plugin's whole surface; importing it registers architectures, heads and data sets."""

from __future__ import annotations

# Imported for registration.
from d2_smallobj import modeling  # noqa: F401
from d2_smallobj.config import add_smallobj_config
from d2_smallobj.config_rules import validate_config
from d2_smallobj.data import SemSegMapper, build_test_loader, build_train_loader, register_all
from d2_smallobj.engine import TwoTaskTrainer, build_config
from d2_smallobj.evaluation import SmallObjectEvaluator, add_small_objects
from d2_smallobj.losses.ewc import ElasticWeightConsolidation
from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.losses.size_weights import SizeWeights, size_weights
from d2_smallobj.losses.uncertainty import UncertaintyCrossEntropy
from d2_smallobj.modeling import DeepLabV2Head, SizeBalancedSegmentor, UncertainSegmentor

__all__ = [
    "DeepLabV2Head",
    "ElasticWeightConsolidation",
    "SemSegMapper",
    "SizeBalancedSegmentor",
    "SizeWeightedCrossEntropy",
    "SizeWeights",
    "SmallObjectEvaluator",
    "TwoTaskTrainer",
    "UncertainSegmentor",
    "UncertaintyCrossEntropy",
    "add_small_objects",
    "add_smallobj_config",
    "build_config",
    "build_test_loader",
    "build_train_loader",
    "register_all",
    "size_weights",
    "validate_config",
]

register_all()
