"""What is done to a prediction after the net (numpy, OpenCV; no torch, no detectron2)."""

from d2_smallobj.postprocessing.crf import CrfOptions, DenseCrf

__all__ = ["CrfOptions", "DenseCrf"]
