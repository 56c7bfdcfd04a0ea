"""The detectron2 evaluator: a thin shell around :mod:`d2_smallobj.metrics`."""

from d2_smallobj.evaluation.attach import add_small_objects, folder_name
from d2_smallobj.evaluation.evaluator import TASK, SmallObjectEvaluator

__all__ = ["TASK", "SmallObjectEvaluator", "add_small_objects", "folder_name"]
