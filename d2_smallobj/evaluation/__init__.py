"""The detectron2 evaluator: a thin shell around :mod:`d2_smallobj.metrics`."""

from d2_smallobj.evaluation.evaluator import SmallObjectEvaluator
from d2_smallobj.evaluation.ground_truth import GroundTruth, GroundTruthReader

__all__ = ["GroundTruth", "GroundTruthReader", "SmallObjectEvaluator"]
