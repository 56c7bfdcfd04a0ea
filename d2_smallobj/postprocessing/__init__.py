"""Refine predictions after the network (numpy, OpenCV; no torch, no detectron2)."""

from d2_smallobj.postprocessing.crf import CrfOptions, DenseCrf

__all__ = ["CrfOptions", "DenseCrf"]
