"""Annotation formats: VOC, COCO, LVIS, label maps, demo scenes; no torch, no detectron2."""
