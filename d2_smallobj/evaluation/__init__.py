"""The detectron2 evaluator: a thin shell around :mod:`d2_smallobj.metrics`."""

from d2_smallobj.evaluation.evaluator import SmallObjectEvaluator

__all__ = ["SmallObjectEvaluator"]
