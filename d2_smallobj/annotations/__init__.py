"""Read annotations (VOC, COCO, LVIS, Cityscapes, panoptic, label maps); no torch needed."""
